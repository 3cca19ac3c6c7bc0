"""CenterNet-style heads: a heat map of object centres, their sizes and offsets, as boxes and scores."""

from __future__ import annotations

import torch
from torch import Tensor

from soup import SoupError
from soup.adapters.raw_outputs import Key, cells, corners, expect_axes, lengths, one_of, tensor_at

WHERE = "adapter 'centernet'"
# Equal but for rounding: a flat area (padding) must be as flat in every runtime.
_FLAT = 1e-5


def decode(
    raw: object,
    images: Tensor,
    *,
    heatmap: Key = 0,
    size: Key = 1,
    offset: Key | None = 2,
    stride: float | None = None,
    scores: str = "logits",
    sizes_in: str = "cells",
) -> tuple[Tensor, Tensor]:
    """Boxes [n, h · w, 4] in pixels of the input and scores [n, h · w, classes]; a cell that is no peak scores 0.

    Takes a heat map [n, classes, h, w] (`scores`: logits or probabilities), a size [n, 2, h, w] as width and height
    (`sizes_in`: cells of the map, as Zhou et al. train it, or pixels) and the centre's offset [n, 2, h, w] as x and y
    in cells (`offset: null` for a network without). `heatmap`, `size` and `offset` are names or positions in what the
    network returns; `stride` is pixels per cell, by default the image's height over the map's.

    A peak is a cell that no neighbour of its 3 × 3 exceeds (by more than 1e-5, so that runtimes agree on flat areas):
    Zhou et al., Objects as Points (arXiv 1904.07850), section 3. No other suppression is needed, and NMS does no harm.
    Raises SoupError for outputs that are missing or have other shapes.
    """
    one_of(scores, ("logits", "probabilities"), name="scores", where=WHERE)
    one_of(sizes_in, ("cells", "pixels"), name="sizes_in", where=WHERE)
    heat = tensor_at(raw, heatmap, where=WHERE)
    expect_axes(heat, ("classes", "h", "w"), name="the heat map", where=WHERE)
    _, height, width = lengths(heat)
    maps = {"the size": tensor_at(raw, size, where=WHERE)}
    if offset is not None:
        maps["the offset"] = tensor_at(raw, offset, where=WHERE)
    for name, tensor in maps.items():
        expect_axes(tensor, (2, height, width), name=name, where=WHERE)
    if stride is None:
        stride = _stride(images, height, width)
    grid = cells(height, width, like=heat)
    centers = grid + _rows(maps["the offset"]) if offset is not None else grid.expand(heat.shape[0], -1, -1)
    extents = _rows(maps["the size"]) * (stride if sizes_in == "cells" else 1.0)
    return corners(centers * stride, extents), _rows(_peaks(heat.sigmoid() if scores == "logits" else heat))


def _peaks(heat: Tensor) -> Tensor:
    highest = torch.nn.functional.max_pool2d(heat, kernel_size=3, stride=1, padding=1)
    return torch.where(heat >= highest - _FLAT, heat, torch.zeros_like(heat))


def _rows(tensor: Tensor) -> Tensor:
    """[n, c, h, w] → [n, h · w, c]."""
    return tensor.flatten(2).transpose(1, 2)


def _stride(images: Tensor, height: int, width: int) -> float:
    _, rows, columns = lengths(images)
    strides = rows / height, columns / width
    if strides[0] != strides[1]:
        raise SoupError(
            f"{WHERE}: the heat map is {height} × {width} for images of {rows} × {columns}, "
            f"expected one stride, not {strides[0]:g} and {strides[1]:g}. Give `stride`."
        )
    return strides[0]
