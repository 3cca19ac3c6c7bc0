"""Pixels before the model: decoded and reshaped once, as the trainer's own library did it; normalised per batch."""

from __future__ import annotations

import importlib
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from soup import SoupError

if TYPE_CHECKING:
    import PIL.Image

Backend = Literal["pil", "cv2"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]
Color = Literal["rgb", "bgr", "gray"]
Size = int | tuple[int, int]

_PIL_FILTERS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS", "area": "BOX"}
_CV2_FILTERS = {
    "nearest": "INTER_NEAREST", "bilinear": "INTER_LINEAR", "bicubic": "INTER_CUBIC", "lanczos": "INTER_LANCZOS4",
    "area": "INTER_AREA",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Scale to fit `size` (square or (height, width)); `pad` fills the rest, half on each side or right and below."""

    size: Size
    pad: int  # 0 to 255, every channel
    centered: bool


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
    pixels = _rgb(image, preprocess.backend)
    if preprocess.letterbox is not None:
        pixels = _letterbox(pixels, preprocess.letterbox, preprocess=preprocess)
    if preprocess.resize is not None:
        pixels = _resize(pixels, _resized(pixels.shape[:2], preprocess.resize), preprocess=preprocess)
    if preprocess.crop is not None:
        pixels = _center_crop(pixels, _pair(preprocess.crop))
    return np.ascontiguousarray(_recolor(pixels, preprocess))


def normalize(image: np.ndarray, mean: np.ndarray, std: np.ndarray, *, out: np.ndarray) -> None:
    """Write (image / 255 - mean) / std into `out`: uint8 [height, width, channels], float32 [channels, height, width].

    The order of the float32 operations is torchvision's ToTensor and Normalize, so the bits are too.
    """
    for channel, plane in enumerate(out):
        np.divide(image[..., channel], np.float32(255), out=plane, dtype=np.float32)
        plane -= mean[channel]
        plane /= std[channel]


def _rgb(image: object, backend: Backend) -> np.ndarray:
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


def _letterbox(pixels: np.ndarray, box: Letterbox, *, preprocess: Preprocess) -> np.ndarray:
    height, width = _pair(box.size)
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    inner = max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))
    top, left = ((height - inner[0]) // 2, (width - inner[1]) // 2) if box.centered else (0, 0)
    canvas = np.full((height, width, 3), box.pad, np.uint8)
    canvas[top : top + inner[0], left : left + inner[1]] = _resize(pixels, inner, preprocess=preprocess)
    return canvas


def _center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    margins = [max(0, wanted - have) for wanted, have in zip(size, pixels.shape[:2], strict=True)]
    if any(margins):
        pixels = np.pad(pixels, [(margin // 2, (margin + 1) // 2) for margin in margins] + [(0, 0)])
    top, left = (round((have - wanted) / 2) for wanted, have in zip(size, pixels.shape[:2], strict=True))
    return pixels[top : top + size[0], left : left + size[1]]


def _resized(shape: tuple[int, ...], size: Size) -> tuple[int, int]:
    if not isinstance(size, int):
        return size
    height, width = shape
    shorter = min(height, width)
    return (size, int(size * width / shorter)) if height == shorter else (int(size * height / shorter), size)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
