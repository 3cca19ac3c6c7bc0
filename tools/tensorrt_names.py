"""Write the names that each supported TensorRT has, as its own wheel tells them: `make trt-names`.

The bindings of classic TensorRT are on PyPI, the libraries that they load are not: shared objects of null functions
stand in for those, which is enough to import the module and to read its names. Needs pip, gcc and the network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "exporters"
TABLE, SINCE = TESTS / "tensorrt_names.json", TESTS / "tensorrt_since.json"
CLASSIC_LIBRARIES = ("libnvinfer.so", "libnvinfer_plugin.so", "libnvonnxparser.so")
OLD_LIBRARIES = (*CLASSIC_LIBRARIES, "libnvparsers.so")
RTX_LIBRARIES = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
    # Of the UFF and Caffe parsers, which TensorRT 8 still links.
    "_ZN11nvuffparser15createUffParserEv", "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv", "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)  # fmt: skip
CLASSES = (
    "Builder", "BuilderFlag", "ComputeCapability", "DataType", "DeviceType", "EngineInspector",
    "EngineInvalidityDiagnostics", "ErrorCode", "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine",
    "IExecutionContext", "IHostMemory", "IInt8EntropyCalibrator2", "ILayer", "ILogger", "INetworkDefinition",
    "IOptimizationProfile", "IOutputAllocator", "IProgressMonitor", "IRuntimeCache", "IRuntimeConfig", "ITensor",
    "ITimingCache", "LayerInformationFormat", "LayerType", "MemoryPoolType", "NetworkDefinitionCreationFlag",
    "OnnxParser", "ParserError", "ProfilingVerbosity", "Runtime", "TensorIOMode", "TensorLocation",
)  # fmt: skip
LIST_NAMES = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
public = lambda owner: sorted(name for name in dir(owner) if not name.startswith("_"))
classes = {name: public(getattr(module, name)) for name in sys.argv[2:] if hasattr(module, name)}
print(json.dumps({"module": public(module), **classes}))
"""


@dataclass(frozen=True, slots=True)
class Release:
    """One version to read: its key in the table, its wheel, the module in it, the libraries that this loads."""

    key: str
    requirement: str
    module: str
    libraries: tuple[str, ...]
    abi: int


RELEASES = (
    Release("8.6", "tensorrt-bindings==8.6.1", "tensorrt_bindings", OLD_LIBRARIES, 8),
    Release("10.3", "tensorrt-cu12-bindings==10.3.0", "tensorrt_bindings", CLASSIC_LIBRARIES, 10),
    Release("10.13", "tensorrt-cu12-bindings==10.13.3.9", "tensorrt_bindings", CLASSIC_LIBRARIES, 10),
    Release("11.4", "tensorrt-cu13-bindings==11.4.0.106", "tensorrt_bindings", CLASSIC_LIBRARIES, 11),
    Release("rtx", "tensorrt-rtx-cu13-bindings==1.7.1.116", "tensorrt_rtx_bindings", RTX_LIBRARIES, 1),
)
# Between the releases above, so that the table of changes is exact to a minor version where a Jetson could have it.
BETWEEN = (
    Release("10.0", "tensorrt-cu12-bindings==10.0.1", "tensorrt_bindings", CLASSIC_LIBRARIES, 10),
    Release("10.7", "tensorrt-cu12-bindings==10.7.0", "tensorrt_bindings", CLASSIC_LIBRARIES, 10),
    Release("10.16", "tensorrt-cu12-bindings==10.16.1.11", "tensorrt_bindings", CLASSIC_LIBRARIES, 10),
    Release("11.0", "tensorrt-cu12-bindings==11.0.0.114", "tensorrt_bindings", CLASSIC_LIBRARIES, 11),
)


def main() -> None:
    """Read all releases, then write both tables."""
    names = {release: collect(release) for release in (*RELEASES, *BETWEEN)}
    TABLE.write_text(render({release: names[release] for release in RELEASES}), encoding="utf-8")
    SINCE.write_text(render_changes({release.key: names[release] for release in names}), encoding="utf-8")


def collect(release: Release) -> dict[str, list[str]]:
    """Public names of the module (as "module") and of the classes that matter here, from a throw-away installation."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, release.requirement]
        subprocess.run(pip, check=True)
        for library in release.libraries:
            make_stub(Path(folder) / f"{library}.{release.abi}")
        environment = {**os.environ, "PYTHONPATH": folder, "LD_LIBRARY_PATH": folder}
        command = [sys.executable, "-c", LIST_NAMES, release.module, *CLASSES]
        output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout
    names: dict[str, list[str]] = json.loads(output)
    return names


def make_stub(path: Path) -> None:
    """A shared object whose functions all return null."""
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS)
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)


def render(names: Mapping[Release, Mapping[str, Sequence[str]]]) -> str:
    """JSON with a line per class, so that a new version shows as a readable diff."""
    releases = []
    for release, classes in names.items():
        lines = ",\n".join(f"   {json.dumps(owner)}: {json.dumps(classes[owner])}" for owner in sorted(classes))
        wheel = json.dumps(release.requirement)
        releases.append(f' {json.dumps(release.key)}: {{\n  "wheel": {wheel},\n  "names": {{\n{lines}\n  }}\n }}')
    return "{\n" + ",\n".join(releases) + "\n}\n"


def render_changes(names: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """JSON with a line per name that some classic version lacks, of the classes above: which versions have it."""
    versions = sorted((key for key in names if key != "rtx"), key=lambda key: tuple(map(int, key.split("."))))
    has: dict[str, list[str]] = {}
    for version in versions:
        for owner, members in names[version].items():
            for name in members:
                if owner != "module" or name in CLASSES:
                    has.setdefault(name if owner == "module" else f"{owner}.{name}", []).append(version)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(has.items())
                       if found != versions)  # fmt: skip
    return f'{{\n "versions": {json.dumps(versions)},\n "some_lack": {{\n{lines}\n }}\n}}\n'


if __name__ == "__main__":
    main()
