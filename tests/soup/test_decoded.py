"""The decoded cache: made once, reused while it is true, made anew when it is not."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calib.samples import sample_sha256
from soup import SoupError, decoded
from soup.decoded import decode
from soup.preprocess import Preprocess
from soup.sources import open_source

PLAIN = Preprocess(
    resize=None, crop=8, interpolation="bilinear", backend="pil", color="rgb", letterbox=None, mean=(0.0,), std=(1.0,)
)


@pytest.fixture
def images(tmp_path) -> Path:
    for place in range(5):
        path = tmp_path / "val" / f"class{place % 2}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(place).integers(0, 256, (9 + place, 12, 3), dtype=np.uint8)).save(path)
    return tmp_path


def run(folder: Path, source="val", preprocess=PLAIN, max_bytes: float = 1e9, progress=None):
    listed = open_source("val", source, folder=folder, max_bytes=max_bytes)
    return decode(listed, preprocess, cache=folder / "cache", max_bytes=max_bytes, progress=progress)


def cached(folder: Path) -> list[str]:
    return sorted(path.suffix for path in (folder / "cache").glob("*"))


def refuse(sample, preprocess):
    pytest.fail(f"{sample.id} was decoded again")


def test_rows_are_the_samples_in_order(images):
    steps = []
    found = run(images, progress=lambda *step: steps.append(step))
    assert [sample.id for sample in found.samples] == [
        f"class{c}/{n}.png" for c, n in [(0, 0), (0, 2), (0, 4), (1, 1), (1, 3)]
    ]
    for sample, row, sha in zip(found.samples, found.images, found.hashes, strict=True):
        with Image.open(images / "val" / sample.id) as image:
            left, top = 2, round((image.height - 8) / 2)
            assert np.array_equal(row, np.asarray(image)[top : top + 8, left : left + 8])
        assert sha == sample_sha256(row)
    assert steps == [(done, 5) for done in range(1, 6)]
    assert not found.images.flags.writeable


def test_a_second_opening_decodes_nothing(images, monkeypatch):
    first = run(images)
    monkeypatch.setattr(decoded, "_attempt", refuse)
    second = run(images)
    assert np.array_equal(first.images, second.images)
    assert (first.hashes, first.samples) == (second.hashes, second.samples)


def test_mean_and_std_do_not_decide_the_cache_but_geometry_and_files_do(images):
    run(images)
    run(images, preprocess=replace(PLAIN, mean=(0.5,), std=(0.2,)))
    assert cached(images) == [".json", ".raw"]
    run(images, preprocess=replace(PLAIN, color="bgr"))
    run(images, preprocess=replace(PLAIN, backend="cv2"))
    assert cached(images).count(".raw") == 3
    os.utime(images / "val/class0/0.png", ns=(1, 1))
    run(images)
    assert cached(images).count(".raw") == 4


def test_another_version_of_the_backend_decodes_again(images, monkeypatch):
    run(images)
    monkeypatch.setattr(decoded, "backend_version", lambda backend: f"{backend} 0.0.1")
    run(images)
    assert cached(images).count(".raw") == 2


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("raw", flip_a_byte),
        ("raw", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("raw", lambda path: path.write_bytes(b"")),
        ("raw", Path.unlink),
        ("json", Path.unlink),
        ("json", lambda path: path.write_bytes(b"{")),
        ("json", lambda path: path.write_bytes(b"[]")),
        ("json", lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": []}))),
        ("json", lambda path: path.write_text(path.read_text().replace("uint8", "object"))),
        ("json", lambda path: path.write_text(path.read_text().replace('"skipped": {}', '"skipped": {"7": ""}'))),
    ],
)
def test_a_damaged_cache_is_made_anew(images, suffix, damage):
    """Also one that was half-written: the index comes after the rows, by rename."""
    first = run(images)
    content = np.array(first.images)
    (path,) = (images / "cache").glob(f"*.{suffix}")
    damage(path)
    second = run(images)
    assert np.array_equal(second.images, content)
    assert second.hashes == first.hashes
    assert cached(images) == [".json", ".raw"]


def test_unreadable_images_are_left_out_with_their_reasons_until_they_can_be_read(images, monkeypatch):
    path = images / "val/class0/2.png"
    good = path.read_bytes()
    status = path.stat()
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):  # decoded, then reused
        found = run(images)
        assert found.skipped == (("class0/2.png", "no image format that PIL knows"),)
        assert len(found.images) == len(found.samples) == 4
    path.write_bytes(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk that was away for a while
    assert run(images).skipped == ()


@pytest.mark.parametrize("place", ["0", "7"])
def test_an_index_that_misplaces_an_unreadable_image_is_not_believed(images, place):
    """Else every label behind it would move by one."""
    (images / "val/class0/2.png").write_bytes(b"x")
    first = run(images)
    (path,) = (images / "cache").glob("*.json")
    path.write_text(path.read_text().replace('"1":', f'"{place}":'))
    assert run(images).samples == first.samples


def test_no_readable_image_is_an_error(images):
    for path in (images / "val").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(SoupError, match=r"none of 5 images can be read: class0/0.png: no image format"):
        run(images)
    assert not (images / "cache").exists()


def test_images_of_several_sizes_are_told_before_anything_is_kept(images):
    with pytest.raises(
        SoupError, match=r"4 images differ in size, expected 9×12×3 as the first: class0/2.png is 11×12×3; .*letterbox"
    ):
        run(images, preprocess=replace(PLAIN, crop=None))
    assert not (images / "cache").exists()


def test_more_than_max_gb_is_refused(images):
    with pytest.raises(
        SoupError, match=r"5 images of 8×8×3 take .* GB decoded, expected at most data.cache.max_gb = 9e-07"
    ):
        run(images, max_bytes=900)
    with pytest.raises(SoupError, match="4 images of 2×2 take"):
        run(images, source=lambda: ((np.zeros((2, 2)), 0) for _ in range(9)), preprocess=None, max_bytes=50)
    assert not (images / "cache").exists()


@pytest.mark.parametrize(
    "tensor", [torch.arange(12.0).reshape(3, 2, 2), torch.ones(3, 2, 2, requires_grad=True), np.ones((3, 2, 2))]
)
def test_float_tensors_are_taken_as_they_are(tmp_path, tensor):
    found = run(tmp_path, source=lambda: [(tensor, 1)] * 3, preprocess=None)
    assert found.images.dtype == np.float32
    assert np.array_equal(found.images[2], tensor.detach() if torch.is_tensor(tensor) else tensor)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint8), "uint8 .*expected a float tensor"),
        (torch.tensor([[[torch.nan]]]), "NaN or Inf"),
    ],
)
def test_without_preprocess_other_tensors_are_told(tmp_path, image, reason):
    with pytest.raises(SoupError, match=reason):
        run(tmp_path, source=lambda: [(image, 1)], preprocess=None)


def test_files_need_a_preprocess(images):
    with pytest.raises(SoupError, match="the image is a file, expected a float tensor"):
        run(images, preprocess=None)


def test_a_function_is_read_again_each_time_and_leaves_no_file(tmp_path):
    levels = iter([1, 2])

    def dataset():
        level = next(levels)
        return ((Image.new("RGB", (9, 9), (level, 0, 0)), 0) for _ in range(200))

    first, second = (run(tmp_path, source=dataset) for _ in range(2))
    assert (first.images[199, 0, 0].tolist(), second.images[0, 0, 0].tolist()) == ([1, 0, 0], [2, 0, 0])
    assert len(first.images) == len(second.images) == 200
    assert cached(tmp_path) == []


def test_a_failure_of_the_users_function_leaves_nothing_behind(tmp_path):
    with pytest.raises(SoupError, match=r"data.val: sample 1: raised ValueError"):
        run(tmp_path, source=lambda: ((np.zeros((2, 2)), int(text)) for text in "1x"), preprocess=None)
    assert not (tmp_path / "cache").exists()


def test_the_order_does_not_depend_on_which_thread_is_first(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "val.npz", images=arrays, labels=np.arange(150))
    assert np.array_equal(run(tmp_path, source="val.npz").images, arrays)


def test_the_index_says_what_the_file_holds(images):
    run(images)
    (path,) = (images / "cache").glob("*.json")
    assert json.loads(path.read_text())["shape"] == [5, 8, 8, 3]
