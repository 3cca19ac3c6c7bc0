"""YOLO-style anchor-free heads: decoded, with objectness, or as feature maps with distributed distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soup import SoupError
from soup.adapters.raw_outputs import Key, at, cells, corners, expect_axes, lengths, one_of, tensor_at

WHERE = "adapter 'yolo'"


def decode(
    raw: object,
    images: Tensor,
    *,
    layout: str,
    output: Key = 0,
    strides: Sequence[int] = (8, 16, 32),
    reg_max: int = 16,
) -> tuple[Tensor, Tensor]:
    """Boxes [n, A, 4] in pixels of the input and scores [n, A, classes], from one of three layouts.

    - "v8": [n, 4 + classes, A], what Ultralytics' heads give in evaluation (v8, v9, 11): centre x, centre y, width,
      height in pixels, then probabilities.
    - "yolox": [n, A, 5 + classes]: centre and size in pixels, objectness, classes, all probabilities; the score is
      their product (Ge et al., YOLOX, arXiv 2107.08430, section 2).
    - "dfl": one map [n, 4 · reg_max + classes, h, w] per stride, logits: each distance from the cell's centre to left,
      top, right and below is the mean of a softmax over 0 … reg_max - 1 cells (Li et al., Generalized Focal Loss,
      arXiv 2006.04388, section 3.2); scores are sigmoids. Read from position `output` of the network's tuple if that
      is a list of maps, else the network returns the maps themselves.

    `output` is the name or position of the tensor in what the network returns. Raises SoupError for another shape.
    """
    one_of(layout, ("v8", "yolox", "dfl"), name="layout", where=WHERE)
    if layout == "dfl":
        return _distributed(_maps(raw, output), images, strides=strides, reg_max=reg_max)
    rows = tensor_at(raw, output, where=WHERE)
    if layout == "v8":
        expect_axes(rows, ("4 + classes", "A"), name=f"output {output!r}", where=WHERE)
        rows = rows.transpose(1, 2)
    least = 5 if layout == "v8" else 6
    expect_axes(rows, ("A", "columns"), name=f"output {output!r}", where=WHERE)
    boxes, columns = lengths(rows)
    if columns < least or (layout == "v8" and boxes < columns):
        raise SoupError(
            f"{WHERE}: output {output!r} is {boxes} boxes of {columns} columns, expected {least} columns or more "
            f"and more boxes than columns, as layout '{layout}' has them. Choose another layout."
        )
    scores = rows[..., 4:] if layout == "v8" else rows[..., 4:5] * rows[..., 5:]
    return corners(rows[..., :2], rows[..., 2:4]), scores


def _maps(raw: object, output: Key) -> list[Tensor]:
    found = at(raw, output, where=WHERE)
    maps = raw if isinstance(found, Tensor) else found
    if isinstance(maps, Tensor) or not isinstance(maps, list | tuple) or not all(isinstance(m, Tensor) for m in maps):
        raise SoupError(f"{WHERE}: layout 'dfl' needs a list of feature maps, found {type(maps).__name__}.")
    return list(maps)


def _distributed(
    maps: Sequence[Tensor], images: Tensor, *, strides: Sequence[int], reg_max: int
) -> tuple[Tensor, Tensor]:
    if len(maps) != len(strides):
        raise SoupError(f"{WHERE}: {len(maps)} feature maps, expected {len(strides)}, one per stride {list(strides)}.")
    boxes, scores = [], []
    _, rows, columns = lengths(images)
    for stride, tensor in zip(strides, maps, strict=True):
        height, width = -(-rows // stride), -(-columns // stride)
        expect_axes(tensor, ("4 · reg_max + classes", height, width), name=f"the map of stride {stride}", where=WHERE)
        channels = lengths(tensor)[0]
        if channels <= 4 * reg_max:
            raise SoupError(
                f"{WHERE}: the map of stride {stride} has {channels} channels, expected more than "
                f"4 · {reg_max}. Correct reg_max."
            )
        logits, classes = tensor[:, : 4 * reg_max], tensor[:, 4 * reg_max :]
        shares = logits.reshape(-1, 4, reg_max, height * width).softmax(2)
        steps = torch.arange(reg_max, device=shares.device, dtype=shares.dtype).reshape(1, 1, -1, 1)
        distances = (shares * steps).sum(2).transpose(1, 2)
        centers = cells(height, width, like=shares) + 0.5
        edges = torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)
        boxes.append(edges * stride)
        scores.append(classes.flatten(2).transpose(1, 2).sigmoid())
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
