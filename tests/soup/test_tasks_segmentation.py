"""Metrics of segmentation against scikit-learn and torchmetrics, and resampling against torch (correctness 33)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, jaccard_score
from torch.nn.functional import interpolate
from torchmetrics.segmentation import DiceScore

from soup import SoupError
from soup.tasks import by_class
from soup.tasks.segmentation import metrics

NAMES = ("miou", "pixel_accuracy", "dice", "mean_accuracy")
IGNORED = 255


def at_input(classes: int, ignore_index: int = IGNORED):
    return metrics(classes, ignore_index, "input")


def scene(seed: int, *, images: int = 5, classes: int = 4, size: tuple[int, int] = (9, 7), ignored: float = 0.2):
    """Class ids and a truth that they meet half of the time."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, classes, (images, *size)).astype(np.uint8)
    ids = np.where(rng.random(mask.shape) < 0.5, mask, rng.integers(0, classes, mask.shape)).astype(np.int64)
    mask[rng.random(mask.shape) < ignored] = IGNORED
    return ids, {"mask": mask}


def statistics_of(metric, ids, targets):
    return metric.per_sample(metric.task.answers({"ids": ids}, targets), targets)


def rows(arrays, chosen):
    return {name: array[chosen] for name, array in arrays.items()}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 6), ignored=st.sampled_from([0.0, 0.3]))
def test_metrics_agree_with_scikit_learn(seed, classes, ignored):
    """Correctness 33. Few pixels, so that classes are missing from the truth, the prediction, or both."""
    ids, targets = scene(seed, images=2, classes=classes, size=(2, 4), ignored=ignored)
    truth, found = targets["mask"][targets["mask"] != IGNORED], ids[targets["mask"] != IGNORED]
    if not truth.size:
        return
    by_name = {name: statistics_of(metric, ids, targets) for name, metric in at_input(classes).items()}
    value = {name: metric.reduce(by_name[name]) for name, metric in at_input(classes).items()}
    assert np.array_equal(
        by_name["miou"]["confusion"].sum(axis=0), confusion_matrix(truth, found, labels=range(classes))
    )
    assert value["miou"] == pytest.approx(jaccard_score(truth, found, average="macro"), rel=1e-12)
    assert value["dice"] == pytest.approx(f1_score(truth, found, average="macro"), rel=1e-12)
    assert value["pixel_accuracy"] == accuracy_score(truth, found)
    if set(found) <= set(truth):  # else it warns of classes that are not there, and leaves them out as we do
        assert value["mean_accuracy"] == pytest.approx(balanced_accuracy_score(truth, found), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ignore_index=st.sampled_from([255, 0, 2]))
