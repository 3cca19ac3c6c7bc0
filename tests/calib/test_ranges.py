from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from calib import CalibError, DivergedError
from calib.ranges import Method, RangeTable, measure_ranges, read_ranges, write_ranges

METHODS: tuple[Method, ...] = get_args(Method)
TABLE = RangeTable(
    method="entropy",
    samples=64,
    list_sha256="a" * 64,
    graph_sha256="b" * 64,
    ranges={"größe": (-1.5, 1.5), "input": (-0.1, 0.1), "ärger \"'": (-3e-7, 3e-7)},
)


def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "input": random.normal(size=(24, 3, 6, 6)).astype(np.float32),
        "active": np.maximum(random.normal(size=(24, 500)), 0).astype(np.float32),
        "dead": np.zeros((24, 3), np.float32),
    }


def in_parts(cuts: list[int]) -> Iterator[Mapping[str, np.ndarray]]:
    edges = [0, *sorted(cuts), 24]
    for start, stop in itertools.pairwise(edges):
        yield {name: array[start:stop] for name, array in data().items()}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(METHODS), st.lists(st.integers(0, 24), max_size=6))
def test_ranges_do_not_depend_on_the_split_into_batches(method: Method, cuts: list[int]) -> None:
    whole = measure_ranges(lambda: [data()], method=method)
    assert measure_ranges(lambda: in_parts(cuts), method=method) == whole
    assert list(whole) == ["input", "active", "dead"]
    assert whole["dead"] == (0.0, 0.0)
    assert all(low == -high for low, high in whole.values())


def test_minmax_is_onnxruntimes_to_the_last_bit(tmp_path: Path) -> None:
    """Its own calibrator on a graph whose one activation is the input."""
    node = helper.make_node("Relu", ["input"], ["output"], name="relu")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 6, 6]) for name in ("input", "output")]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    calibrator = create_calibrator(
        tmp_path / "model.onnx",
        ["Relu"],
        augmented_model_path=str(tmp_path / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"symmetric": True},
    )
    calibrator.collect_data(Reader(data()["input"]))
    expected = {name: item.range_value for name, item in calibrator.compute_data().items()}
    batches = [{"input": part, "output": np.maximum(part, 0)} for part in np.split(data()["input"], 4)]
    found = measure_ranges(lambda: batches, method="minmax")
    assert {name: (float(np.squeeze(low)), float(np.squeeze(high))) for name, (low, high) in expected.items()} == found


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter(np.split(images, 4))

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = next(self.batches, None)
        return None if part is None else {"input": part}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_to_be_clipped_has_its_largest_magnitude_in_the_same_pass(method: Method) -> None:
    passes = []

    def batches() -> Iterator[Mapping[str, np.ndarray]]:
        passes.append(1)
        return in_parts([5, 20])

    found = measure_ranges(batches, method=method, percentile=90, unclipped=["input", "not there"])
    plain = measure_ranges(lambda: [data()], method=method, percentile=90)
    largest = float(np.abs(data()["input"]).max())
    assert found == plain | {"input": (-largest, largest)}
    assert list(found) == list(plain)
    assert len(passes) == 1
    if method == "percentile":
        assert plain["input"][1] < largest


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_clipped_is_no_number_either(bad: float) -> None:
    broken = {"input": np.array([1.0, bad], np.float32)}
    with pytest.raises(DivergedError, match="'input' holds NaN or Inf"):
        measure_ranges(lambda: [broken], method="entropy", unclipped=["input"])


def test_the_percentile_is_an_argument() -> None:
    narrow = measure_ranges(lambda: [data()], method="percentile", percentile=90)
    usual = measure_ranges(lambda: [data()], method="percentile")
    assert narrow["input"][1] < usual["input"][1]
    assert narrow["input"][1] == pytest.approx(np.percentile(np.abs(data()["input"]), 90), rel=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_no_numbers_name_their_tensor(method: Method, bad: float) -> None:
    broken = data()
    broken["active"][3, 7] = bad
    with pytest.raises(DivergedError, match=r"^calibration: tensor 'active' holds NaN or Inf"):
        measure_ranges(lambda: [data(), broken], method=method)


@pytest.mark.parametrize(
    ("method", "percentile", "message"),
    [
        ("max", 99.0, "method is 'max'"),
        ("percentile", 0.0, "percentile is 0"),
        ("percentile", np.nan, "percentile is nan"),
    ],
)
def test_a_method_that_is_none_is_refused(method: Method, percentile: float, message: str) -> None:
    with pytest.raises(CalibError, match=message):
        measure_ranges(lambda: [data()], method=method, percentile=percentile)


def test_no_batches_are_refused() -> None:
    with pytest.raises(CalibError, match=r"calib\.npz: no batch came"):
        measure_ranges(lambda: [], method="minmax", where="calib.npz")


def test_a_table_is_read_back_as_it_was_and_has_a_line_per_tensor(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    write_ranges(path, TABLE)
    assert read_ranges(path, graph_sha256="b" * 64, list_sha256="a" * 64) == TABLE
    assert '    "größe": [-1.5,1.5],\n' in path.read_text(encoding="utf-8")
    assert [item.name for item in tmp_path.iterdir()] == ["ranges.json"]
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert facts["sha256"] == TABLE.sha256


def test_equal_tables_give_equal_bytes_and_any_other_fact_another_hash(tmp_path: Path) -> None:
    backwards = replace(TABLE, ranges=dict(reversed(TABLE.ranges.items())))
    write_ranges(tmp_path / "a", TABLE)
    write_ranges(tmp_path / "b", backwards)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    others = [
        replace(TABLE, method="mse"),
        replace(TABLE, samples=65),
        replace(TABLE, list_sha256="c" * 64),
        replace(TABLE, graph_sha256="c" * 64),
        replace(TABLE, percentile=99.9),
        replace(TABLE, ranges={**TABLE.ranges, "input": (-0.1, 0.10000001)}),
    ]
    assert len({table.sha256 for table in [TABLE, *others]}) == 7


def test_every_digit_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    write_ranges(path, TABLE)
    text = path.read_text(encoding="utf-8")
    places = [index for index, letter in enumerate(text) if letter.isdigit()]
    for index in places:
        path.write_text(text[:index] + str((int(text[index]) + 1) % 10) + text[index + 1 :], encoding="utf-8")
        with pytest.raises(CalibError, match=r"^.*ranges\.json: .*[Cc]alibrate again\.$"):
            read_ranges(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"ranges": {"a": 1}}', '{"ranges": {"a": [1]}}', '"x"'])
def test_other_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(text)
    with pytest.raises(CalibError, match="Calibrate again") as caught:
        read_ranges(path)
    assert caught.value.kind == "input"


@pytest.mark.parametrize(
    ("name", "what"), [("graph_sha256", "another graph"), ("list_sha256", "another list of images")]
)
def test_a_table_of_something_else_is_refused(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / "ranges.json"
    write_ranges(path, TABLE)
    with pytest.raises(CalibError, match=f"{what}, {name} is .*, expected {'d' * 64}"):
        read_ranges(path, **{name: "d" * 64})


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CalibError, match="cannot be written: No such file"):
        write_ranges(tmp_path / "gone" / "ranges.json", TABLE)
    with pytest.raises(CalibError, match="cannot be read: No such file"):
        read_ranges(tmp_path / "gone" / "ranges.json")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ranges.json"
    write_ranges(path, TABLE)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CalibError, match="No space left"):
        write_ranges(path, replace(TABLE, samples=1))
    assert read_ranges(path) == TABLE
    assert [item.name for item in tmp_path.iterdir()] == ["ranges.json"]
