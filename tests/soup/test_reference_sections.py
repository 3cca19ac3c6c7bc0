"""Two sections of a build's report, word by word, from records made by hand."""

from __future__ import annotations

from dataclasses import replace

from soup.build_folder import BuildRecord
from soup.reference_sections import (
    other_metrics_section,
    reading_section,
    references_section,
    resolutions_section,
)
from soup.search_records import Difference, Explanation, OtherValue, Reference, ResolutionPoint
from tests.soup.test_build_report import RECORD

WINNER = replace(RECORD.winner, val=0.8863)
PERCENT = replace(RECORD, winner=WINNER)
LOSS = replace(RECORD, winner=replace(WINNER, val=0.4121), metric_unit="", higher_is_better=False)
RISE = Difference(0.0112, 0.0031, 0.0194, 0.95, "paired bootstrap of samples", 500, None, "better")
REFERENCES = """\
What the same images give otherwise, on val. An ensemble costs inference, and a soup does not.

|                                              |     val | against the model | forward passes |
| -------------------------------------------- | ------: | ----------------: | -------------- |
| 3 views (the image, mirrored, × 1.25)        | 89.10 % |      +0.47 points | 3.5625 ×       |
| intersection of the ingredients' boxes       | 88.00 % |      −0.63 points | 4 ×            |
| weighted \\| fusion of the ingredients' boxes |       – |                 – | 4 ×            |"""
CURVE = (
    """\
| scale | crop | network's input |     val | against the trained size                   | one image in torch |\
                               |
| ----: | ---: | --------------- | ------: | ------------------------------------------ | -----------------: |\
 ----------------------------- |
|     1 |    – | 224×224         | 88.63 % |                                            |            11.9 ms |\
                               |
|   0.8 |    – | –               |       – |                                            |                  – |\
 model: forward of (1, 3, 160) |
|  1.25 |    1 | 288×320         | 89.75 % | +1.12 points, 95 % interval +0.31 to +1.94 |            20.0 ms |\
 the best                      |

"""
    "The best point is 288×320 with a crop of 1; `soup export --resolution 1.25` takes it. It was chosen on val, so "
    "expect less of new images."
)


def referring(record: BuildRecord, *references: Reference) -> BuildRecord:
    return replace(record, explanation=Explanation(references=references))


def point(scale: float, value: float | None, ms: float | None = 1.0, **more: object) -> ResolutionPoint:
    return replace(ResolutionPoint(scale, None, {}, (224, 224), value, None, ms), **more)  # type: ignore[arg-type]


POINTS = (
    point(1.0, 0.8863, 11.94),
    point(0.8, None, None, size=None, note="model: forward of (1, 3, 160)"),
    point(1.25, 0.8975, 20.0, crop_ratio=1.0, size=(288, 320), difference=RISE),
)


def test_references_stand_beside_the_model_with_their_cost() -> None:
    record = referring(
        PERCENT,
        Reference("3 views (the image, mirrored, × 1.25)", 0.891, 3.5625),
        Reference("intersection of the ingredients' boxes", 0.88, 4.0),
        Reference("weighted | fusion of the ingredients' boxes", None, 4.0),
    )
    assert references_section(record) == REFERENCES


def test_a_metric_that_is_no_share_is_told_by_its_figure() -> None:
    section = references_section(referring(LOSS, Reference("2 views", 0.4, 2.0)))
    assert section.endswith("| 2 views | 0.4000 |           −0.0121 | 2 ×            |")


def test_what_was_not_measured_has_no_section() -> None:
    assert references_section(replace(PERCENT, explanation=None)) == ""
    assert references_section(referring(PERCENT)) == ""
    assert resolutions_section(replace(PERCENT, resolutions=())) == ""


def test_the_curve_names_its_best_point_and_why_one_has_no_value() -> None:
    assert resolutions_section(replace(PERCENT, resolutions=POINTS)) == CURVE


def test_where_the_trained_size_is_the_best_nothing_is_advised() -> None:
    worse = (POINTS[0], replace(POINTS[2], val=0.88))
    section = resolutions_section(replace(PERCENT, resolutions=worse))
    assert section.endswith("\n\nNo other resolution does better on val than the one that is given.")
    (row,) = (line for line in section.splitlines() if "the best" in line)
    assert "224×224" in row


def test_of_a_loss_the_lowest_is_the_best() -> None:
    section = resolutions_section(replace(LOSS, resolutions=(point(1.0, 0.41), point(1.5, 0.39, size=(320, 320)))))
    assert "The best point is 320×320; `soup export --resolution 1.5` takes it." in section


def test_a_detector_s_report_says_how_its_outputs_are_read_and_plain_classes_need_no_word() -> None:
    assert reading_section(PERCENT) == ""
    record = replace(
        PERCENT, task="detection", config={**PERCENT.config, "detection": {"adapter": "yolo"}},
        settings={"suppression": {"method": "nms", "iou": 0.5, "voting_iou": None}, "classes": 3},
    )  # fmt: skip
    assert [[cell.strip() for cell in line.split("|")[1:3]] for line in reading_section(record).splitlines()[2:]] == [
        ["adapter", "yolo"], ["suppression method", "nms"], ["suppression iou", "0.5"], ["classes", "3"],
    ]  # fmt: skip
    several = replace(PERCENT, settings={"classes": 3, "multilabel": True})
    assert "multilabel" in reading_section(several)


def test_other_metrics_stand_with_their_own_units() -> None:
    assert other_metrics_section(PERCENT) == ""
    record = replace(PERCENT, also=(OtherValue("ece", "%", 0.05, None), OtherValue("cross_entropy", "", 1.25, 1.5)))
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in other_metrics_section(record).splitlines()[4:]]
    assert rows == [["`ece`", "5.00 %", "–"], ["`cross_entropy`", "1.2500", "1.5000"]]
