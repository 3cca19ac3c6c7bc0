"""What a report says of the precisions that were tried, and which hop lost."""

from __future__ import annotations

from soup.attempts import Attempt, Raised, Step
from soup.build_folder import Hop
from soup.precision_tables import lost_sentence, precision_section
from soup.search_records import Difference


def hop(name: str, estimate: float, verdict: str) -> Hop:
    difference = Difference(estimate, estimate - 0.01, estimate + 0.01, 0.95, "by hand", 400, None, verdict)  # type: ignore[arg-type]
    return Hop(name, 0.9, 0.9 + estimate, (), 3, difference, "val", "here")


def test_of_the_hops_that_lost_for_certain_the_worst_is_named() -> None:
    hops = [hop("a → b", -0.03, "worse"), hop("b → c", -0.05, "worse"), hop("c → d", -0.2, "undecided")]
    assert lost_sentence(hops, unit="%") == "The hop that lost is b → c: −5.00 points."
    assert lost_sentence(hops[2:], unit="%") == "No hop lost accuracy beyond what chance explains."
    assert lost_sentence([], unit="%") == ""


def test_what_was_tried_stands_in_its_order_with_the_reason_the_layers_and_the_budget() -> None:
    raised = Raised(True, ("conv1",), 9, 20, 64, (), (Step(0, 1.0, 0.05, "fail", 400), Step(1, 0.9, None, "pass", 400)))
    attempts = [
        Attempt("int8", "model.int8.onnx", "ships", "passes", 0.91, {"conv1": "the gates"}, 0.9, (), raised),
        Attempt("fp16", None, "failed", "could not be made"),
    ]
    text = precision_section(attempts, unit="%")
    rows = [line for line in text.splitlines() if line.startswith("| int8") or line.startswith("| fp16")]
    assert [row.split("|")[2].strip() for row in rows] == ["ships", "failed"]
    assert "90.0 %" in rows[0]
    assert "could not be made" in rows[1]
    assert "`conv1`" in text
    assert "9 evaluations of 20 allowed" in text
    assert "+5.00 points" in text
    assert precision_section([], unit="%") == ""
