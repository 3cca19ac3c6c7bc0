"""What cannot run here is checked here: every TensorRT name in the sources stands in the table of each version."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import exporters

Table = dict[str, dict[str, set[str]]]
Used = tuple[str, str]  # class ("module" for the module itself), name

SOURCES = [Path(exporters.__file__).with_name(name) for name in ("flavours.py", "engine_builder.py", "engine.py")]
# The one place where a variable's name stands for its class, as the sources use it.
CLASS_OF_VARIABLE = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "failure": "ParserError",
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
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
                    name = ast.literal_eval(node.args[1])
                    guards.add((str(owner_of(node.args[0])), name))
                if isinstance(node, ast.ClassDef):  # a class of ours must override what is there
                    bases = [owner for base in node.bases if (owner := owner_of(base))]
                    methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                    used |= {(base, name) for base in bases for name in methods if not name.startswith("_")}
            yield FunctionNames(function.name, frozenset(used), frozenset(guards))


def missing(names: FunctionNames, release: dict[str, set[str]]) -> list[str]:
    """The names that a release lacks, unless a guard's name is missing there too."""

    def absent(used: Used) -> bool:
        owner, name = used
        return name not in release.get(owner, set())

    if any(absent(guard) for guard in names.guards):
        return []
    return [f"{names.function}: {owner}.{name}" for owner, name in sorted(names.used) if absent((owner, name))]


@pytest.mark.parametrize("version", ["10.3", "10.13", "11.4", "rtx"])
def test_every_tensorrt_name_in_the_sources_exists_in_this_version(table: Table, version: str) -> None:
    lacking = [
        line for path in SOURCES for names in names_in(path.read_text()) for line in missing(names, table[version])
    ]

    assert lacking == []


def test_the_sources_are_read_for_all_kinds_of_names() -> None:
    used = {pair for path in SOURCES for names in names_in(path.read_text()) for pair in names.used}

    assert used >= {
        ("module", "OnnxParser"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("Builder", "build_serialized_network"),
        ("ILogger", "log"),
        ("IProgressMonitor", "step_complete"),
        ("IExecutionContext", "execute_async_v3"),
        ("Runtime", "get_engine_validity"),
        ("ParserError", "node_operator"),
        ("ITensor", "shape"),
    }
    assert {owner for owner, _ in used} >= set(CLASS_OF_VARIABLE.values())


def test_a_name_that_only_one_version_has_is_reported_unless_guarded(table: Table) -> None:
    plain = "def f(trt, config):\n    config.set_compute_capability(trt.ComputeCapability.SM86, 0)\n"
    guarded = plain.replace("\n    config", "\n    if hasattr(config, 'set_compute_capability'):\n        config")

    reported = {version: [missing(names, table[version]) for names in names_in(plain)] for version in table}

    assert reported["rtx"] == [[]]
    assert reported["11.4"] == [
        ["f: ComputeCapability.SM86", "f: IBuilderConfig.set_compute_capability", "f: module.ComputeCapability"]
    ]
    assert [missing(names, table["11.4"]) for names in names_in(guarded)] == [[]]


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
