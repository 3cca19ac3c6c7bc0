"""Other test resolutions: sizes, the winner's value at each through the command line, and an export of one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from soup.build_folder import BuildRecord, read_build
from soup.resolution_choice import best_of
from soup.resolutions import scaled
from soup.search_records import ResolutionPoint
from soup.sections import Preprocess
from tests.soup.commands import document, run


@pytest.fixture(scope="module")
def swept(slim: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project at 24 pixels, built with `--resolutions 0.75,1,1.25` in soup-out: 16, 24 and 32 pixels. Read only."""
    folder = Path(shutil.copytree(slim, tmp_path_factory.mktemp("swept") / "project"))
    val = (folder / "val.yaml").read_text().replace("{color: gray,", "{resize: 24, color: gray,")
    (folder / "val.yaml").write_text(val + "search: {methods: [uniform]}\nexplain: {contributions: false, line: 0}\n")
    told = run("build", "--val", folder / "val.yaml", "-o", folder / "soup-out", "--resolutions", "0.75,1,1.25")
    assert "wrote" in told
    return folder


def points_of(folder: Path) -> dict[float, ResolutionPoint]:
    return {one.scale: one for one in read_build(folder / "soup-out").record.resolutions}


@pytest.mark.parametrize(
    ("given_size", "scale", "expected"),
    [
        (224, 1.25, 288),  # a multiple of 32 stays one: 280 is between 256 and 288, 8.75 of them
        (224, 0.7, 160),
        (24, 0.75, 16),
        (24, 1.25, 32),
        (25, 1.25, 31),  # an odd one goes by single pixels, ties to even
        ((30, 44), 0.5, (16, 22)),
        (128, 0.8, 96),
        (64, 0.8, 48),  # a step goes into a side four times or more: 32 would leave 64 as it is
        (32, 0.7, 24),
        (8, 0.7, 6),
        (3, 0.25, 1),  # never below one step
    ],
)
def test_sides_are_scaled_in_the_steps_that_they_are_multiples_of(
    given_size: Any, scale: float, expected: object
) -> None:
    assert scaled(Preprocess(resize=given_size), scale).resize == expected
    assert scaled(Preprocess(crop=given_size), scale).crop == expected
    box = scaled(Preprocess.model_validate({"letterbox": {"size": given_size, "stride": 2}}), scale).letterbox
    assert box is not None
    assert (box.size, box.shorter, box.stride) == (expected, None, 2)


def test_the_resize_keeps_its_ratio_to_the_crop_or_takes_the_one_that_is_asked_for() -> None:
    given_one = Preprocess(resize=256, crop=224)
    found = scaled(given_one, 1.25)
    assert (found.resize, found.crop) == (329, 288)  # 288 / (224/256)
    assert (scaled(given_one, 1.0, 1.0).resize, scaled(given_one, 1.0, 0.5).resize) == (224, 448)
    assert scaled(given_one, 1.0) == given_one


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 64), st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(0.25, 4))
def test_a_scaled_side_is_within_half_a_step_and_no_step_is_lost(count: int, step: int, scale: float) -> None:
    side = count * step
    found = scaled(Preprocess(resize=side), scale).resize
    assert isinstance(found, int)
    own = next(power for power in (32, 16, 8, 4, 2, 1) if side % power == 0 and (side >= 4 * power or power == 1))
    assert found % own == 0
    assert abs(found - side * scale) <= own / 2 + 1e-9 or found == own


def test_the_sweep_measures_each_size_once_and_the_trained_one_first(swept: Path) -> None:
    points = read_build(swept / "soup-out").record.resolutions
    assert [(one.scale, one.size) for one in points] == [(1.0, (24, 24)), (0.75, (16, 16)), (1.25, (32, 32))]
    winner = read_build(swept / "soup-out").record.winner
    assert (winner.method, winner.bn_policy) == ("uniform", "recalibrated")
    assert points[0].val == winner.val
    assert points[0].difference is None
    for one in points[1:]:
        assert one.val is not None
        assert one.difference is not None
        assert one.difference.estimate == pytest.approx(one.val - (winner.val or 0), abs=1e-12)
        assert one.p50_ms is not None
        assert one.note == ""


@pytest.mark.parametrize("scale", [0.75, 1.25])
def test_a_point_is_what_a_build_at_that_size_finds_of_the_same_soup_bit_by_bit(
    swept: Path, tmp_path: Path, scale: float
) -> None:
    point = points_of(swept)[scale]
    size = point.preprocess["resize"]
    run("build", "--val", swept / "val.yaml", "-o", tmp_path / "out", "--set", f"preprocess.resize={size}")
    trials = json.loads((tmp_path / "out/trials.json").read_bytes())
    (uniform,) = (one for one in trials if one["method"] == "uniform")
    assert uniform["val"] == point.val
    record = read_build(tmp_path / "out").record
    assert (record.splits["val"].list_sha256, record.splits["val"].targets_sha256) == (
        point.list_sha256, point.targets_sha256,
    )  # fmt: skip
    if record.winner.bn_policy == "recalibrated":
        found = load_file(tmp_path / "out/soup.safetensors")
        index = read_build(swept / "soup-out").record.resolutions.index(point)
        kept = load_file(swept / "soup-out/resolutions.safetensors")
        names = [name.partition("/")[2] for name in kept if name.startswith(f"{index}/")]
        assert {"1.running_mean", "5.running_var"} <= set(names)
        for name in names:  # of the same images in another order
            assert found[name] == pytest.approx(kept[f"{index}/{name}"], rel=2e-2, abs=1e-4), name


