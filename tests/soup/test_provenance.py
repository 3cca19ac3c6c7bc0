"""Every line of the user's own code that can change a result is in the facts, under a name that does not move."""

from __future__ import annotations

import functools
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy
import pytest

import soup
from soup.callables import resolve
from soup.provenance import code_facts, differences, machine_facts


@pytest.fixture(autouse=True)
def _nothing_stays_loaded() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def write(path: Path, text: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return sha256(text.encode()).hexdigest()


def test_what_a_callable_imports_is_followed_through_packages_functions_and_relative_imports(project: Path) -> None:
    expected = {
        "models.py": write(
            project / "models.py",
            "import json, numpy\nfrom exporters import ExportError\nfrom prov_nets import blocks\n"
            "def build():\n    import prov_late\n",
        ),
        "prov_nets/__init__.py": write(project / "prov_nets" / "__init__.py"),
        "prov_nets/blocks.py": write(
            project / "prov_nets" / "blocks.py", "from . import act\nfrom .deep.conv import Conv\n"
        ),
        "prov_nets/act.py": write(project / "prov_nets" / "act.py"),
        "prov_nets/deep/__init__.py": write(project / "prov_nets" / "deep" / "__init__.py"),
        "prov_nets/deep/conv.py": write(
            project / "prov_nets" / "deep" / "conv.py", "class Conv: ...\nfrom ..shape import side\n"
        ),
        "prov_nets/shape.py": write(project / "prov_nets" / "shape.py", "side = 3\n"),
        "prov_late.py": write(project / "prov_late.py", "import prov_later.still\n"),
        "prov_later/__init__.py": write(project / "prov_later" / "__init__.py", "raise ValueError('never run')\n"),
        "prov_later/still.py": write(project / "prov_later" / "still.py", "def broken(:\n"),
    }
    write(project / "prov_nets" / "unused.py")
    build = resolve("./models.py:build", folder=project)

    assert code_facts([build], folder=project) == expected
    assert "prov_later" not in sys.modules


def test_facts_change_with_a_source_and_not_with_where_the_project_lies(tmp_path: Path) -> None:
    facts = []
    for folder, side in (("a", 3), ("elsewhere/b", 3), ("c", 4)):
        write(tmp_path / folder / "models.py", f"SIDE = {side}\ndef build(): ...\n")
        build = resolve("./models.py:build", folder=tmp_path / folder)
        facts.append(code_facts([build], folder=tmp_path / folder))
    assert facts[0] == facts[1] != facts[2]
    assert list(facts[2]) == ["models.py"]


def test_a_file_beside_the_folder_is_named_by_its_path_and_a_package_outside_by_its_name(
    tmp_path: Path, project: Path
) -> None:
    expected = {
        "../shared/models.py": write(
            tmp_path / "shared" / "models.py", "from prov_pack import act\ndef build(): ...\n"
        ),
        "prov_pack": write(tmp_path / "shared" / "prov_pack" / "__init__.py", "X = 1\n"),
        "prov_pack.act": write(tmp_path / "shared" / "prov_pack" / "act.py", "from . import side\n"),
        "prov_pack.side": write(tmp_path / "shared" / "prov_pack" / "side.py", "Y = 1\n"),
    }
    build = resolve("../shared/models.py:build", folder=project)

    assert code_facts([build], folder=project) == expected


def test_a_module_below_the_folder_counts_once_it_is_loaded_whoever_loaded_it(project: Path) -> None:
    write(project / "prov_dynamic.py")
    assert code_facts([], folder=project) == {}
    sys.path.append(str(project))
    importlib.import_module("prov_dynamic")
    assert list(code_facts([], folder=project)) == ["prov_dynamic.py"]


def test_the_module_that_wraps_a_callable_counts_beside_the_one_that_it_is_written_in(
    tmp_path: Path, project: Path
) -> None:
    write(
        tmp_path / "prov_deco.py",
        "from functools import wraps\ndef cached(f):\n    @wraps(f)\n    def inner(): ...\n    return inner\n",
    )
    write(tmp_path / "prov_written.py", "def build(): ...\nclass Build:\n    def __call__(self): ...\n")
    sys.path.append(str(tmp_path))
    deco, written = importlib.import_module("prov_deco"), importlib.import_module("prov_written")

    assert list(code_facts([deco.cached(written.build)], folder=project)) == ["prov_deco", "prov_written"]
    for one in (written, written.Build, written.Build(), written.Build().__call__, functools.partial(written.build)):
        assert list(code_facts([one], folder=project)) == ["prov_written"]


def test_libraries_and_soup_itself_are_no_ones_code(project: Path) -> None:
    write(project / "site-packages" / "prov_installed.py")
    sys.path.append(str(project / "site-packages"))
    installed = importlib.import_module("prov_installed")

    assert code_facts([installed, json.dumps, numpy.mean, soup.silent, len], folder=project) == {}


def test_a_module_that_loads_itself_lazily_is_left_asleep(project: Path) -> None:
    write(project / "prov_lazy.py", "raise ValueError('awake')\n")
    spec = importlib.util.spec_from_file_location("prov_lazy", project / "prov_lazy.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["prov_lazy"] = module
    spec.loader.exec_module(module)

    assert list(code_facts([], folder=project)) == ["prov_lazy.py"]


def test_machine_facts_hold_what_can_change_the_last_bits() -> None:
    import torch

    facts = machine_facts()
    versions = facts["versions"]
    assert isinstance(versions, dict)
    assert versions["python"] == platform.python_version()
    for name in ("torch", "torchvision", "numpy", "pillow", "onnxruntime", "timm", "opencv-python-headless"):
        assert versions[name] == metadata.version(name)
    assert "pydantic" not in versions
    assert facts["soup"] == soup.__version__
    assert facts["torch_threads"] == torch.get_num_threads()
    assert facts["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert ("cuda" in facts) == torch.cuda.is_available()


def test_torch_is_imported_only_when_the_machine_is_asked() -> None:
    code = "import sys, soup.provenance, soup.lock, soup.ledger; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ({"a": {"b": 1000}}, {"a": {"b": 500}}, ["a.b was 1000, is 500"]),
        ({"a": 1}, {"a": 1.0}, ["a was 1, is 1.0"]),
        ({"a": None}, {}, ["a was null, is not set"]),
        ({"a": {}}, {"a": {"b": True}}, ["a was {}, is not set", "a.b was not set, is true"]),
        ({"code": {"m.py": "0a" * 32}}, {"code": {"m.py": "1b" * 32}}, ["code.m.py was 0a0a0a0a0a0a, is 1b1b1b1b1b1b"]),
        ({"size": [224, 224]}, {"size": [256, 256]}, ["size was [224,224], is [256,256]"]),
        ({"s": ["a" * 64] * 3}, {"s": ["a" * 64] * 2 + ["b" * 64] * 2}, ["s had 3 entries, has 4: 2 new, 1 gone"]),
        ({"s": ["a" * 64, "b" * 64]}, {"s": ["b" * 64, "a" * 64]}, ["s has the same 2 entries in another order"]),
        ({"s": ["a" * 64] * 3}, {}, ["s was 3 entries, is not set"]),
        ({"x": 1, "y": {"z": "v"}}, {"y": {"z": "v"}, "x": 1}, []),
    ],
)
def test_a_difference_is_one_sentence_for_each_fact(
    was: dict[str, object], now: dict[str, object], told: list[str]
) -> None:
    assert differences(was, now) == told
