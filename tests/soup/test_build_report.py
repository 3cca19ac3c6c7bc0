"""A build's report is a golden file, and its sentences are right for each way that a search can end.

`SOUP_WRITE_GOLDEN=1 pytest tests/soup/test_build_report.py` writes it anew; read the difference before it is committed.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from soup.build_folder import BuildRecord, Hop, Ingredient, Model, Outputs, SplitRecord
from soup.build_report import build_markdown, comparison_sentence, hop_row, optimism_sentence, winner_sentence
from soup.build_tables import cost_section, difference_text, reason_text
from soup.report import to_html
from soup.search_records import (
    Answer,
    Contribution,
    Cost,
    Difference,
    Explanation,
    Line,
    LinePoint,
    OptimismRecord,
    TrialRecord,
)

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
DIFFERENCE = Difference(0.0062, -0.001, 0.0134, 0.95, "paired score interval (Tango 1998)", 500, None, "undecided")
HOP = Hop(
    "best single → soup", 0.8833, 0.8863, (Outputs("output", 1.25, 0.31, 0.98),), 41, DIFFERENCE, "val", "torch on cpu"
)


def ingredient(sha256: str, path: str, val: float | None) -> Ingredient:
    return Ingredient(sha256, path, "state_dict", "raw", 4_200_000, val, 0.993, ("prefix 'module.' removed",))


def trial(method: str, added: str | None, ingredients: tuple[str, ...], val: float | None, reason: str) -> TrialRecord:
    kept = reason in ("first", "kept")
    return TrialRecord(method, added, ingredients, val, None, 2500, kept, reason, DIFFERENCE if kept else None)


STOPPED = replace(trial("greedy", C, (A, B, C), None, "worse"), bound=0.8859, images=64, distance=2.5748)
TRIALS = (
    TrialRecord("single", A, (A,), 0.8833, None, 2500, True, "single", None),
    trial("uniform", None, (A, B, C), 0.12, "not_a_number"),
    replace(trial("greedy", A, (A,), 0.8833, "first"), difference=None),
    replace(trial("greedy", B, (A, B), 0.8863, "kept"), fragile=True, distance=1.0124),
    STOPPED,
    replace(trial("wise_ft", None, (A, D), 0.871, "worse"), weights={A: 0.75, D: 0.25}),
    replace(trial("learned_layers", None, (A, B), 0.885, "kept"), weights={A: {"": 0.25}, B: {"": 0.75}}),
)
RECORD = BuildRecord(
    schema_version=1,
    soup_version="0.1.0",
    versions={"torch": "2.14.1", "numpy": "2.3.5"},
    val_folder="../val.yaml",
    config={},
    task="classification",
    metric="accuracy",
    metric_unit="%",
    higher_is_better=True,
    class_names=("cat", "dog"),
    ingredients=(
        ingredient(A, "runs/a_1/last.pt", 0.8833),
        ingredient(B, "runs/b|2/last.pt", 0.8761),
        replace(ingredient(C, "runs/<c>/last.pt", None), bound=0.812),
        replace(ingredient(D, "base.pt", None), base=True),
    ),
    set_aside=(("runs/d/last.pt", "tensor 'head.weight' holds NaN"),),
    notes=("cosine of 'runs/<c>/last.pt' with the first is 0.02: trained from another start?",),
    splits={
        "train": SplitRecord(8000, "1" * 64, "4" * 64, None, ()),
        "val": SplitRecord(2500, "2" * 64, "4" * 64, 40, (("val/x_1.png", "truncated file"),)),
        "test": SplitRecord(4000, "3" * 64, "4" * 64, 61, ()),
    },
    overlaps=("data.train and data.val share 1 images (0.01% of the smaller)",),
    best_single=Model("single", {A: 1.0}, "own", 0.8833, 0.881),
    winner=Model("greedy", {A: 1.0, B: 1.0}, "recalibrated", 0.8863, 0.8872),
    policies={"recalibrated": 0.8863, "averaged": 0.884},
    batchnorm_layers=49,
    convergence=0.01,
    judged_on="test",
    comparison=DIFFERENCE,
    hops=(HOP,),
    checks=(),
    state_sha256="e" * 64,
    files={},
    answers=(
        Answer("single", {A: 1.0}, 0.8833, 0.884),
        Answer("uniform", {A: 1.0, B: 1.0, C: 1.0}, 0.12, 0.11),
        Answer("greedy", {A: 1.0, B: 1.0}, 0.8863, 0.887),
        Answer("learned_layers", {A: {"": 0.25, "head": 1.0}, B: {"": 0.75, "head": 0.0}}, 0.885, 0.879),
    ),
    cost=Cost(
        {"singles": 5000, "candidates": 2564, "recalibration": 1500, "fitting": 1000, "judging": 9000, "other": 7},
        {"singles": 2500, "judging": 5000},
        {"singles": 7500, "candidates": 5000, "recalibration": 1000},
        "onnxruntime",
    ),
    optimism=OptimismRecord(0.0031, 0.0003, 0.0148, 5, "bootstrap of samples, 200 resamples"),
    explanation=Explanation(
        contributions=(
            Contribution(A, 0.8761, replace(DIFFERENCE, estimate=0.0102, low=0.001, verdict="better")),
            Contribution(B, 0.8833, replace(DIFFERENCE, estimate=0.003)),
        ),
        ensemble=0.8912,
        line=Line(A, B, (LinePoint(0.0, 0.88, 2000), LinePoint(0.5, None, 2000), LinePoint(1.0, 0.871, 2000))),
        plane=(),
        causes=(),
    ),
    seconds=61.25,
)


def test_a_build_report_reads_as_its_golden_file():
    golden = Path(__file__).parent / "golden" / "build.md"
    text = build_markdown(RECORD, TRIALS, picture="soup.svg")
    if os.environ.get("SOUP_WRITE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_a_winning_soup_is_told_beside_the_best_single():
    assert winner_sentence(RECORD) == (
        "The model is the greedy soup of 2 of 3 checkpoints, with 88.63 % on val against 88.33 % of the best single, "
        "`runs/a_1/last.pt`."
    )


def test_a_best_single_that_no_soup_beat_is_the_model():
    """Correctness 28: all rejected; the best single comes out, and the report explains why."""
    record = replace(RECORD, winner=RECORD.best_single)
    assert winner_sentence(record) == (
        "The best single checkpoint, `runs/a_1/last.pt`, is the model, with 88.33 % on val: "
        "no soup of the 3 did better."
    )
    assert comparison_sentence(record).startswith("Model and best single checkpoint are the same")


def test_one_checkpoint_is_the_model_with_nothing_to_average():
    """Correctness 28: K=1."""
    record = replace(RECORD, winner=RECORD.best_single, ingredients=RECORD.ingredients[:1])
    assert winner_sentence(record).endswith("on val: with one checkpoint there was nothing to average.")


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ("better", "the model is better than the best single"),
        ("worse", "the model is worse than the best single"),
        ("undecided", "which of the two is better is not decided by these samples"),
    ],
)
def test_the_comparison_claims_no_more_than_its_interval(verdict, told):
    """Correctness 45."""
    record = replace(RECORD, comparison=replace(DIFFERENCE, verdict=verdict))
    assert comparison_sentence(record) == f"On test: +0.62 points, 95 % interval −0.10 to +1.34 – {told}."
    assert comparison_sentence(replace(record, judged_on="val")).endswith("so expect less of new ones.")


def test_a_difference_that_could_not_be_computed_says_why():
    assert (
        difference_text(replace(DIFFERENCE, estimate=None, method="no samples"), unit="%")
        == "not a number (no samples)"
    )
    open_ended = replace(DIFFERENCE, low=None, high=None, method="2 groups, at least 3 are needed")
    assert difference_text(open_ended, unit="%") == "+0.62 points, no interval (2 groups, at least 3 are needed)"


def test_a_hop_shows_its_worst_output_and_hides_no_nan():
    two = replace(HOP, outputs=(Outputs("a", 0.5, 0.1, 0.9), Outputs("b", 0.7, 0.05, 0.99)))
    row = hop_row(two, unit="%")
    assert (row.max_abs, row.mean_abs, row.cosine, row.verdict) == (0.7, 0.1, 0.9, "undecided")
    broken = replace(HOP, outputs=(Outputs("a", 0.5, 0.1, 0.9), Outputs("b", None, None, None)))
    assert hop_row(broken, unit="%", verdict="fail").max_abs is None


def test_a_hop_that_changed_no_answer_is_shown_as_the_same_and_not_as_open():
    unmoved = replace(HOP, flips=0, difference=replace(DIFFERENCE, estimate=0.0))
    assert hop_row(unmoved, unit="%").verdict == "same"
    assert hop_row(replace(unmoved, flips=2), unit="%").verdict == "undecided"
    assert hop_row(replace(unmoved, difference=replace(DIFFERENCE, estimate=None)), unit="%").verdict == "undecided"


def test_singles_are_listed_once_and_not_among_the_trials() -> None:
    text = build_markdown(RECORD, TRIALS)
    trials = text.partition("## Trials")[2].partition("## ")[0]
    assert "single " not in trials
    assert trials.count("| greedy") == 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"reason": "first", "method": "greedy"}, "the best single, to start from"),
        ({"reason": "first", "method": "last_k"}, "the first of its method"),
        ({"reason": "kept"}, "kept; gain within noise"),
        ({"reason": "kept", "difference": replace(DIFFERENCE, verdict="better")}, "kept"),
        ({"reason": "kept", "difference": None}, "kept"),
        ({"reason": "worse", "val": None, "bound": 0.7}, "rejected; out of reach"),
        ({"reason": "worse"}, "rejected; worse within noise"),
        ({"reason": "worse", "difference": replace(DIFFERENCE, verdict="worse")}, "rejected; worse"),
        ({"reason": "within_noise"}, "rejected; the gain is not sure enough"),
        ({"reason": "not_a_number"}, "rejected; not a number"),
    ],
)
def test_each_outcome_is_told_in_words(changed: dict[str, object], told: str) -> None:
    assert reason_text(replace(TRIALS[3], **changed)) == told  # type: ignore[arg-type]


def test_a_loss_that_stopped_early_is_at_least_its_bound() -> None:
    record = replace(RECORD, higher_is_better=False, metric="cross_entropy", metric_unit="")
    assert "≥ 0.8859, stopped after 64 of 2,500 images" in build_markdown(record, TRIALS)


def test_why_no_soup_won_stands_before_everything_measured() -> None:
    causes = ("Independent initialisation: 'a*b*.pt' has the cosine 0.02.", "A barrier: 12.00 %.")
    text = build_markdown(replace(RECORD, explanation=Explanation(causes=causes)), TRIALS)
    assert (
        text.index("- Independent initialisation: 'a\\*b\\*.pt'") < text.index("- A barrier") < text.index("## Trials")
    )


def test_a_fit_on_val_is_told_beside_what_all_methods_compete_on() -> None:
    assert "val that no fit has seen" in build_markdown(RECORD, TRIALS)
    plain = replace(RECORD, answers=tuple(replace(answer, competing=None) for answer in RECORD.answers))
    assert "val that no fit has seen" not in build_markdown(plain, TRIALS)


def test_val_is_told_with_its_optimism_and_with_what_test_gives() -> None:
    assert optimism_sentence(RECORD) == (
        "As the best of 5 candidates on val, its figure there flatters it by about 0.31 points, at most 1.48 points if "
        "all were equally good (bootstrap of samples, 200 resamples). On test it scores 88.72 %, +0.09 points from val."
    )
    assert optimism_sentence(replace(RECORD, optimism=None, winner=replace(RECORD.winner, test=None))) == ""


def test_the_search_is_compared_with_the_textbook_s_in_images_and_nothing_beyond_it() -> None:
    text = cost_section(RECORD, TRIALS)
    forwarded = 5000 + 2564 + 1500 + 1000
    assert f"forwarded {forwarded:,} images where the textbook loop takes 13,500 (75 %), 2,500 reused." in text
    assert "this one tried uniform, learned_layers too" in text
    assert "1 of 7 evaluations stopped early" in text


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"search": {"early_stop": False}}, "search.early_stop is off: every candidate was evaluated in full."),
        ({"search": {"early_stop": True}}, "none was out of reach before its last images, or the metric has no bound."),
    ],
)
def test_a_search_without_any_early_stop_says_so(config: dict[str, object], told: str) -> None:
    finished = [trial for trial in TRIALS if trial is not STOPPED]
    assert told in cost_section(replace(RECORD, config=config), finished)


def test_a_soup_with_the_base_counts_it_apart() -> None:
    mixed = replace(RECORD.winner, method="wise_ft", weights={A: 0.75, D: 0.25})
    assert winner_sentence(replace(RECORD, winner=mixed)).startswith(
        "The model is the wise_ft soup of 1 of 3 checkpoints and the base, with 88.63 %"
    )


def test_the_picture_becomes_part_of_the_page_whatever_it_holds() -> None:
    """Nothing is fetched, so that the page shows it wherever it is opened."""
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    page = to_html(build_markdown(RECORD, TRIALS, picture="soup.svg"), title="", images={"soup.svg": svg})
    (address,) = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]*)"', page)
    assert base64.b64decode(address) == svg
    assert "soup.svg" not in page
    assert "<script>" not in page
    assert "<img" not in to_html(build_markdown(RECORD, TRIALS), title="")
