"""The true mask of an image: read from its file, checked, and put through the geometry that the image goes through."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from soup import SoupError
from soup.box_files import measured
from soup.preprocess import Preprocess, fit
from soup.sources import Source

if TYPE_CHECKING:
    import PIL.Image

Size = tuple[int, int]  # height, width
Palette = Mapping[str, int]  # "#rrggbb" → class
_INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_SCALED_BY_PIL = {2: 85, 4: 17}  # grey PNG of so many bits: it stretches their values to 0..255
_MOST = 2**15 - 1  # the highest class: masks are int16 where a byte is too small
_DEPTH_AT = 24  # of a PNG file: the bit depth in its header (ISO/IEC 15948, 11.2.2)


@dataclass(frozen=True, slots=True)
class MaskSample:
    """One image before preprocessing with where its mask is, and everything that is wrong with either."""

    id: str
    image: object  # path, array, PIL image or tensor; a SoupError with the bare reason where it cannot be used
    mask: object  # path of a PNG, integers [h, w], PIL image, or a function that gives such; a SoupError likewise
    where: str  # the mask, as messages name it
    problems: tuple[str, ...] = ()  # each names file and record, without a full stop
    group: str | None = None

    @property
    def usable(self) -> bool:
        """Whether the image can be judged. A mask that is wrong in a part is not used at all."""
        return not isinstance(self.image, SoupError) and not isinstance(self.mask, SoupError)


MaskSource = Source[MaskSample]


def unusable(name: str, where: str, reason: str, *problems: str) -> MaskSample:
    """A sample that is left out: `reason` stands for its mask, and is told with `where`."""
    error = SoupError(reason)
    return MaskSample(name, error, error, where, (*problems, f"{where}: {reason}"))


def checked(source: MaskSource, *, classes: int | None, ignore_index: int) -> MaskSource:
    """The source with every mask read once, in 2 threads or more, and those that cannot be used marked as such.

    Takes as long as reading them; draw before.
    """

    def attempt(sample: MaskSample) -> MaskSample:
        if not sample.usable:
            return sample
        try:
            read_mask(sample, classes=classes, ignore_index=ignore_index)
        except SoupError as error:
            return replace(sample, mask=error, problems=(*sample.problems, str(error)))
        return sample

    with ThreadPoolExecutor() as pool:
        samples = list(pool.map(attempt, source.samples))
    identity = None if source.identity is None else identity_of(samples)
    return replace(source, samples=samples, count=len(samples), identity=identity)


def identity_of(samples: Sequence[MaskSample]) -> object:
    """JSON of all that decides the images of the usable samples, which are files."""
    stamps: list[object] = []
    for sample in samples:
        if sample.usable and isinstance(sample.image, Path):
            status = sample.image.stat()
            stamps.append([sample.id, str(sample.image.resolve()), status.st_size, status.st_mtime_ns])
    return ["masked files", stamps]


def read_mask(
    sample: MaskSample, *, classes: int | None, ignore_index: int, size: Size | None = None
) -> np.ndarray:  # fmt: skip
    """Class ids [h, w]: uint8, or int16 where a class or `ignore_index` is beyond a byte.

    `size` is (height, width) of its image as decoded; without, the image's own head tells it. `classes` None: any.
    Raises SoupError, the mask's name first, where it cannot be read, has another size, or holds other values.
    """
    try:
        ids = _ids(sample.mask)
        _check_size(ids, sample.image, size)
        _check_values(ids, classes=classes, ignore_index=ignore_index)
    except SoupError as error:
        raise SoupError(f"{sample.where}: {str(error).rstrip('.')}") from error
    return ids.astype(dtype_of(int(ids.max()) + 1 if classes is None else classes, ignore_index))


def dtype_of(classes: int, ignore_index: int) -> np.dtype[np.generic]:
    """uint8 where it holds every class and `ignore_index`, else int16."""
    return np.dtype(np.uint8 if classes <= 256 and 0 <= ignore_index <= 255 else np.int16)


def fit_mask(mask: np.ndarray, preprocess: Preprocess, *, ignore_index: int) -> np.ndarray:
    """A mask [h, w] through the geometry of `preprocess.fit`, by the backend's own nearest neighbour.

    What a letterbox or a crop beyond the border adds is `ignore_index`. Three channels go through `fit` at once, which
    mixes none of them: both bytes of the class, and one that tells the mask from what was added.
    """
    bits = mask.astype(np.int16).view(np.uint16)
    packed = np.stack([bits & 255, bits >> 8, np.full_like(bits, 255)], axis=2).astype(np.uint8)
    box = None if preprocess.letterbox is None else replace(preprocess.letterbox, pad=0)
    low, high, there = np.moveaxis(
        fit(packed, replace(preprocess, interpolation="nearest", color="rgb", letterbox=box)).astype(np.uint16), 2, 0
    )
    return np.where(there > 0, (low | high << 8).view(np.int16), ignore_index).astype(mask.dtype)


def stacked(masks: Sequence[np.ndarray], *, ignore_index: int) -> np.ndarray:
    """[n, H, W]: masks of several sizes in one array, `ignore_index` right of them and below."""
    sides = [max((mask.shape[axis] for mask in masks), default=0) for axis in (0, 1)]
    dtype = np.result_type(*masks) if masks else np.dtype(np.uint8)
    whole = np.full((len(masks), *sides), ignore_index, dtype)
    for row, mask in zip(whole, masks, strict=True):
        row[: mask.shape[0], : mask.shape[1]] = mask
    return whole


def read_pixels(path: Path, read: Callable[[PIL.Image.Image], np.ndarray]) -> np.ndarray:
    """What `read` makes of an open PNG. Raises SoupError with the bare reason."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise SoupError(f"is {image.format}, expected PNG: other formats may change values")
            return read(image)
    except UnidentifiedImageError as error:
        raise SoupError("no image format that PIL knows") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise SoupError(str(getattr(error, "strerror", None) or error)) from error


