"""A build's report is a golden file, and its sentences are right for each way that a search can end.

`SOUP_WRITE_GOLDEN=1 pytest tests/soup/test_build_report.py` writes it anew; read the difference before it is committed.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from soup.build_folder import BuildRecord, Difference, Hop, Ingredient, Model, Outputs, SplitRecord, TrialRecord
from soup.build_report import build_markdown, comparison_sentence, difference_text, hop_row, winner_sentence

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
DIFFERENCE = Difference(0.0062, -0.001, 0.0134, 0.95, "paired score interval (Tango 1998)", 500, None, "undecided")
HOP = Hop(
    "best single → soup", 0.8833, 0.8863, (Outputs("output", 1.25, 0.31, 0.98),), 41, DIFFERENCE, "val", "torch on cpu"
)


def ingredient(sha256: str, path: str, val: float | None) -> Ingredient:
    return Ingredient(sha256, path, "state_dict", "raw", 4_200_000, val, 0.993, ("prefix 'module.' removed",))


def trial(added: str, ingredients: tuple[str, ...], val: float, *, kept: bool, reason: str) -> TrialRecord:
    return TrialRecord("greedy", added, ingredients, val, None, 2500, kept, reason, DIFFERENCE if kept else None)


TRIALS = (
    TrialRecord("single", A, (A,), 0.8833, None, 2500, True, "single", None),
    trial(A, (A,), 0.8833, kept=True, reason="first"),
    trial(B, (A, B), 0.8863, kept=True, reason="kept"),
    trial(C, (A, B, C), 0.12, kept=False, reason="not_a_number"),
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
        ingredient(C, "runs/<c>/last.pt", None),
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
    images={"evaluation": 17500, "recalibration": 3000},
    seconds=61.25,
)


def test_a_build_report_reads_as_its_golden_file():
    golden, text = Path(__file__).parent / "golden" / "build.md", build_markdown(RECORD, TRIALS)
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


def test_singles_are_listed_once_and_not_among_the_trials():
    text = build_markdown(RECORD, TRIALS)
    assert text.count("| greedy") == 4  # the model's row, and three trials
    assert "not a number" in text
