"""The pictures beside a release's report, from records made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from soup.attempts import Attempt, Raised, Sensitivity, Step
from soup.build_folder import Hop
from soup.release_pictures import PRECISION, WATERFALL, pictures
from soup.search_records import Difference


def hop(name: str, before: float | None, after: float | None, verdict: str = "undecided") -> Hop:
    estimate = None if before is None or after is None else after - before
    difference = Difference(estimate, -0.01, 0.01, 0.95, "by hand", 400, None, verdict)  # type: ignore[arg-type]
    return Hop(name, before, after, (), 0, difference, "val", "here")


def attempt(*sensitivities: Sensitivity) -> Attempt:
    steps = (Step(0, 1.0, 0.05, "fail", 400), Step(1, 0.9, 0.0, "pass", 400))
    raised = Raised(True, ("conv1",), 9, 20, 64, sensitivities, steps)
    return Attempt("int8", "model.int8.onnx", "ships", "", raised=raised)


HOPS = (hop("best single → soup", 0.9, 0.92, "better"), hop("soup → ONNX", 0.92, 0.92), hop("ONNX → INT8", 0.92, 0.8))


def size(svg: bytes) -> tuple[float, float]:
    root = ET.fromstring(svg)
    return float(root.attrib["width"].removesuffix("pt")), float(root.attrib["height"].removesuffix("pt"))


def test_equal_records_give_equal_pictures_and_each_is_a_whole_svg() -> None:
    measured = attempt(Sensitivity("conv1", 0.04, 0.03, 0.1), Sensitivity("conv2", 0.0, None, 0.0))
    first = pictures(HOPS, [measured], unit="%")
    assert first == pictures(HOPS, [measured], unit="%")
    assert set(first) == {WATERFALL, PRECISION}
    assert all(ET.fromstring(svg).tag.endswith("svg") for svg in first.values())


def test_without_a_measured_layer_only_the_steps_are_drawn() -> None:
    both = pictures(HOPS, [attempt(Sensitivity("conv1", 0.04))], unit="%")[PRECISION]
    steps = pictures(HOPS, [attempt(Sensitivity("conv1"))], unit="%")[PRECISION]
    assert size(steps)[0] == size(both)[0] / 2


def test_nothing_is_drawn_of_what_was_not_measured() -> None:
    assert pictures(HOPS[:1], [], unit="%") == {}
    assert pictures((hop("a → b", None, None), hop("b → c", None, 0.9)), [], unit="") == {}
