"""What is installed: the wheel holds the three packages and no more, and a device needs no PyTorch."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import calib
import exporters
import soup

ROOT = Path(__file__).parents[1]
PACKAGES = ("calib", "exporters", "soup")
# All others import without torch. The first line stands in the design; the rest was split off it or reads checkpoints.
MAY_IMPORT_TORCH = {
    "calib.batchnorm", "exporters.torch_to_onnx", "soup.average", "soup.checkpoint", "soup.pipeline", "soup.preflight",
    "calib.moments", "soup.rounding",  # of batchnorm, of average
    "soup.containers", "soup.formats", "soup.rebuild", "soup.tensors", "soup.unpickle",  # of checkpoint
    "soup.headers",  # of preflight
    "soup.bookkeeping", "soup.larder", "soup.models", "soup.score",  # of pipeline
    "calib.received", "soup.blocks",  # of batchnorm, of average
    "soup.aids", "soup.alike", "soup.backends", "soup.causes", "soup.geometry", "soup.keys", "soup.learned",
    "soup.notes", "soup.prior", "soup.recalibration", "soup.runner", "soup.serving", "soup.stock", "soup.swappable",
    "soup.why",  # of the search
    "soup.check", "soup.estimate", "soup.expect", "soup.export_source", "soup.recook", "soup.ship", "soup.starter",
    "soup.calibration_images", "soup.companion_files", "soup.deployed", "soup.engine_stage", "soup.export_gates",
    "soup.export_graph",
    "soup.export_proof", "soup.ladder", "soup.ship_facts", "soup.single_cost",  # of the export
    "soup.adapters", "soup.adapters.centernet", "soup.adapters.detr", "soup.adapters.instance",
    "soup.adapters.raw_outputs", "soup.adapters.segmentation", "soup.adapters.torchvision_heads", "soup.adapters.yolo",
    "soup.network",  # of the larder
    "soup.references", "soup.resolutions", "soup.views",  # what else would do, measured
    "soup.chosen_resolution", "soup.nms_stage",  # of the export
}  # fmt: skip
IMPORT_ALL = """
import importlib, json, sys
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name.partition(".")[0])
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: edgesoup[ort] and what it requires, nothing else."""
    return install("edgesoup[ort]", tmp_path_factory.mktemp("device"))


def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("edgesoup-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, f"edgesoup-{soup.__version__}.dist-info"}
    in_tree = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    others = {"soup/report.css", *(f"{package}/py.typed" for package in PACKAGES)}
    assert {name for name in names if ".dist-info/" not in name} == in_tree | others


def test_help_imports_no_heavy_library() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "soup", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {
        "torch",
        "torchvision",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "tensorrt",
        "tensorrt_rtx",
        "PIL",
        "cv2",
    }


@pytest.mark.parametrize("requirement", ["edgesoup", "edgesoup[ort]"])
def test_only_the_named_modules_need_torch_and_nothing_else_is_missing(requirement: str, tmp_path: Path) -> None:
    packages = install(requirement, tmp_path)
    done = python(packages, "-c", IMPORT_ALL, stdin="[" + ",".join(f'"{name}"' for name in all_modules()) + "]")
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == dict.fromkeys(sorted(MAY_IMPORT_TORCH), "torch")


def test_a_device_verifies_benches_and_inspects_without_torch(device: Path, released: Path, tmp_path: Path) -> None:
    for command in (
        ["verify", released, "-o", tmp_path / "again"],
        ["bench", released / "model.onnx"],
        ["inspect", released],
        ["inspect", released / "model.onnx"],
        ["doctor"],
    ):
        done = python(device, "-m", "soup", *command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert (tmp_path / "again" / "junit.xml").is_file()


def test_a_device_inspects_an_engine_without_any_tensorrt(device: Path, released: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="an engine is needed to look at")
    from exporters.onnx_to_tensorrt import onnx_to_tensorrt

    engine = onnx_to_tensorrt(released / "model.onnx", tmp_path / "model.engine", profile=None, workspace_bytes=None)
    done = python(device, "-m", "soup", "inspect", engine.path)
    assert done.returncode == 0, done.stderr
    assert "tensorrt_rtx" in done.stdout


@pytest.mark.parametrize("command", ["init runs", "check --val val.yaml", "build --val val.yaml", "export soup-out"])
def test_what_a_device_cannot_do_names_the_pip_command(command: str, device: Path, project: Path) -> None:
    done = python(device, "-m", "soup", *command.split(), folder=project)
    assert done.returncode == 6, done.stderr
    assert "pip install 'edgesoup[build]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_runtime_verify_checks_the_hashes_and_says_what_is_missing(released: Path, tmp_path: Path) -> None:
    done = python(install("edgesoup", tmp_path), "-m", "soup", "verify", released)
    assert done.returncode == 6, done.stderr
    assert "files are as they were sealed" in done.stdout
    assert "pip install 'edgesoup[ort]'" in done.stdout


def all_modules() -> list[str]:
    """Every module of the three packages but `soup.__main__`, which runs the command line."""
    found = [soup, exporters, calib]
    below = [
        module.name for package in found for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return sorted({*PACKAGES, *below} - {"soup.__main__"})


def install(requirement: str, folder: Path) -> Path:
    """Links in `folder` to what pip would install for `requirement`, as far as it is installed here."""
    for name in required([Requirement(requirement)]):
        files = metadata.distribution(name).files or []
        tops = {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}
        site = Path(str(metadata.distribution(name).locate_file("")))
        for top in tops - {link.name for link in folder.iterdir()}:
            (folder / top).symlink_to(site / top)
    for package in PACKAGES:  # an editable install has only a pointer to them
        if not (folder / package).exists():
            (folder / package).symlink_to(ROOT / package)
    return folder


def required(requirements: Iterable[Requirement]) -> set[str]:
    """Names of the distributions that these need, themselves included."""
    pending, seen = list(requirements), set[tuple[str, str]]()
    while pending:
        wanted = pending.pop()
        for extra in {"", *wanted.extras}:
            if (wanted.name.lower(), extra) in seen:
                continue
            seen.add((wanted.name.lower(), extra))
            nested = map(Requirement, metadata.requires(wanted.name) or [])
            pending += [one for one in nested if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def python(
    packages: Path, *arguments: str | Path, folder: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Python that sees the standard library and `packages`, and no other installed package (-S)."""
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, input=stdin, capture_output=True, text=True, check=False
    )
