"""Pixels before the model: decoded and reshaped once, as the trainer's own library did it; normalised per batch."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from soup import SoupError
from soup.placement import Geometry, geometry

if TYPE_CHECKING:
    import PIL.Image

Backend = Literal["pil", "cv2"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
Color = Literal["rgb", "bgr", "gray"]
Rounding = Literal["nearest", "half_up", "floor", "ceil", "detr"]
Size = int | tuple[int, int]

_STRIDES = (32, 16, 8, 4, 2)
_PIL_FILTERS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS", "area": "BOX"}
_CV2_FILTERS = {
    "nearest": "INTER_NEAREST", "bilinear": "INTER_LINEAR", "bicubic": "INTER_CUBIC", "lanczos": "INTER_LANCZOS4",
    "area": "INTER_AREA",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Scale to fit `size` (square or (height, width)); `pad` fills the rest, half on each side or right and below.

    With a `stride` the result is only as large as it has to be: the scaled sides, each with `margin` more, rounded up
    to its multiples. `shorter` limits the scaled image's shorter side, as `size` does both.
    """

    size: Size
    pad: int | tuple[int, ...]  # 0 to 255, of every channel or of each, in the order of `Preprocess.color`
    centered: bool
    stride: int | None = None
    margin: int = 0
    shorter: int | None = None
    scale_up: bool = True  # False leaves smaller images as they are
    rounding: Rounding = "nearest"  # of the scaled sides; which trainer has which: docs/recipes.md


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What happens to an image between its file and the model; a letterbox stands instead of resize and crop."""

    resize: Size | None  # the shorter side, or exactly (height, width)
    crop: Size | None  # from the centre, square or (height, width)
    interpolation: Interpolation
    backend: Backend
    color: Color  # applied last
    letterbox: Letterbox | None
    mean: tuple[float, ...]  # of pixels scaled to 0..1, one per channel or one for all
    std: tuple[float, ...]


def scaled_sides(sides: Sequence[int], scale: float) -> list[int]:
    """Pixels times `scale`, in steps that networks stride by.

    A step is the largest power of two, up to 32, that divides all sides and goes into each four times: 128 × 0.8 is 96.
    """
    step = next((power for power in _STRIDES if all(side % power == 0 and side >= 4 * power for side in sides)), 1)
    return [max(step, round(side * scale / step) * step) for side in sides]


def backend_version(backend: Backend) -> str:
    """The library that decodes and resizes, with its version. Raises SoupError (environment) where it is missing."""
    module, extra = ("PIL", "build") if backend == "pil" else ("cv2", "cv2")
    try:
        return f"{module} {importlib.import_module(module).__version__}"
    except ImportError as error:
        raise SoupError(
            f"preprocess.backend: '{backend}' needs the module '{module}'. Run: pip install 'edgesoup[{extra}]'",
            kind="environment",
        ) from error


def fit(image: object, preprocess: Preprocess) -> np.ndarray:
    """One image as uint8 [height, width, channels] after geometry, in the order `preprocess.color`.

    `image` is a file, a PIL image, or a uint8 array [h, w] or [h, w, 1 | 3 | 4] in RGB(A) order. Files are read as the
    backend reads them: PIL leaves the EXIF orientation alone and clips 16-bit values at 255, cv2 turns the image and
    keeps the high byte; alpha is dropped, the first frame of an animation counts.
    Sizes follow torchvision: the longer side is truncated, a crop beyond the border is filled with 0.
    Raises SoupError with the bare reason where it cannot be read or is not of these kinds; the caller names the sample.
    """
    pixels = read_rgb(image, preprocess.backend)
    found = geometry(pixels.shape[:2], preprocess)
    if pixels.shape[:2] != found.inner:
        pixels = _resize(pixels, found.inner, preprocess=preprocess)
    if found.outer != found.inner:
        pixels = _placed(pixels, found, fill=_fill(preprocess))
    return np.ascontiguousarray(_recolor(pixels, preprocess))


def normalize(image: np.ndarray, mean: np.ndarray, std: np.ndarray, *, out: np.ndarray) -> None:
    """Write (image / 255 - mean) / std into `out`: uint8 [height, width, channels], float32 [channels, height, width].

    The order of the float32 operations is torchvision's ToTensor and Normalize, so the bits are too.
    """
    for channel, plane in enumerate(out):
        np.divide(image[..., channel], np.float32(255), out=plane, dtype=np.float32)
        plane -= mean[channel]
        plane /= std[channel]


def read_rgb(image: object, backend: Backend) -> np.ndarray:
    """An image as uint8 [height, width, 3], in the order RGB; as `fit` takes it, and raises."""
    if isinstance(image, Path):
        return _read_cv2(image) if backend == "cv2" else _read_pil(image)
    if hasattr(image, "convert"):  # a PIL image, whatever the backend; its pixels may still have to be read
        return _read_pil(cast("PIL.Image.Image", image))
    try:
        pixels = np.asarray(image)
    except ValueError as error:  # rows of different lengths
        raise SoupError(f"the image is {type(image).__name__} that makes no array") from error
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise SoupError(
            f"the image is {pixels.dtype} {pixels.shape}, expected uint8 (height, width, 1, 3 or 4) or a PIL image. "
            "A float tensor is fed as it is only without `preprocess`."
        )
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def _read_pil(source: Path | PIL.Image.Image) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(source) if isinstance(source, Path) else nullcontext(source) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise SoupError(_reason(error)) from error


def _read_cv2(path: Path) -> np.ndarray:
    import cv2

    try:
        data = path.read_bytes()
        # Unlike imread, it refuses a truncated JPEG and does not fill it up with grey.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except (OSError, cv2.error) as error:
        raise SoupError(_reason(error)) from error
    if pixels is None:
        raise SoupError("cv2 cannot decode it")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def _reason(error: Exception) -> str:
    """Without the path that PIL and the system put into it."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "no image format that PIL knows"
    return str(getattr(error, "strerror", None) or error)


