"""The picture beside the report: its bytes, what it names, and when there is none."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from soup.picture import figure, picture_svg, shortest_names
from soup.pipeline import BuildResult
from soup.search_records import Explanation, Line, LinePoint, Place

PLACES = (
    Place("a.pt", -3.0, 0.0, 0.91, "ingredient"),
    Place("b.pt", 1.0, 2.0, 0.88, "ingredient"),
    Place("c.pt", 2.0, -2.0, None, "left out"),
    Place("base.pt", 4.0, 0.5, None, "base"),
    Place("model", -1.0, 1.0, 0.92, "model"),
)
POINTS = (LinePoint(0.0, 0.91, 400), LinePoint(0.5, 0.92, 400), LinePoint(1.0, 0.88, 400))


@pytest.fixture(scope="module")
def told(slim_built: BuildResult) -> BuildResult:
    """A record whose explanation is made by hand."""
    first, second, _ = (one.sha256 for one in slim_built.record.ingredients)
    explanation = Explanation(plane=PLACES, line=Line(first, second, POINTS))
    return replace(slim_built, record=replace(slim_built.record, explanation=explanation))


def drawn(result: BuildResult, **changed: object) -> Figure:
    explanation = replace(result.record.explanation, **changed)  # type: ignore[type-var, arg-type]
    return figure(replace(result.record, explanation=explanation))


def words(panel: object) -> set[str]:
    return {text.get_text() for text in panel.findobj(matplotlib.text.Text)} - {""}  # type: ignore[attr-defined]


def test_the_same_record_gives_the_same_bytes_and_they_tell_no_time(told: BuildResult) -> None:
    one, other = picture_svg(told.record), picture_svg(told.record)
    assert one is not None
    assert one == other
    assert b"dc:date" not in one
    assert ET.fromstring(one).tag == "{http://www.w3.org/2000/svg}svg"


def test_settings_of_the_caller_are_neither_used_nor_changed(told: BuildResult) -> None:
    before = set(sys.modules)  # a library of another test may have imported pyplot, which keeps figures for itself
    expected = picture_svg(told.record)
    with matplotlib.rc_context({"svg.hashsalt": "other", "font.size": 30}):
        assert picture_svg(told.record) == expected
        assert matplotlib.rcParams["font.size"] == 30
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_checkpoints_lie_in_the_plane_by_distance_each_with_its_name(told: BuildResult) -> None:
    plane, *_ = drawn(told).axes
    assert plane.get_aspect() == 1.0
    assert {"a.pt", "b.pt", "c.pt", "base.pt"} <= words(plane)
    scored, unscored, rings, base, model = (one for one in plane.collections if isinstance(one, PathCollection))
    assert scored.get_offsets().tolist() == [[-3.0, 0.0], [1.0, 2.0]]  # type: ignore[union-attr]
    assert scored.get_array().tolist() == pytest.approx([91, 88])  # type: ignore[union-attr]
    assert unscored.get_offsets().tolist() == [[2.0, -2.0]]  # type: ignore[union-attr]
    assert rings.get_offsets().tolist() == [[-3.0, 0.0], [1.0, 2.0]]  # type: ignore[union-attr]
    assert base.get_offsets().tolist() == [[4.0, 0.5]]  # type: ignore[union-attr]
    assert model.get_offsets().tolist() == [[-1.0, 1.0]]  # type: ignore[union-attr]


def test_of_many_names_those_that_would_overlap_are_left_out(told: BuildResult) -> None:
    crowd = [Place(f"run-{number:02d}/last.pt", number % 7, number % 5, 0.9, "left out") for number in range(35)]
    plane, *_ = drawn(told, plane=tuple(crowd)).axes
    texts = [one for one in plane.texts if one.get_text()]
    assert 3 < len(texts) < len(crowd)
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def test_the_line_has_a_point_for_each_soup_and_the_chord_between_its_ends(told: BuildResult) -> None:
    line = drawn(told, plane=()).axes[0]
    chord, measured = line.get_lines()
    assert (list(chord.get_xdata()), list(chord.get_ydata())) == ([0.0, 1.0], pytest.approx([91, 88]))  # type: ignore[arg-type]
    assert list(measured.get_ydata()) == pytest.approx([91, 92, 88])  # type: ignore[arg-type]
    ends = [label.get_text() for label in line.get_xticklabels()]
    names = [Path(one.path).name for one in told.record.ingredients]
    assert (ends[0], ends[-1]) == (names[0], names[1])
    assert line.get_ylabel() == "accuracy on 400 images of val (%)"


def test_there_is_one_panel_for_each_part_that_there_is(told: BuildResult) -> None:
    def panels(figure: Figure) -> list[str]:
        return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]

    with matplotlib.rc_context({"axes.titlelocation": "left"}):
        assert len(panels(drawn(told))) == 2
        assert panels(drawn(told, line=None)) == ["Checkpoints by the distance of their weights"]
        assert panels(drawn(told, plane=())) == ["Soups on the straight line between two"]


def test_nothing_is_drawn_of_nothing(told: BuildResult) -> None:
    record = told.record
    assert picture_svg(replace(record, explanation=None)) is None
    assert picture_svg(replace(record, explanation=Explanation())) is None
    alike = tuple(replace(place, x=0.0, y=0.0) for place in PLACES)
    assert picture_svg(replace(record, explanation=Explanation(plane=alike))) is None


def test_without_matplotlib_there_is_no_picture(told: BuildResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert picture_svg(told.record) is None


def test_a_loss_is_brightest_where_it_is_lowest(told: BuildResult) -> None:
    record = replace(told.record, higher_is_better=False, metric_unit="", metric="cross_entropy")
    shown = figure(record).axes[0].collections[0]
    assert shown.get_cmap().name == "cividis_r"
    assert shown.get_array().tolist() == [0.91, 0.88]  # type: ignore[union-attr]


def test_names_are_as_short_as_they_stay_different() -> None:
    named = {"a": Path("runs/one/last.pt"), "b": Path("runs/two/last.pt")}
    assert shortest_names(named) == {"a": "one/last.pt", "b": "two/last.pt"}
    assert shortest_names({"a": Path("runs/one/last.pt"), "b": Path("x.pt")}) == {"a": "last.pt", "b": "x.pt"}
    assert shortest_names({}) == {}