def test_metrics_agree_with_torchmetrics(seed, ignore_index):
    """Also where a class of the network is the ignored one: it then has no part in the mean, though it is predicted."""
    ids, targets = scene(seed, classes=4, images=3, size=(2, 3))
    mask = targets["mask"]
    mask[mask == IGNORED] = ignore_index
    if (mask == ignore_index).all():
        return
    arguments = {"num_classes": 4, "ignore_index": ignore_index}
    oracle = torchmetrics.JaccardIndex(task="multiclass", **arguments)
    micro = torchmetrics.Accuracy(task="multiclass", average="micro", **arguments)
    pair = torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
    ours = at_input(4, ignore_index)
    assert ours["miou"].reduce(statistics_of(ours["miou"], ids, targets)) == pytest.approx(
        oracle(*pair).item(), rel=1e-5
    )
    accuracy = ours["pixel_accuracy"]
    assert accuracy.reduce(statistics_of(accuracy, ids, targets)) == pytest.approx(micro(*pair).item(), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_dice_iou_and_recall_of_classes_agree_with_torchmetrics(seed):
    ids, targets = scene(seed, ignored=0.0, images=4)
    truth = torch.from_numpy(targets["mask"].astype(np.int64))
    pair = torch.from_numpy(ids), truth
    dice = DiceScore(4, average="macro", input_format="index", aggregation_level="global")
    recall = torchmetrics.Accuracy(task="multiclass", num_classes=4, average="none")(*pair)
    iou = torchmetrics.JaccardIndex(task="multiclass", num_classes=4, average="none")(*pair)
    ours = at_input(4)
    statistics = statistics_of(ours["miou"], ids, targets)
    assert ours["dice"].reduce(statistics) == pytest.approx(dice(*pair).item(), rel=1e-5)
    assert by_class(ours["miou"], statistics) == pytest.approx(iou.numpy(), rel=1e-5)
    assert by_class(ours["mean_accuracy"], statistics) == pytest.approx(recall.numpy(), rel=1e-5)
    assert by_class(ours["pixel_accuracy"], statistics) == pytest.approx(recall.numpy(), rel=1e-5)
    assert ours["mean_accuracy"].reduce(statistics) == pytest.approx(recall.mean().item(), rel=1e-5)


def test_a_class_in_neither_is_left_out_and_a_class_only_predicted_counts_as_nothing():
    """By hand: 4 pixels of class 0, of which one is taken for class 1; class 2 is nowhere."""
    targets = {"mask": np.zeros((1, 2, 2), np.uint8)}
    ids = np.array([[[0, 0], [0, 1]]])
    value = {name: metric.reduce(statistics_of(metric, ids, targets)) for name, metric in at_input(3).items()}
    assert value == {
        "miou": (3 / 4 + 0) / 2, "dice": (6 / 7 + 0) / 2, "pixel_accuracy": 3 / 4, "mean_accuracy": 3 / 4,
    }  # fmt: skip
    classwise = by_class(at_input(3)["miou"], statistics_of(at_input(3)["miou"], ids, targets))
    assert classwise[0] == 3 / 4
    assert np.isnan(classwise[1:]).all()


def test_the_mean_is_over_the_sum_of_images_and_not_over_their_means():
    targets = {"mask": np.array([[[0, 0, 0, 1]], [[1, 1, 1, IGNORED]]], np.uint8)}
    ids = np.array([[[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    metric = at_input(2)["miou"]
    assert metric.reduce(statistics_of(metric, ids, targets)) == (3 / 4 + 3 / 4) / 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 6), name=st.sampled_from(NAMES))
def test_batches_add_up_however_they_are_split(seed, cut, name):
    ids, targets = scene(seed, images=6)
    metric = at_input(4)[name]
    whole = statistics_of(metric, ids, targets)
    parts = [statistics_of(metric, ids[one], rows(targets, one)) for one in (slice(cut), slice(cut, None))]
    for key, values in whole.items():
        assert np.array_equal(values, np.concatenate([part[key] for part in parts]))
    assert metric.known(targets)["truth"].tolist() == whole["truth"].tolist()
    assert metric.known(targets)["truth"].dtype == whole["truth"].dtype


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(NAMES), images=st.integers(1, 7))
def test_a_resample_is_the_metric_of_the_repeated_rows(seed, name, images):
    ids, targets = scene(seed, images=images, size=(2, 3))
    metric = at_input(4)[name]
    statistics = statistics_of(metric, ids, targets)
    counts = np.random.default_rng(seed).multinomial(images, [1 / images] * images, size=5)
    values, classes = metric.resampled(statistics, counts), metric.resampled_by_class(statistics, counts)
    for count, value, of_classes in zip(counts, values, classes, strict=True):
        repeated = rows(statistics, np.repeat(np.arange(images), count))
        assert np.array_equal(value, metric.reduce(repeated), equal_nan=True)
        assert np.array_equal(of_classes, by_class(metric, repeated), equal_nan=True)


def test_counts_of_large_sets_stay_whole_numbers():
    """More pixels than an int32 holds, and than a float32 keeps apart."""
    metric = at_input(2)["pixel_accuracy"]
    confusion = np.tile(np.array([[2_000_000_000, 1], [0, 0]], np.int32), (3, 1, 1))
    statistics = {"confusion": confusion, "truth": confusion.sum(axis=2).astype(np.int32)}
    assert metric.reduce(statistics) == 6_000_000_000 / 6_000_000_003
    assert metric.resampled(statistics, np.ones((1, 3), int)).tolist() == [6_000_000_000 / 6_000_000_003]


def test_without_images_or_counted_pixels_there_is_no_value():
    for metric in at_input(3).values():
        for count in (0, 2):
            targets = {"mask": np.full((count, 2, 2), IGNORED, np.uint8)}
            statistics = statistics_of(metric, np.zeros((count, 2, 2), int), targets)
            assert np.isnan(metric.reduce(statistics))
            assert np.isnan(metric.resampled(statistics, np.ones((2, count), int))).all()
            assert metric.known(targets)["truth"].shape == (count, 3)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(NAMES), classes=st.integers(2, 5))
def test_no_answers_to_unseen_images_leave_the_bounds_and_perfect_ones_meet_the_upper(seed, name, classes):
    rng = np.random.default_rng(seed)
    ids, targets = scene(seed, images=4, classes=classes, size=(1, 3))
    metric, seen = at_input(classes)[name], rng.random(4) < 0.5
    known = {
        key: values if key == "truth" else np.where(seen.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
        for key, values in statistics_of(metric, ids, targets).items()
    }
    high, low = metric.upper_bound(known, seen), metric.worst_bound(known, seen)
    right = np.where(seen[:, None, None] | (targets["mask"] == IGNORED), ids, targets["mask"])
    assert np.array_equal(high, metric.reduce(statistics_of(metric, right, targets)), equal_nan=True)
    for _ in range(10):
        other = np.where(seen[:, None, None], ids, rng.integers(0, classes, ids.shape))
        value = metric.reduce(statistics_of(metric, other, targets))
        assert np.isnan(value) or low <= value <= high
    if seen.all():
        assert np.array_equal([low, high], [metric.reduce(known)] * 2, equal_nan=True)


def test_the_worst_of_the_accuracies_is_in_reach():
    ids, targets = scene(3, classes=3)
    seen = np.array([True, False, True, False, False])
    wrong = np.where(seen[:, None, None], ids, (targets["mask"] + 1) % 3)
    for name in ("pixel_accuracy", "mean_accuracy"):
        metric = at_input(3)[name]
        statistics = statistics_of(metric, wrong, targets)
        assert metric.worst_bound(statistics, seen) == pytest.approx(metric.reduce(statistics))


def test_a_pixel_with_nan_has_no_class_and_is_wrong():
    logits = np.zeros((1, 3, 1, 4), np.float32)
    logits[0, 1] = 1
    logits[0, 0, 0, 1] = logits[0, 1, 0, 2] = logits[0, 2, 0, 3] = np.nan  # whichever of the logits it is
    targets = {"mask": np.ones((1, 1, 4), np.uint8)}
    for name, metric in at_input(3).items():
        answers = metric.task.answers({"logits": logits}, targets)
        assert answers["classes"].tolist() == [[[1, 3, 3, 3]]]
        statistics = metric.per_sample(answers, targets)
        assert statistics["truth"].tolist() == [[0, 4, 0]]
        assert statistics["confusion"].sum() == 1
        assert metric.reduce(statistics) == {"dice": 2 / 5}.get(name, 1 / 4)
        assert metric.difficulty(metric.per_sample(answers, targets), answers, targets).tolist() == [0.75]
        assert metric.task.moves(answers, answers).figures["changed"] == 0.75  # a class that is none is never the same


def test_of_equal_logits_the_lower_class_wins_in_every_dtype():
    targets = {"mask": np.zeros((1, 2, 2), np.uint8)}
    for dtype in (np.float16, np.float32, np.float64):
        logits = np.zeros((1, 3, 2, 2), dtype)
        logits[0, 1:, 0] = 1
        assert at_input(3)["miou"].task.answers({"x": logits}, targets)["classes"].tolist() == [[[1, 1], [0, 0]]]


def test_classes_beyond_a_byte_keep_their_numbers():
    mask = np.array([[[299, 255]]], np.int16)
    metric = at_input(300, 300)["miou"]
    logits = np.zeros((1, 300, 1, 2), np.float32)
    logits[0, 299, 0, 0] = logits[0, 255, 0, 1] = 1
    answers = metric.task.answers({"logits": logits}, {"mask": mask})
    assert answers["classes"].tolist() == [[[299, 255]]]
    assert metric.reduce(metric.per_sample(answers, {"mask": mask})) == 1
    for classes in (254, 255):
        answers = at_input(classes)["miou"].task.answers({"ids": mask * 0}, {"mask": mask})
        assert answers["classes"].tolist() == [[[0, classes + 1]]]


@pytest.mark.parametrize("cells", [8, 32])
def test_logits_go_over_the_input_to_the_size_of_each_image(cells):
    """Trainer's formula in torch: to the input, padding off, to the image's size, argmax; one image at a time."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 5, cells, cells)).astype(np.float32)
    sizes = [(40, 20), (24, 48)]
    placements = [(32 / 40, 32 / 40, 8.0, 0.0), (32 / 48, 32 / 48, 0.0, 8.0)]
    mask = np.full((2, 40, 48), IGNORED, np.uint8)
    for row, (height, width) in enumerate(sizes):
        mask[row, :height, :width] = rng.integers(0, 5, (height, width))
    targets = {
        "mask": mask, "size": np.array(sizes), "placement": np.array(placements), "canvas": np.array([[32, 32]] * 2),
    }  # fmt: skip
    metric = metrics(5, IGNORED, "image")["miou"]
    answers = metric.task.answers({"logits": logits}, targets)
    assert set(answers) == {"classes", "placement", "canvas"}
    fed = interpolate(torch.from_numpy(logits).double(), size=(32, 32), mode="bilinear", align_corners=False)
    for row, cut in enumerate((fed[:1, :, :, 8:24], fed[1:, :, 8:24])):
        height, width = sizes[row]
        expected = interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)[0].argmax(0)
        assert np.array_equal(answers["classes"][row, :height, :width], expected.numpy())
        assert (answers["classes"][row, height:] == 6).all()
        assert (answers["classes"][row, :, width:] == 6).all()
    statistics = metric.per_sample(answers, targets)
    assert statistics["truth"].sum(axis=1).tolist() == [800, 1152]


def test_pixels_that_a_crop_took_away_do_not_count():
    """An image of 4 by 6 pixels, of which the network sees the middle 4 by 4."""
    targets = {
        "mask": np.ones((1, 4, 6), np.uint8), "size": np.array([[4, 6]]), "canvas": np.array([[4, 4]]),
        "placement": np.array([[1.0, 1.0, -1.0, 0.0]]),
    }  # fmt: skip
    logits = np.zeros((1, 2, 4, 4), np.float32)
    logits[:, 1, :, 1:] = 1
    metric = metrics(2, IGNORED, "image")["pixel_accuracy"]
    ids = logits.argmax(axis=1)
    for output in (logits, ids):
        answers = metric.task.answers({"output": output}, targets)
        assert answers["classes"].tolist() == [[[3, 0, 1, 1, 1, 3]] * 4]
        assert metric.per_sample(answers, targets)["truth"].tolist() == [[0, 16]]
        assert metric.reduce(metric.per_sample(answers, targets)) == 12 / 16
    assert metric.known(targets)["truth"].tolist() == [[0, 16]]
    assert metric.difficulty(metric.per_sample(answers, targets), answers, targets).tolist() == [0.25]


def test_ids_of_another_size_are_read_at_the_nearest_pixel():
    targets = {"mask": np.zeros((1, 4, 4), np.uint8)}
    answers = at_input(3)["miou"].task.answers({"ids": np.array([[[0, 1], [2, 0]]])}, targets)
    assert answers["classes"].tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]]


def test_the_margin_is_the_lead_at_the_least_certain_of_the_counted_pixels():
    metric = at_input(3)["miou"]
    logits = np.zeros((4, 3, 10, 20), np.float32)
    logits[:, 1] = 5
    logits[0, 2, 0, :2] = 4  # 2 of 200 pixels: the 1st percentile is the second least
    logits[1, 2, 0, 0] = 4  # one pixel alone does not decide
    logits[2, 2, 0, :3] = np.nan
    mask = np.ones((4, 10, 20), np.uint8)
    mask[3] = IGNORED
    answers = metric.task.answers({"logits": logits}, {"mask": mask})
    assert metric.task.margins(answers, {"logits": logits}).tolist() == [1, 5, 0, np.inf]
    mask[0, 0] = IGNORED
    answers = metric.task.answers({"logits": logits}, {"mask": mask})
    assert metric.task.margins(answers, {"logits": logits})[0] == 5
    assert metric.task.margins(answers, {"ids": mask % 3}).tolist() == [0] * 4
    one = at_input(1)["miou"]
    answers = one.task.answers({"logits": logits[:, :1]}, {"mask": mask * 0})
    assert one.task.margins(answers, {"logits": logits[:, :1]}).tolist() == [np.inf] * 4


def test_margins_of_small_logits_leave_the_padding_out():
    """A letterbox whose right half is padding, and there the network is uncertain."""
    targets = {
        "mask": np.zeros((1, 6, 3), np.uint8), "size": np.array([[6, 3]]), "canvas": np.array([[12, 12]]),
        "placement": np.array([[2.0, 2.0, 0.0, 0.0]]),
    }  # fmt: skip
    logits = np.zeros((1, 2, 4, 4), np.float32)
    logits[:, 0, :, :2] = 7
    metric = metrics(2, IGNORED, "image")["miou"]
    answers = metric.task.answers({"logits": logits}, targets)
    assert metric.task.margins(answers, {"logits": logits}).tolist() == [7]
    targets["mask"][0, :, 0] = IGNORED  # the first column of cells has its centres there
    logits[:, 0, :, 0] = 2
    answers = metric.task.answers({"logits": logits}, targets)
    assert metric.task.margins(answers, {"logits": logits}).tolist() == [7]


def test_moves_tell_the_changed_pixels_and_the_worst_image():
    mask = np.zeros((3, 2, 5), np.uint8)
    mask[2, 0] = IGNORED
    ids = np.zeros((3, 2, 5), int)
    other = ids.copy()
    other[1, 0, 0] = 1
    other[2] = 1  # five of its pixels are ignored
    metric = at_input(2)["miou"]
    before, after = (metric.task.answers({"ids": one}, {"mask": mask}) for one in (ids, other))
    moves = metric.task.moves(before, after)
    assert moves.changed.tolist() == [False, True, True]
    assert moves.figures == {"changed": 6 / 25, "worst": 1.0, "worst_image": 2.0}
    assert moves.text == "24.00 % of 25 pixels have another class, 100.00 % in the worst image"
    assert moves.worst == 2
    still = metric.task.moves(before, before)
    assert not still.changed.any()
    assert still.text == "0.00 % of 25 pixels have another class"
    none = {"classes": before["classes"][:0]}
    assert metric.task.moves(none, none).changed.shape == (0,)


def test_images_of_a_class_are_those_that_show_a_counted_pixel_of_it():
    mask = np.array([[[0, 1]], [[1, 1]], [[IGNORED, 0]]], np.uint8)
    metric = at_input(3)["miou"]
    statistics = statistics_of(metric, np.zeros((3, 1, 2), int), {"mask": mask})
    assert metric.class_images(statistics).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "it has no outputs"),
        (
            {"aux": np.zeros((1, 2, 4, 4), np.float32)},
            r"output 'aux' is float32 \(1, 2, 4, 4\), expected logits .*, 3,",
        ),
        ({"out": np.zeros((1, 4, 4), np.float32)}, "expected logits"),
        ({"out": np.zeros((1, 3, 0, 4), np.float32)}, "expected logits"),
        ({"ids": np.full((1, 4, 4), 3)}, "has class ids 3 to 3, expected 0 to 2"),
        ({"ids": np.full((1, 4, 4), -1)}, "has class ids -1 to -1"),
    ],
)
def test_other_outputs_are_refused_by_name(outputs, message):
    with pytest.raises(SoupError, match=message):
        at_input(3)["miou"].task.answers(outputs, {"mask": np.zeros((1, 4, 4), np.uint8)})


@pytest.mark.parametrize("wrong", [3, -1])
def test_truth_beyond_the_classes_is_refused(wrong):
    targets = {"mask": np.full((1, 2, 2), wrong, np.int16)}
    metric = at_input(3)["miou"]
    answers = metric.task.answers({"ids": np.zeros((1, 2, 2), int)}, targets)
    for asked in (lambda: metric.per_sample(answers, targets), lambda: metric.known(targets)):
        with pytest.raises(SoupError, match=f"a mask has class {wrong}, expected 0 to 2"):
            asked()


def test_metrics_are_found_by_name_and_all_are_shares():
    found = at_input(3)
    assert tuple(found) == NAMES
    assert {(metric.name, metric.unit, metric.higher_is_better) for metric in found.values()} == {
        (name, "%", True) for name in NAMES
    }
    assert found["miou"].unsettled({}, 0.1) is None
