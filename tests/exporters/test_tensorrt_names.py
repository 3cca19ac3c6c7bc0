"""What cannot run here is checked here: every TensorRT name in the sources stands in the table of each version."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import pytest

import exporters
from exporters.trt_api import FEATURES

Table = dict[str, dict[str, set[str]]]
Used = tuple[str, str]  # class ("module" for the module itself), name

PACKAGE = Path(exporters.__file__).parent
SOURCES = sorted(path for path in PACKAGE.glob("*.py") if re.search(r"\btrt[.:]|config: Any", path.read_text()))
# A class to override whose bindings list no methods from 10 on: only its own name can be checked.
UNTOLD = {"IOutputAllocator"}
# What some version lacks stands in the table of features, and is asked for there before it is used.
GUARDED = {name for feature in FEATURES.values() for name in feature.names}
# The one place where a variable's name stands for its class, as the sources use it.
CLASS_OF_VARIABLE = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "failure": "ParserError",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "plan": "IHostMemory",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "tensor": "ITensor",
    "trt": "module",
}


@dataclass(frozen=True)
class FunctionNames:
    """The TensorRT names in one function, and those that it asks for with hasattr."""

    function: str
    used: frozenset[Used]
    guards: frozenset[Used]


@pytest.fixture(scope="module")
def table() -> Table:
    stored = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
    return {
        version: {owner: set(names) for owner, names in release["names"].items()} for version, release in stored.items()
    }


def owner_of(node: ast.expr) -> str | None:
    """The class of `trt`, `trt.X`, `trt.X(…)`, a variable or a private attribute; None if it is not TensorRT's."""
    if isinstance(node, ast.Call):
        return owner_of(node.func) if isinstance(node.func, ast.Attribute) and is_trt(node.func.value) else None
    if isinstance(node, ast.Attribute):
        return node.attr if is_trt(node.value) else CLASS_OF_VARIABLE.get(node.attr.removeprefix("_"))
    return CLASS_OF_VARIABLE.get(node.id) if isinstance(node, ast.Name) else None


def is_trt(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "trt"


def is_guard(node: ast.AST) -> TypeGuard[ast.Call]:
    """hasattr(…, "name")."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "hasattr":
        return False
    return isinstance(node.args[1], ast.Constant)


def names_in(source: str) -> Iterator[FunctionNames]:
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            used, guards = set(), set()
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Attribute)
                    and not node.attr.startswith("_")
                    and (owner := owner_of(node.value))
                ):
                    used.add((owner, node.attr))
                if is_guard(node):
                    name = ast.literal_eval(node.args[1])
                    guards.add((str(owner_of(node.args[0])), name))
                if isinstance(node, ast.ClassDef):  # a class of ours must override what is there
                    bases = [owner for base in node.bases if (owner := owner_of(base))]
                    methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                    used |= {(base, name) for base in bases for name in methods if not name.startswith("_")}
            yield FunctionNames(function.name, frozenset(used), frozenset(guards))


def missing(names: FunctionNames, release: dict[str, set[str]]) -> list[str]:
    """The names that a release lacks, unless a feature needs them, or a guard's name is missing there too."""

    def absent(used: Used) -> bool:
        owner, name = used
        return owner not in UNTOLD and name not in release.get(owner, set())

    def guarded(used: Used) -> bool:
        owner, name = used
        return owner in GUARDED or f"{owner}.{name}" in GUARDED or (owner == "module" and name in GUARDED)

    if any(absent(guard) for guard in names.guards):
        return []
    return [
        f"{names.function}: {owner}.{name}"
        for owner, name in sorted(names.used)
        if absent((owner, name)) and not guarded((owner, name))
    ]


def names_of(path: Path) -> Iterator[FunctionNames]:
    """Those of one source; a runtime's own `profile` is no IOptimizationProfile, which only a builder has."""
    for names in names_in(path.read_text()):
        runtime = path.name.startswith("engine_tensors") or path.name == "engine.py"
        used = {pair for pair in names.used if not (runtime and pair[0] == "IOptimizationProfile")}
        yield FunctionNames(names.function, frozenset(used), names.guards)


@pytest.mark.parametrize("version", ["8.6", "10.3", "10.13", "11.4", "rtx"])
def test_every_tensorrt_name_in_the_sources_exists_in_this_version(table: Table, version: str) -> None:
    lacking = [
        f"{path.name}: {line}"
        for path in SOURCES
        for names in names_of(path)
        for line in missing(names, table[version])
    ]

    assert lacking == []


def test_the_sources_are_read_for_all_kinds_of_names() -> None:
    used = {pair for path in SOURCES for names in names_of(path) for pair in names.used}

    assert used >= {
        ("module", "OnnxParser"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("Builder", "build_serialized_network"),
        ("ILogger", "log"),
        ("IProgressMonitor", "step_complete"),
        ("IExecutionContext", "execute_async_v3"),
        ("Runtime", "get_engine_validity"),
        ("ParserError", "node_operator"),
        ("ITensor", "name"),
        ("IInt8EntropyCalibrator2", "read_calibration_cache"),
        ("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"),
        ("DeviceType", "DLA"),
        ("ITimingCache", "serialize"),
        ("ILayer", "set_output_type"),
    }
    assert {owner for owner, _ in used} >= set(CLASS_OF_VARIABLE.values())


def test_a_name_that_only_one_version_has_is_reported_unless_guarded(table: Table) -> None:
    plain = "def f(trt, config):\n    config.l2_limit_for_tiling(trt.TilingOptimizationLevel)\n"
    guarded = plain.replace("\n    config", "\n    if hasattr(config, 'l2_limit_for_tiling'):\n        config")

    reported = {version: [missing(names, table[version]) for names in names_in(plain)] for version in table}

    assert reported["11.4"] == [[]]
    assert reported["10.3"] == [["f: IBuilderConfig.l2_limit_for_tiling", "f: module.TilingOptimizationLevel"]]
    assert [missing(names, table["10.3"]) for names in names_in(guarded)] == [[]]


def test_every_feature_is_in_some_version_by_the_names_it_needs(table: Table) -> None:
    """A misspelt name would be missing everywhere, and its feature refused everywhere."""
    everywhere = {owner for release in table.values() for owner in release["module"]} | {
        f"{owner}.{name}" for release in table.values() for owner, names in release.items() for name in names
    }

    assert {name for feature in FEATURES.values() for name in feature.names} <= everywhere


def test_the_table_says_what_the_installed_tensorrt_rtx_says(table: Table) -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    stored = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text())
    if not stored["rtx"]["wheel"].endswith(f"=={rtx.__version__}"):
        pytest.skip(f"the table is of {stored['rtx']['wheel']}, installed is {rtx.__version__}")

    for owner, names in table["rtx"].items():
        assert names <= set(dir(rtx if owner == "module" else getattr(rtx, owner)))


def test_every_cuda_runtime_name_in_the_sources_exists_in_cuda_bindings() -> None:
    pytest.importorskip("cuda.bindings")
    runtime = importlib.import_module("cuda.bindings.runtime")
    tree = ast.parse(Path(exporters.__file__).with_name("cuda.py").read_text())

    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")}

    assert {"cudaMallocHost", "cudaMemcpyAsync", "cudaEventElapsedTime", "cudaStreamCreate"} <= names
    assert {name for name in names if not hasattr(runtime, name) and not hasattr(runtime.cudaError_t, name)} == {
        name for name in names if name.startswith("cudaMemcpyHostTo") or name.startswith("cudaMemcpyDeviceTo")
    }
    assert all(hasattr(runtime.cudaMemcpyKind, name) for name in ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"))
