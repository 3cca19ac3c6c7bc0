"""The two TensorRTs behind one import: classic `tensorrt`, 8.6 or newer, and `tensorrt_rtx`; what their loggers say."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Literal

from exporters import ExportError

Flavour = Literal["tensorrt", "tensorrt_rtx"]
Record = tuple[str, str]  # severity ("INTERNAL_ERROR" | "ERROR" | "WARNING" | "INFO" | "VERBOSE"), message

OLDEST = (8, 6)
_PIP = {
    "tensorrt": "pip install 'edgesoup[trt]' (on a Jetson it comes with JetPack)",
    "tensorrt_rtx": "pip install 'edgesoup[rtx]'",
}
_NO_DRIVER = re.compile(r"\(cudaError 35\b")  # said of every build without a GPU, also of those that succeed
_ERROR_WRAPPER = re.compile(r"Error Code \d+: [^(]*\((?P<reason>.*)\)\s*$", re.DOTALL)
_SOURCE_PLACE = re.compile(r"\.?\s*In \S+ at \S+:\d+|\[\w+\.cpp:\d+: \w+\] ")


def import_flavour(flavour: Flavour) -> ModuleType:
    """The imported module. Raises ExportError (environment): absent, does not load, or older than TensorRT 8.6."""
    try:
        trt = importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise ExportError(
            f"{flavour}: cannot be imported: {error}. Install it: {_PIP[flavour]}.", kind="environment"
        ) from error
    version = str(trt.__version__)
    if flavour == "tensorrt" and _major_minor(version) < OLDEST:
        raise ExportError(
            f"tensorrt: version {version}, expected {OLDEST[0]}.{OLDEST[1]} or newer (JetPack 6). "
            "On JetPack 5 build with trtexec, by the line in the release folder.",
            kind="environment",
        )
    return trt


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def make_logger(trt: ModuleType, on_record: Callable[[str, str], None]) -> Any:
    """A TensorRT logger at full verbosity; `on_record(severity, message)` is called for every record."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # a base known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 demands it by name

        def log(self, severity: Any, message: str) -> None:
            on_record(severity.name, message)

    return Logger()


def reasons(records: Iterable[Record]) -> list[str]:
    """The errors among log records in plain words, each once, but for what every machine without a GPU logs."""
    errors = (text for severity, text in records if severity.endswith("ERROR") and not _NO_DRIVER.search(text))
    return list(dict.fromkeys(plain_reason(text) for text in errors))


def explain(records: Iterable[Record]) -> str:
    """Why something failed, as far as the logger was told: `reasons`, else every error, in one line."""
    records = list(records)
    errors = reasons(records) or [plain_reason(text) for severity, text in records if severity.endswith("ERROR")]
    return "; ".join(errors).rstrip(".") or "no reason was logged"


def plain_reason(message: str) -> str:
    """A log message without its error-code wrapper and the places in NVIDIA's sources; unknown forms as they are."""
    wrapped = _ERROR_WRAPPER.search(message)
    return _SOURCE_PLACE.sub("", wrapped["reason"] if wrapped else message).strip()