def _resize(pixels: np.ndarray, size: tuple[int, int], *, preprocess: Preprocess) -> np.ndarray:
    height, width = size
    if preprocess.backend == "cv2":
        import cv2

        return np.asarray(
            cv2.resize(pixels, (width, height), interpolation=getattr(cv2, _CV2_FILTERS[preprocess.interpolation]))
        )
    from PIL import Image

    resample = Image.Resampling[_PIL_FILTERS[preprocess.interpolation]]
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


def _recolor(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    if preprocess.color == "rgb":
        return pixels
    if preprocess.color == "bgr":
        return pixels[..., ::-1]
    if preprocess.backend == "cv2":
        import cv2

        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY))[..., None]
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def _placed(pixels: np.ndarray, found: Geometry, *, fill: np.ndarray) -> np.ndarray:
    """Pixels of size `found.inner` on a canvas of `found.outer`; what does not fit on it is cut off."""
    canvas = np.empty((*found.outer, 3), np.uint8)
    canvas[:] = fill
    shown = [  # of each axis: where it goes, where it is from
        (slice(max(0, at), max(0, at) + min(have, room)), slice(max(0, -at), max(0, -at) + min(have, room)))
        for at, have, room in zip(found.offset, found.inner, found.outer, strict=True)
    ]
    (rows, rows_from), (columns, columns_from) = shown
    canvas[rows, columns] = pixels[rows_from, columns_from]
    return canvas


def _fill(preprocess: Preprocess) -> np.ndarray:
    """uint8 [1 or 3], in the order RGB."""
    pad = 0 if preprocess.letterbox is None else preprocess.letterbox.pad
    values = np.array(pad, np.uint8).reshape(-1)
    return values[::-1] if preprocess.color == "bgr" else values
