"""Masks: where they come from, how each kind says what is wrong with it, and that they lie as their images do."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from soup import SoupError
from soup.mask_sources import checked, fit_mask, open_masks, read_mask, stacked
from soup.placement import placement
from soup.preprocess import Letterbox, Preprocess, fit
from soup.tasks.mask_resampling import axis, inside, nearest

SIZE = (6, 8)
PLAIN = Preprocess(None, None, "nearest", "pil", "rgb", None, (0.5,), (0.5,))


def image_file(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def mask_file(path: Path, values: object, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([3 * i % 256 for i in range(768)])
    image.save(path)


def pair(root: Path, name: str, values: object = 1, mode: str | None = None) -> None:
    image_file(root / "images" / f"{name}.jpg")
    mask_file(root / "masks" / f"{name}.png", np.broadcast_to(np.asarray(values, np.uint8), SIZE), mode)


def opened(source, folder: Path, **changed):
    return open_masks("val", source, folder=folder, **({"ignore_index": 255, "max_bytes": 1e9} | changed))


def read(source, classes: int | None = 3) -> list[np.ndarray]:
    return [read_mask(sample, classes=classes, ignore_index=255) for sample in source.samples]


def problems(source) -> list[str]:
    return [*source.problems, *(problem for sample in source.samples for problem in sample.problems)]


def grey_png(path: Path, values: np.ndarray, *, depth: int) -> None:
    """A grey PNG of 1, 2, 4 or 16 bits, by the standard; PIL writes most of these only as bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in values]
    else:
        bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
        lines = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    height, width = values.shape
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))),
        (b"IEND", b""),
    ]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("JPEGImages", "SegmentationClass")])
def test_two_folders_are_matched_by_name_in_sorted_order(tmp_path, images, masks):
    for name in ("b", "deep/a", ".hidden"):
        image_file(tmp_path / "data" / images / f"{name}.jpg")
        mask_file(tmp_path / "data" / masks / f"{name}.png", np.full(SIZE, 2))
    (tmp_path / "data" / images / "notes.txt").touch()
    found = opened("data", tmp_path)
    assert [sample.id for sample in found.samples] == ["b", "deep/a"]
    assert found.samples[1].image == tmp_path / "data" / images / "deep/a.jpg"
    assert found.samples[1].where == str(tmp_path / "data" / masks / "deep/a.png")
    assert all((mask == 2).all() for mask in read(found))
    assert (found.count, found.class_names, problems(found)) == (2, None, [])
    assert opened({"images": f"data/{images}", "masks": f"data/{masks}"}, tmp_path) == found


def test_a_list_names_the_images_of_a_split(tmp_path):
    """As VOC has it, where most images have no mask."""
    for name in "abc":
        image_file(tmp_path / f"voc/JPEGImages/{name}.jpg")
    for name in "bc":
        mask_file(tmp_path / f"voc/SegmentationClass/{name}.png", np.zeros(SIZE), "P")
    split = tmp_path / "voc/ImageSets/Segmentation/val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("c\n")
    parts = {"images": "voc/JPEGImages", "masks": "voc/SegmentationClass", "list": str(split)}
    for source in (parts, "voc/ImageSets/Segmentation/val.txt"):
        assert [sample.id for sample in opened(source, tmp_path).samples] == ["c"]
    split.write_text("c\nnone\n")
    found = opened(parts, tmp_path)
    assert "none.png: no such file, the mask of" in found.samples[1].problems[0]


def test_palette_and_index_files_of_every_depth_give_their_numbers(tmp_path):
    values = np.arange(48).reshape(SIZE)
    for name, most in (("P", 255), ("L", 255), ("1", 1), ("2", 3), ("4", 15), ("16", 299)):
        image_file(tmp_path / f"images/{name}.jpg")
        expected = values * most // 47
        path = tmp_path / f"masks/{name}.png"
        mask_file(path, expected, name) if name in "PL" else grey_png(path, expected, depth=int(name))
        (sample,) = [one for one in opened(".", tmp_path).samples if one.id == name]
        mask = read_mask(sample, classes=300, ignore_index=255)
        assert mask.dtype == np.int16
        assert np.array_equal(mask, expected), name
    (byte,) = [one for one in opened(".", tmp_path).samples if one.id == "L"]
    assert read_mask(byte, classes=256, ignore_index=255).dtype == np.uint8


def test_colours_need_a_palette_that_names_each(tmp_path):
    image_file(tmp_path / "images/a.jpg", (1, 3))
    mask_file(tmp_path / "masks/a.png", [[[128, 0, 0], [0, 0, 0], [224, 224, 192]]])
    with pytest.raises(SoupError, match=r"masks/a\.png: is an image of mode RGB, .*Colours need a palette"):
        read(opened(".", tmp_path))
    palette = {"#000000": 0, "#800000": 1, "#e0e0c0": 255}
    assert read(opened(".", tmp_path, palette=palette))[0].tolist() == [[1, 0, 255]]
    del palette["#e0e0c0"]
    with pytest.raises(SoupError, match=r"a\.png: 1 pixels have the colour #e0e0c0, which the palette does not name"):
        read(opened(".", tmp_path, palette=palette))


