"""Decoding, geometry and normalisation, against torchvision and direct cv2 calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from soup import SoupError
from soup.preprocess import Letterbox, Preprocess, backend_version, fit, normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AS_IT_IS = Preprocess(
    resize=None,
    crop=None,
    interpolation="bilinear",
    backend="pil",
    color="rgb",
    letterbox=None,
    mean=(0.0,),
    std=(1.0,),
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(folder: Path, image: np.ndarray, suffix: str = ".png") -> Path:
    path = folder / f"image{suffix}"
    Image.fromarray(image).save(path)
    return path


def fed(image: object, preprocess: Preprocess) -> np.ndarray:
    pixels = fit(image, preprocess)
    channels = pixels.shape[2]
    out = np.empty((channels, *pixels.shape[:2]), np.float32)
    normalize(pixels, np.asarray(preprocess.mean, np.float32), np.asarray(preprocess.std, np.float32), out=out)
    return out


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(3, 70),
    width=st.integers(3, 70),
    resize=st.integers(8, 40) | st.tuples(st.integers(8, 40), st.integers(8, 40)),
    crop=st.integers(4, 50),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_pil_equals_torchvision_bit_for_bit(height, width, resize, crop, interpolation):
    """Resize, CenterCrop (also beyond the border), ToTensor and Normalize."""
    image = Image.fromarray(picture(height, width))
    theirs = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    ours = replace(AS_IT_IS, resize=resize, crop=crop, interpolation=interpolation, mean=MEAN, std=STD)
    assert np.array_equal(fed(image, ours), theirs(image).numpy())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_a_file_is_decoded_as_pil_does(tmp_path, suffix):
    path = saved(tmp_path, picture(20, 30), suffix)
    with Image.open(path) as image:
        assert np.array_equal(fit(path, AS_IT_IS), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("interpolation", "flag"),
    [("nearest", cv2.INTER_NEAREST), ("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC),
     ("lanczos", cv2.INTER_LANCZOS4), ("area", cv2.INTER_AREA)],
)  # fmt: skip
def test_cv2_equals_imread_and_resize(tmp_path, interpolation, flag):
    path = saved(tmp_path, picture(60, 44), ".jpg")
    theirs = cv2.resize(cv2.imread(str(path)), (24, 32), interpolation=flag)
    ours = replace(AS_IT_IS, backend="cv2", resize=(32, 24), interpolation=interpolation, color="bgr")
    assert np.array_equal(fit(path, ours), theirs)


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_colour_order_is_applied_at_the_end(tmp_path, backend):
    path = saved(tmp_path, picture(24, 24))
    rgb = fit(path, replace(AS_IT_IS, backend=backend, resize=16))
    assert np.array_equal(fit(path, replace(AS_IT_IS, backend=backend, resize=16, color="bgr")), rgb[..., ::-1])
    gray = fit(path, replace(AS_IT_IS, backend=backend, resize=16, color="gray"))
    assert gray.shape == (16, 16, 1)
    assert np.abs(gray[..., 0] - rgb @ [0.299, 0.587, 0.114]).max() <= 1


def test_gray_equals_each_librarys_own_conversion(tmp_path):
    path = saved(tmp_path, picture(24, 24))
    with Image.open(path) as image:
        assert np.array_equal(fit(path, replace(AS_IT_IS, color="gray"))[..., 0], np.asarray(image.convert("L")))
    theirs = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)
    assert np.array_equal(fit(path, replace(AS_IT_IS, backend="cv2", color="gray"))[..., 0], theirs)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(4, 48), st.integers(4, 48)),
    centered=st.booleans(),
    backend=st.sampled_from(["pil", "cv2"]),
)
def test_a_letterbox_keeps_the_aspect_and_fills_the_rest(shape, size, centered, backend):
    """A white image on pad 7: the box of what is not 7 has the size and place that the formula gives."""
    white = np.full((*shape, 3), 255, np.uint8)
    box = fit(white, replace(AS_IT_IS, backend=backend, letterbox=Letterbox(size, pad=7, centered=centered)))
    scale = min(size[0] / shape[0], size[1] / shape[1])
    height, width = (max(1, round(side * scale)) for side in shape)
    top, left = ((size[0] - height) // 2, (size[1] - width) // 2) if centered else (0, 0)
    expected = np.full((*size, 3), 7, np.uint8)
    expected[top : top + height, left : left + width] = 255
    assert np.array_equal(box, expected)


def test_letterboxed_pixels_are_the_backends_resize():
    image = picture(30, 50)
    box = fit(image, replace(AS_IT_IS, backend="cv2", letterbox=Letterbox(40, pad=114, centered=True)))
    assert np.array_equal(box[8:32], cv2.resize(image, (40, 24)))
    assert (box[:8] == 114).all()
    assert (box[32:] == 114).all()


@pytest.mark.parametrize(("color", "pad"), [("rgb", (124, 116, 104)), ("bgr", (104, 116, 124))])
def test_padding_has_a_value_for_each_channel_in_the_order_that_the_model_takes(color, pad):
    box = Letterbox((8, 16), pad, centered=False)
    image = fit(picture(8, 8), replace(AS_IT_IS, color=color, letterbox=box))
    assert (image[:, 8:] == pad).all()
    assert np.array_equal(image[:, :8], picture(8, 8) if color == "rgb" else picture(8, 8)[..., ::-1])


def test_gray_padding_is_gray():
    assert (
        fit(picture(8, 8), replace(AS_IT_IS, color="gray", letterbox=Letterbox((8, 16), 90, True)))[:, 12:] == 90
    ).all()


def test_a_small_image_is_only_padded_where_scaling_up_is_off():
    image = fit(picture(10, 12), replace(AS_IT_IS, letterbox=Letterbox(32, 7, centered=True, scale_up=False)))
    assert np.array_equal(image[11:21, 10:22], picture(10, 12))
    assert (image == 7).all(axis=2).sum() >= 32 * 32 - 10 * 12
    large = replace(AS_IT_IS, letterbox=Letterbox(32, 7, centered=True, scale_up=False))
    assert np.array_equal(fit(picture(64, 64), large), fit(picture(64, 64), replace(AS_IT_IS, resize=32)))


def test_a_stride_leaves_only_the_padding_that_it_needs():
    image = fit(picture(20, 40), replace(AS_IT_IS, letterbox=Letterbox(80, 7, centered=True, stride=32)))
    assert image.shape == (64, 96, 3)
    assert np.array_equal(image[12:52, 8:88], fit(picture(20, 40), replace(AS_IT_IS, resize=(40, 80))))


def test_pil_ignores_the_exif_orientation_and_cv2_applies_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to see it upright
    path = tmp_path / "turned.jpg"
    Image.fromarray(picture(20, 32)).save(path, exif=exif)
    assert fit(path, AS_IT_IS).shape == (20, 32, 3)
    assert fit(path, replace(AS_IT_IS, backend="cv2")).shape == (32, 20, 3)


@pytest.mark.parametrize("mode", ["CMYK", "LA", "RGBA", "P", "1", "L"])
def test_other_modes_are_converted_as_pil_does(tmp_path, mode):
    image = Image.fromarray(picture(9, 9)).convert(mode)
    path = tmp_path / "image.tif"
    image.save(path)
    assert np.array_equal(fit(path, AS_IT_IS), np.asarray(image.convert("RGB")))


def test_sixteen_bits_become_eight_as_each_backend_does_it(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 100, 300, 65535]], np.uint16)).save(path)
    assert fit(path, AS_IT_IS)[0, :, 0].tolist() == [0, 100, 255, 255]
    assert fit(path, replace(AS_IT_IS, backend="cv2"))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (fit(tmp_path / "moving.gif", AS_IT_IS) == 10).all()


def test_gray_arrays_gain_channels_and_alpha_is_dropped():
    image = picture(6, 7)
    for gray in (image[..., 0], image[..., :1]):
        assert np.array_equal(fit(gray, AS_IT_IS), np.repeat(image[..., :1], 3, axis=2))
    assert np.array_equal(fit(np.dstack([image, image[..., :1]]), AS_IT_IS), image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_an_array_of_another_kind_is_refused(image):
    with pytest.raises(SoupError, match="expected uint8"):
        fit(image, AS_IT_IS)


@pytest.mark.parametrize("backend", ["pil", "cv2"])
@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_refused(tmp_path, backend, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(SoupError):
        fit(path, replace(AS_IT_IS, backend=backend))


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_a_truncated_jpeg_is_refused_and_not_filled_with_grey(tmp_path, backend):
    path = saved(tmp_path, picture(64, 64), ".jpg")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(SoupError):
        fit(path, replace(AS_IT_IS, backend=backend))


def test_a_pil_image_that_breaks_while_it_is_read_is_refused(tmp_path):
    path = saved(tmp_path, picture(64, 64), ".jpg")
    path.write_bytes(path.read_bytes()[:-500])
    with Image.open(path) as image, pytest.raises(SoupError, match="truncated"):
        fit(image, AS_IT_IS)


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_a_missing_file_is_refused(tmp_path, backend):
    with pytest.raises(SoupError, match="No such file"):
        fit(tmp_path / "none.png", replace(AS_IT_IS, backend=backend))


def test_a_missing_backend_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(SoupError, match=r"pip install 'edgesoup\[cv2\]'") as raised:
        backend_version("cv2")
    assert raised.value.kind == "environment"


def test_normalising_equals_torch_in_its_own_order():
    image = picture(16, 16)
    out = np.empty((3, 16, 16), np.float32)
    normalize(image, np.float32(MEAN), np.float32(STD), out=out)
    theirs = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
    theirs = (theirs - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert np.array_equal(out, theirs.numpy())
