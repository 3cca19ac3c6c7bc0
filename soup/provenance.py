"""What a result depends on besides its inputs: the user's code and this machine; and how two such records differ."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import os
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import calib
import exporters
import soup
from soup.doctor import versions
from soup.files import canonical_json, sha256_bytes

_DECISIVE = (
    "python", "torch", "torchvision", "timm", "numpy", "pillow", "opencv-python", "opencv-python-headless",
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
)  # fmt: skip
_USER_MODULE = "soup_user_"  # soup.callables names so what it loads from a file
_SHOWN_CHARACTERS = 60
_UNSET = object()


@dataclass(frozen=True, slots=True)
class _Module:
    name: str
    package: str  # what its relative imports are relative to
    file: Path  # without links


def code_facts(modules_of: Sequence[Callable[..., object] | ModuleType], *, folder: Path) -> dict[str, str]:
    """SHA-256 of the source of every module of the user's own that these callables may run, sorted by name.

    They are the modules that the callables live in, every loaded module whose file lies below `folder`, and what any of
    them imports, also inside functions and not yet loaded; not the standard library, installed packages, or soup.
    A module is named by its path from `folder` where it lies below it, else by its own name.
    """
    root = Path(os.path.realpath(folder))
    pending = [found for one in modules_of for name in _names_of(one) if (found := _located(name))]
    pending += [found for name in sorted(sys.modules) if (found := _located(name)) and root in found.file.parents]
    known: dict[Path, set[str]] = {}
    hashes: dict[Path, str] = {}
    while pending:
        module = pending.pop()
        if _is_library(module.file):
            continue
        names = known.setdefault(module.file, set())
        names.add(_shown_name(module, root))
        if module.file not in hashes:
            source = module.file.read_bytes()
            hashes[module.file] = sha256_bytes(source)
            pending += [found for name in _imported(module, source) if (found := _located(name))]
    return dict(sorted((min(names), hashes[file]) for file, names in known.items()))


def machine_facts() -> dict[str, object]:
    """Versions and abilities of this machine that can change a result in its last bits; torch where it is installed."""
    facts: dict[str, object] = {
        "soup": soup.__version__,
        "versions": {name: version for name, version in versions().items() if name in _DECISIVE},
        "machine": platform.machine(),
    }
    try:
        import torch
    except ModuleNotFoundError:
        return facts
    facts["torch_threads"] = torch.get_num_threads()
    facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        facts["cuda"] = {
            "device": torch.cuda.get_device_name(),
            "version": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return facts


def differences(was: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """One sentence for each fact that differs, by its dotted name: 'batchnorm.samples was 1000, is 500'."""
    old, new = dict(_leaves(was)), dict(_leaves(now))
    pairs = {name: (old.get(name, _UNSET), new.get(name, _UNSET)) for name in sorted(old.keys() | new.keys())}
    told = [_difference(name, before, after) for name, (before, after) in pairs.items() if not _same(before, after)]
    return [re.sub(r"\b[0-9a-f]{32,}\b", lambda match: match[0][:12], sentence) for sentence in told]


def _names_of(one: Callable[..., object] | ModuleType) -> Iterator[str]:
    """The modules that a callable lives in: its own, and that of what it wraps."""
    if isinstance(one, ModuleType):
        yield one.__name__
        return
    while isinstance(one, functools.partial):
        one = one.func
    for holder in (one, getattr(one, "__wrapped__", None)):
        module = getattr(holder, "__module__", None)
        if isinstance(module, str):
            yield module
        code = getattr(holder, "__globals__", {})  # a decorator's wrapper says it were where the wrapped one is
        if isinstance(name := code.get("__name__"), str):
            yield name


def _located(name: str) -> _Module | None:
    """The file of a module, loaded or only to be found; nothing is imported. None for one without a file."""
    loaded = sys.modules.get(name)
    if isinstance(loaded, ModuleType):
        facts = object.__getattribute__(loaded, "__dict__")  # asking a lazy module itself would load it
        file, package = facts.get("__file__"), facts.get("__package__")
    else:
        spec = _spec(name)
        file, package = (spec.origin, spec.parent) if spec and spec.has_location else (None, None)
    if not isinstance(file, str) or not Path(file).is_file():
        return None
    return _Module(name, package if isinstance(package, str) else name.rpartition(".")[0], Path(os.path.realpath(file)))


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """As importlib.util.find_spec, which would import the packages that a module is in."""
    path, spec, parts = None, None, name.split(".")
    for count in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:count]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and count < len(parts):
            return None
    return spec


def _imported(module: _Module, source: bytes) -> Iterator[str]:
    """Names of the modules that its import statements can mean, with the packages that these are in."""
    if module.file.suffix != ".py":
        return
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # never run, then
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.package)
            except ImportError:  # a relative import beyond its package
                continue
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _shown_name(module: _Module, root: Path) -> str:
    below = root in module.file.parents
    if below or module.name.startswith(_USER_MODULE):  # a name that holds a hash of where it lies
        return Path(os.path.relpath(module.file, root)).as_posix()
    return module.name


def _is_library(file: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return bool(installed) or any(folder in file.parents for folder in _library_folders())


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    """The standard library, the commands installed beside Python, and our own packages, which have a version."""
    ours = [Path(str(package.__file__)).parent for package in (calib, exporters, soup)]
    system = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "scripts")]
    return tuple(Path(os.path.realpath(folder)) for folder in (*ours, *system))


def _leaves(facts: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _same(before: object, after: object) -> bool:
    """As canonical JSON has it, in which 1, 1.0 and true are three values."""
    return before is not _UNSET and after is not _UNSET and canonical_json(before) == canonical_json(after)


def _difference(name: str, before: object, after: object) -> str:
    if isinstance(before, list) and isinstance(after, list) and (_is_long(before) or _is_long(after)):
        return f"{name} {_list_difference(before, after)}"
    return f"{name} was {_shown_value(before)}, is {_shown_value(after)}"


def _is_long(value: object) -> bool:
    return isinstance(value, list) and len(canonical_json(value)) > _SHOWN_CHARACTERS


def _shown_value(value: object) -> str:
    if value is _UNSET:
        return "not set"
    if isinstance(value, list) and _is_long(value):
        return f"{len(value)} entries"
    return value if isinstance(value, str) else canonical_json(value).decode()


def _list_difference(before: Sequence[object], after: Sequence[object]) -> str:
    """In numbers: a list of sample hashes says nothing to a reader."""
    old, new = (Counter(canonical_json(entry) for entry in entries) for entries in (before, after))
    if old == new:
        return f"has the same {len(after)} entries in another order"
    return f"had {len(before)} entries, has {len(after)}: {(new - old).total()} new, {(old - new).total()} gone"