def test_what_is_wrong_with_single_images_is_told_with_their_files_and_the_others_stay(tmp_path):
    pair(tmp_path, "good")
    pair(tmp_path, "size")
    mask_file(tmp_path / "masks/size.png", np.zeros((8, 6)))
    pair(tmp_path, "values", [[0, 1, 2, 3, 7, 7, 255, 0]])
    pair(tmp_path, "broken")
    (tmp_path / "masks/broken.png").write_bytes((tmp_path / "masks/broken.png").read_bytes()[:45])
    pair(tmp_path, "text")
    (tmp_path / "masks/text.png").write_text("no picture")
    pair(tmp_path, "lossy")
    image_file(tmp_path / "masks/lossy.jpg")
    (tmp_path / "masks/lossy.jpg").replace(tmp_path / "masks/lossy.png")
    pair(tmp_path, "picture")
    (tmp_path / "images/picture.jpg").write_text("no picture")
    image_file(tmp_path / "images/lonely.jpg")
    mask_file(tmp_path / "masks/widow.png", np.zeros(SIZE))
    pair(tmp_path, "twin")
    image_file(tmp_path / "images/twin.png")
    masks = tmp_path / "masks"
    listed = opened(".", tmp_path)
    assert problems(listed) == [
        f"{masks}/lonely.png: no such file, the mask of {tmp_path}/images/lonely.jpg",
        f"{masks}/twin.png: not one but several (twin.jpg, twin.png), expected one of this name in {tmp_path}/images",
        f"{masks}/widow.png: a mask without an image, expected one of this name in {tmp_path}/images",
    ]
    found = checked(listed, classes=3, ignore_index=255)
    assert [sample.id for sample in found.samples if sample.usable] == ["good"]
    told = {sample.id: sample.problems for sample in found.samples}
    assert told["size"] == (f"{masks}/size.png: has 6×8 pixels, expected 8×6 as its image",)
    wrong = "18 pixels have the class 3, 7, expected 0 to 2, or 255 to ignore"
    assert told["values"] == (f"{masks}/values.png: {wrong}",)
    assert told["text"] == (f"{masks}/text.png: no image format that PIL knows",)
    assert told["lossy"] == (f"{masks}/lossy.png: is JPEG, expected PNG: other formats may change values",)
    assert told["picture"] == (
        f"{masks}/picture.png: its image {tmp_path}/images/picture.jpg: no image format that PIL knows",
    )
    assert told["broken"][0].startswith(f"{masks}/broken.png: ")
    assert found.count == 10
    assert found.identity != listed.identity  # of fewer usable images, so a cache of others is not taken for theirs


@pytest.mark.parametrize(
    ("make", "source", "message"),
    [
        ([], "none", "no such file or folder"),
        (["data/x"], "data", "is no known kind of data. Give a folder with images/ and masks/"),
        (["images/", "masks/"], ".", "images: no images"),
        (["images/a.jpg", "masks/"], ".", r"masks: no masks, expected \.png"),
        (["images/a.jpg", "masks/a.jpg"], ".", "its files have other endings"),
        (["images/a.jpg", "masks/b.png"], ".", r"none of 2 images has its mask in .*a\.png: no such file.*b\.png: a"),
        (["images/"], {"images": "images"}, "data.val: has images. Give a folder"),
        (["images/"], {"images": "images", "masks": "masks"}, "masks: no such folder"),
        (["images/"], {"images": "images", "annotations": "x.json"}, r"x\.json: no such file"),
        (["images/"], {"images": "images", "masks": "images", "panoptic": "images"}, "has images, masks, panoptic"),
    ],
)
def test_what_cannot_be_followed_at_all_is_told(tmp_path, make, source, message):
    for name in make:
        if name.endswith("/") or "." not in name:
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        else:
            image_file(tmp_path / name)
    with pytest.raises(SoupError, match=message):
        opened(source, tmp_path)


def test_a_link_in_a_circle_is_refused(tmp_path):
    pair(tmp_path, "a")
    (tmp_path / "masks/loop").symlink_to("..")
    with pytest.raises(SoupError, match="masks/loop: is a link to a folder that it lies in"):
        opened(".", tmp_path)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_png_is_an_error_of_ours_or_still_a_mask(tmp_path_factory, seed):
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        pair(root, "a", mode="P")
        (root / "whole").write_bytes((root / "masks/a.png").read_bytes())
    rng, content = np.random.default_rng(seed), bytearray((root / "whole").read_bytes())
    for _ in range(rng.integers(1, 5)):
        content[rng.integers(len(content))] = rng.integers(256)
    (root / "masks/a.png").write_bytes(bytes(content)[: rng.integers(1, 2 * len(content))])
    (sample,) = opened(".", root).samples
    try:
        told = str(read_mask(sample, classes=None, ignore_index=255).shape)
    except SoupError as error:
        told = str(error)
    assert told.startswith((f"{root}/masks/a.png: ", str(SIZE)))