def by_color(path: Path, palette: Palette) -> np.ndarray:
    """The class of each pixel's colour, as `palette` has it; for masks whose numbers are colours."""
    pixels = read_pixels(path, lambda image: np.asarray(image.convert("RGB"))).astype(np.int32)
    codes = pixels @ np.array([1 << 16, 1 << 8, 1], np.int32)
    known = {int(color.removeprefix("#"), 16): label for color, label in palette.items()}
    return looked_up(codes, known, lambda code: f"the colour #{code:06x}", "the palette")


def looked_up(codes: np.ndarray, known: Mapping[int, int], told: Callable[[int], str], table: str) -> np.ndarray:
    """`known[code]` for each pixel. Raises SoupError for codes that are not there."""
    keys = np.array(sorted(known), np.int64)
    places = np.minimum(np.searchsorted(keys, codes), len(keys) - 1)
    if (wrong := keys[places] != codes).any():
        several = ", ".join(told(int(code)) for code in np.unique(codes[wrong])[:5])
        raise SoupError(f"{wrong.sum():,} pixels have {several}, which {table} does not name")
    labels: np.ndarray = np.array([known[int(key)] for key in keys], np.int64)[places]
    return labels


def _ids(mask: object) -> np.ndarray:
    if isinstance(mask, SoupError):
        raise mask
    if isinstance(mask, Path):
        return _unstretched(mask, read_pixels(mask, _indices))
    if hasattr(mask, "convert"):
        return _indices(cast("PIL.Image.Image", mask))
    if callable(mask):
        return np.asarray(mask())
    try:
        ids = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
    except ValueError as error:
        raise SoupError(f"is {type(mask).__name__} that makes no array") from error
    ids = ids[0] if ids.ndim == 3 and len(ids) == 1 else ids
    if ids.ndim != 2 or ids.dtype.kind not in "biu":
        raise SoupError(f"is {ids.dtype} {ids.shape}, expected whole numbers (height, width)")
    return ids


def _indices(image: PIL.Image.Image) -> np.ndarray:
    if image.mode not in _INDEX_MODES:
        raise SoupError(
            f"is an image of mode {image.mode}, expected one class number per pixel (mode P, L or 16 bits). "
            "Colours need a palette that says which class each stands for"
        )
    ids = np.asarray(image)
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def _unstretched(path: Path, ids: np.ndarray) -> np.ndarray:
    with path.open("rb") as file:
        depth, color = file.read(_DEPTH_AT + 2)[_DEPTH_AT:]
    return ids // np.uint8(_SCALED_BY_PIL[depth]) if color == 0 and depth in _SCALED_BY_PIL else ids


def _check_size(ids: np.ndarray, image: object, size: Size | None) -> None:
    height, width = ids.shape
    if size is None and isinstance(image, Path):
        size = _measured(image, told=(height, width))
    size = _size(image) if size is None else size
    if (height, width) != size:
        raise SoupError(f"has {width}×{height} pixels, expected {size[1]}×{size[0]} as its image")


def _measured(image: Path, *, told: Size) -> Size:
    """From the head of the file; `told` where that is its size, be it after the turn that EXIF asks for."""
    try:
        found = measured(image, None)
    except SoupError as error:
        raise SoupError(f"its image {image}: {error}") from error
    with suppress(SoupError):
        found = measured(image, told)
    return found


def _size(image: object) -> Size:
    """Of a PIL image, floats [c, h, w], or bytes [h, w] or [h, w, c]."""
    if hasattr(image, "convert"):
        picture = cast("PIL.Image.Image", image)
        return picture.height, picture.width
    shape = tuple(int(side) for side in getattr(image, "shape", ()))
    floats = len(shape) == 3 and "float" in str(getattr(image, "dtype", ""))
    if len(shape) not in (2, 3):
        raise SoupError(f"its image is {type(image).__name__} {shape}, expected (height, width[, channels])")
    return (shape[1], shape[2]) if floats else (shape[0], shape[1])


def _check_values(ids: np.ndarray, *, classes: int | None, ignore_index: int) -> None:
    if not ids.size:
        raise SoupError("has no pixels")
    limit = _MOST if classes is None else classes
    wrong = ((ids < 0) | (ids >= limit)) & (ids != ignore_index)
    if wrong.any():
        values = ", ".join(map(str, np.unique(ids[wrong])[:10].tolist()))
        raise SoupError(
            f"{wrong.sum():,} pixels have the class {values}, expected 0 to {limit - 1}, or {ignore_index} to ignore"
        )