def test_an_export_ships_the_graph_statistics_and_figures_of_the_resolution_it_names(
    swept: Path, tmp_path: Path
) -> None:
    point, record = points_of(swept)[1.25], read_build(swept / "soup-out").record
    found = document("export", swept / "soup-out", "-o", tmp_path / "release", "--resolution", "1.25")
    manifest = json.loads((tmp_path / "release/manifest.json").read_bytes())
    graph = onnx.load(tmp_path / "release/model.onnx").graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, 1, 32, 32]
    assert manifest["val"]["values"]["model.onnx"] == point.val
    assert manifest["preprocess"]["resize"] == 32
    assert manifest["state_sha256"] != record.state_sha256
    hops = [(one["name"], one["after"]) for one in found["findings"]["hops"]]
    assert hops[-3:-1] == [
        (f"{record.winner.label} → at 32×32", point.val), ("at 32×32 → ONNX", point.val),
    ]  # fmt: skip
    assert "pass" in run("verify", tmp_path / "release")


def test_the_best_resolution_is_the_best_value_and_of_equal_ones_the_quickest() -> None:
    def point(value: float | None, ms: float | None) -> ResolutionPoint:
        return ResolutionPoint(1.0, None, {}, val=value, p50_ms=ms)

    points = [point(0.5, 1.0), point(0.7, 3.0), point(0.7, 2.0), point(None, 0.1)]
    assert best_of(points, higher_is_better=True) is points[2]
    assert best_of(points, higher_is_better=False) is points[0]
    assert best_of(points[3:], higher_is_better=True) is None


def test_export_takes_the_best_resolution(swept: Path, tmp_path: Path) -> None:
    points = tuple(points_of(swept).values())
    best = max(points, key=lambda one: (one.val or 0, -(one.p50_ms or 0)))
    run("export", swept / "soup-out", "-o", tmp_path / "release", "--resolution", "best")
    graph = onnx.load(tmp_path / "release/model.onnx").graph
    shape = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    assert shape[2:] == list(best.size or ())


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("2", "--resolution 2: was not measured, expected best or one of 0.75, 1, 1.25."),
        ("large", "--resolution large: expected best, or a scale as 1.2."),
    ],
)
def test_a_resolution_that_was_not_measured_is_refused(swept: Path, tmp_path: Path, wanted: str, told: str) -> None:
    assert told in run("export", swept / "soup-out", "-o", tmp_path / "release", "--resolution", wanted, code=2)
    assert not (tmp_path / "release").exists()


def test_a_build_without_a_sweep_has_no_resolution_to_take(slim_built: Any, tmp_path: Path) -> None:
    told = run("export", slim_built.folder, "-o", tmp_path / "release", "--resolution", "best", code=2)
    assert "--resolution: the build measured none. Build with --resolutions 0.7..1.4" in told


def test_a_size_that_the_network_does_not_take_is_kept_with_its_reason(swept: Path, tmp_path: Path) -> None:
    text = (swept / "models.py").read_text().replace("nn.AdaptiveAvgPool2d(2)", "nn.AvgPool2d(6)")
    folder = Path(shutil.copytree(swept, tmp_path / "rigid", ignore=shutil.ignore_patterns("soup-out")))
    (folder / "models.py").write_text(text)
    run("build", "--val", folder / "val.yaml", "-o", folder / "soup-out", "--resolutions", "0.75,1.25,1.75")
    points = points_of(folder)
    assert points[1.0].val is not None
    assert [points[scale].val for scale in (0.75, 1.75)] == [None, None]
    assert "shapes cannot be multiplied" in points[0.75].note
    told = run("export", folder / "soup-out", "-o", tmp_path / "release", "--resolution", "1.75", code=2)
    assert "--resolution 1.75: was not measured, expected best or one of" in told


def test_the_report_tells_the_curve_and_the_best_point(swept: Path) -> None:
    record = read_build(swept / "soup-out").record
    report = (swept / "soup-out/report.md").read_text()
    section = report[report.index("## Test resolution") :].partition("\n## ")[0]
    for one in record.resolutions:
        assert f"{(one.val or 0) * 100:.2f} %" in section
        assert "×".join(map(str, one.size or ())) in section
    best = best_of(record.resolutions, higher_is_better=record.higher_is_better)
    assert best is not None
    assert shown_as_best(section, record, best)


def shown_as_best(section: str, record: BuildRecord, best: ResolutionPoint) -> bool:
    """Whether the row of the best point, and no other, is marked, and the sentence below fits."""
    marked: Sequence[str] = [line for line in section.splitlines() if "the best |" in line]
    size = "×".join(map(str, best.size or ()))
    if best is record.resolutions[0]:
        return len(marked) == 1 and size in marked[0] and "No other resolution does better on val" in section
    sentence = f"The best point is {size}; `soup export --resolution {best.scale:g}` takes it."
    return len(marked) == 1 and size in marked[0] and sentence in section


def test_statistics_of_an_earlier_build_are_not_taken_for_this_one_s(swept: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "project"))
    old = (folder / "soup-out/resolutions.safetensors").read_bytes()
    asked = ("--resolutions", "0.75,1,1.25", "--set", "search.bn_policy=averaged", "--set", "data.train=null")
    run("build", "--val", folder / "val.yaml", "-o", folder / "soup-out", *asked)
    assert not (folder / "soup-out/resolutions.safetensors").exists()
    taken = ("--resolution", "1.25", "--gate", "accuracy={max_drop: 0.2}")
    run("export", folder / "soup-out", "-o", tmp_path / "one", *taken)
    (folder / "soup-out/resolutions.safetensors").write_bytes(old)  # as a killed build would leave it
    run("export", folder / "soup-out", "-o", tmp_path / "other", *taken)
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "other/model.onnx").read_bytes()
