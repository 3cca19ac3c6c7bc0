"""A search in the precision that ships: candidates are scored by the very graph that an export of them would ship."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from exporters.runtimes import open_onnx
from soup import SoupError
from soup.export_proof import Options
from soup.ship import export

Build = Callable[..., Any]
FEW = ("search.methods=[greedy]", "explain={contributions: false, ensemble: false, line: 0}", "gates.accuracy=null")


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module", params=["fp16", "int8"])
def lowered(
    slim: Path, build_at: Build, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Any]:
    """A build of `slim` whose candidates ran in that precision."""
    folder = Path(shutil.copytree(slim, tmp_path_factory.mktemp("deployed") / "project"))
    result = build_at(
        folder, folder / "soup-out", f"search.precision={request.param}", *FEW,
        "quantization={samples: 64, method: minmax}", "search.bn_policy=averaged",
    )  # fmt: skip
    return str(request.param), folder, result


def test_what_was_scored_is_what_an_export_ships(lowered: tuple[str, Path, Any], tmp_path: Path) -> None:
    """The build's own answers on val, asked of the release's graph again."""
    precision, folder, result = lowered
    export(
        folder / "soup-out", tmp_path / "release", overrides=(f"export.precision=[{precision}]",), options=Options(),
        progress=silent,
    )  # fmt: skip
    val = np.load(folder / "val.npz")
    images = (val["images"].transpose(0, 3, 1, 2).astype(np.float32) / 255 - np.float32(0.3)) / np.float32(0.35)
    with open_onnx(tmp_path / "release" / f"model.{precision}.onnx") as runtime:
        right = runtime({"input": images})["output"].argmax(1) == val["labels"]
    kept = load_file(folder / "soup-out/evaluations.safetensors")["val/winner/correct"]
    assert result.record.winner.val == pytest.approx(right.mean(), abs=1 / len(right))
    assert int((kept != right).sum()) <= 1  # other batches may round otherwise


def test_the_report_and_the_cost_say_what_evaluated(lowered: tuple[str, Path, Any]) -> None:
    precision, folder, result = lowered
    assert result.record.cost.backend == f"{precision} in onnxruntime"
    record = json.loads((folder / "soup-out/build.json").read_bytes())
    assert {hop["where"] for hop in record["hops"]} <= {f"{precision} in onnxruntime on cpu"}


def test_a_second_build_asks_nothing_anew_and_another_precision_asks_all(
    lowered: tuple[str, Path, Any], build_at: Build
) -> None:
    precision, folder, result = lowered
    asked = (*FEW, "quantization={samples: 64, method: minmax}", "search.bn_policy=averaged")
    again = build_at(folder, folder / "soup-out", f"search.precision={precision}", *asked)
    assert sum(again.record.cost.forwarded.values()) == 0
    assert again.record.state_sha256 == result.record.state_sha256
    other = build_at(folder, folder / "other-out", *asked)
    assert sum(other.record.cost.forwarded.values()) > 0


def test_int8_without_training_images_is_refused(small: Path, build_at: Build) -> None:
    with pytest.raises(SoupError, match=r"INT8 ranges are measured on data\.train, which is not given"):
        build_at(small, small / "out", "search.precision=int8", "search.bn_policy=averaged", "data.train=null", *FEW)