def test_a_function_gives_pairs_of_image_and_mask(tmp_path):
    image = np.zeros((*SIZE, 3), np.uint8)
    items = [
        (image, np.full(SIZE, 2)),
        (Image.fromarray(image), Image.fromarray(np.full(SIZE, 1, np.uint8)), "named"),
        (np.zeros((3, *SIZE), np.float32), np.ones((1, *SIZE), bool)),
        (image, np.full(SIZE, 9)),
        (image, np.zeros((2, 2), int)),
        (image, np.zeros(SIZE, np.float32)),
    ]
    found = opened(lambda: items, tmp_path, classes=("a", "b", "c"))
    assert (found.count, found.class_names, found.identity) == (6, ("a", "b", "c"), None)
    samples = list(found.samples)
    assert [sample.id for sample in samples] == ["0", "named", "2", "3", "4", "5"]
    assert [int(np.asarray(sample.mask).max()) for sample in samples[:3]] == [2, 1, 1]
    assert [sample.usable for sample in samples] == [True] * 3 + [False] * 3
    assert [problem for sample in samples for problem in sample.problems] == [
        "data.val: sample 3: its mask: 48 pixels have the class 9, expected 0 to 2, or 255 to ignore",
        "data.val: sample 4: its mask: has 2×2 pixels, expected 8×6 as its image",
        "data.val: sample 5: its mask: is float32 (6, 8), expected whole numbers (height, width)",
    ]
    for function, message in (
        (lambda: 3, "gave int, expected a dataset"),
        (lambda: [image], "sample 0 is ndarray, expected .image, mask."),
        (lambda: 1 / 0, "raised ZeroDivisionError"),
    ):
        with pytest.raises(SoupError, match=message):
            list(opened(function, tmp_path).samples)


def test_masks_of_several_sizes_are_filled_up_with_what_is_ignored():
    whole = stacked([np.ones((1, 3), np.uint8), np.full((2, 1), 300, np.int16)], ignore_index=255)
    assert whole.tolist() == [[[1, 1, 1], [255] * 3], [[300, 255, 255], [300, 255, 255]]]
    assert stacked([], ignore_index=255).shape == (0, 0, 0)


GEOMETRIES = [
    replace(PLAIN, resize=(9, 5)),
    replace(PLAIN, resize=7, crop=(5, 9)),
    replace(PLAIN, crop=(30, 4)),
    replace(PLAIN, letterbox=Letterbox((16, 13), 77, True)),
    replace(PLAIN, letterbox=Letterbox(20, 77, False)),
    replace(PLAIN, letterbox=Letterbox((40, 40), (1, 2, 3), True, scale_up=False), color="bgr"),
    replace(PLAIN, letterbox=Letterbox(24, 77, True, stride=8, rounding="floor"), color="gray"),
]


@pytest.mark.parametrize("backend", ["pil", "cv2"])
@pytest.mark.parametrize("preprocess", GEOMETRIES)
@pytest.mark.parametrize("size", [(11, 17), (24, 10)])
def test_a_mask_lies_as_an_image_whose_pixels_are_its_classes(backend, preprocess, size):
    preprocess = replace(preprocess, backend=backend)
    ids = np.random.default_rng(0).integers(1, 200, size).astype(np.uint8)
    fitted = fit_mask(ids, preprocess, ignore_index=255)
    box = None if preprocess.letterbox is None else replace(preprocess.letterbox, pad=0)
    image = fit(ids, replace(preprocess, color="rgb", letterbox=box))[..., 0]
    assert fitted.shape == image.shape
    assert fitted.dtype == np.uint8
    assert np.array_equal(fitted, np.where(image == 0, 255, image))


@pytest.mark.parametrize("preprocess", GEOMETRIES)
def test_a_mask_lies_where_placement_says(preprocess):
    """The pixel under each centre, by the formula; sides without ties, on whose edges libraries differ."""
    size = (11, 17)
    ids = np.random.default_rng(1).integers(0, 300, size).astype(np.int16)
    fitted = fit_mask(ids, preprocess, ignore_index=-100)
    scale_x, scale_y, left, top = placement(size, preprocess)
    rows = axis((np.arange(fitted.shape[0]) + 0.5 - top) / scale_y, size[0])
    columns = axis((np.arange(fitted.shape[1]) + 0.5 - left) / scale_x, size[1])
    expected = np.where(inside((rows, columns)), nearest(ids, (rows, columns)), -100)
    assert fitted.dtype == np.int16
    assert np.array_equal(fitted, expected)
