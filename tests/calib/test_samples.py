"""Content hashes, overlap of splits, and the choice of images."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib import CalibError
from calib.samples import choose, list_sha256, overlaps, sample_sha256

HASHES = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(60)]


def test_a_hash_depends_on_dtype_shape_and_values_only() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert sample_sha256(image) == hashlib.sha256(b"uint8 (2, 3, 4)\n" + image.tobytes()).hexdigest()
    assert sample_sha256(np.asfortranarray(image)) == sample_sha256(image)
    assert sample_sha256(image.astype(">f4")) == sample_sha256(image.astype("<f4"))
    others = [image.astype(np.int8), image.reshape(2, 4, 3), image[::-1], image.reshape(-1)]
    assert len({sample_sha256(other) for other in [image, *others]}) == 5


def test_a_number_without_axes_has_a_hash() -> None:
    assert sample_sha256(np.array(3.0)) != sample_sha256(np.array([3.0]))


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(CalibError, match="dtype object, expected numbers"):
        sample_sha256(np.array([None]))


def test_the_hash_of_a_list_depends_on_its_order() -> None:
    assert list_sha256(HASHES[:2]) == hashlib.sha256(f"{HASHES[0]}\n{HASHES[1]}\n".encode()).hexdigest()
    assert list_sha256(HASHES[:2]) != list_sha256(HASHES[1::-1])


def test_each_pair_of_splits_with_shared_content_is_listed() -> None:
    """Correctness 23: the images of recalibration, val and test are told apart by content."""
    splits = {"train": HASHES[:40], "val": [*HASHES[38:50]], "test": HASHES[50:60]}
    (found,) = overlaps(splits)
    assert (found.first, found.second, found.count) == ("train", "val", 2)
    assert found.share == pytest.approx(2 / 12)
    assert found.examples == ((38, 0), (39, 1))


def test_the_share_is_that_of_the_split_which_suffers_more() -> None:
    """One image of val makes up half of test."""
    splits = {"val": HASHES[:10], "test": [HASHES[0]] * 20 + HASHES[20:40]}
    (found,) = overlaps(splits)
    assert (found.count, found.share) == (20, 0.5)


def test_no_more_than_ten_examples_are_kept() -> None:
    (found,) = overlaps({"a": HASHES, "b": HASHES})
    assert found.count == 60
    assert len(found.examples) == 10


def test_an_empty_split_overlaps_with_nothing() -> None:
    assert overlaps({"a": [], "b": HASHES, "c": []}) == ()


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(30)), count=st.integers(1, 40))
def test_the_choice_depends_on_content_and_not_on_listing_order(order: list[int], count: int) -> None:
    """Correctness 23 and 44: a fixed list in a fixed order."""
    shuffled = [HASHES[index] for index in order]
    expected = [HASHES[index] for index in choose(HASHES[:30], count)]
    assert [shuffled[index] for index in choose(shuffled, count)] == expected
    assert expected == sorted(HASHES[:30])[:count]


def test_excluded_content_and_second_copies_are_not_chosen() -> None:
    """Correctness 23: disjoint from val and test, whatever the file is called."""
    hashes = [HASHES[0], HASHES[1], HASHES[1], HASHES[2], HASHES[0]]
    chosen = choose(hashes, 10, exclude=[HASHES[0]])
    assert sorted(chosen.tolist()) == [1, 3]
    assert chosen.dtype == np.int64


def test_nothing_left_to_choose_is_an_error() -> None:
    with pytest.raises(CalibError, match="all of 2 samples have excluded content"):
        choose(HASHES[:2], 5, exclude=HASHES)


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=60, max_size=60), count=st.integers(1, 60))
def test_classes_are_chosen_in_proportion(labels: list[int], count: int) -> None:
    chosen = choose(HASHES, count, labels=np.array(labels))
    assert len(set(chosen.tolist())) == count
    sizes, taken = Counter(labels), Counter(labels[index] for index in chosen)
    for label, size in sizes.items():
        assert abs(taken[label] - size * count / 60) < 3


def test_a_class_of_twice_the_size_gets_twice_the_samples() -> None:
    labels = ["large"] * 40 + ["small"] * 20
    assert Counter(labels[index] for index in choose(HASHES, 30, labels=labels)) == {"large": 20, "small": 10}


def test_every_batch_of_balanced_classes_is_balanced() -> None:
    labels = [index // 15 for index in range(60)]
    chosen = choose(HASHES, 60, labels=labels)
    for start in range(0, 60, 4):
        assert sorted(labels[index] for index in chosen[start : start + 4]) == [0, 1, 2, 3]
