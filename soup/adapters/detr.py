"""DETR-style sets: one box and one row of class logits per query."""

from __future__ import annotations

import torch
from torch import Tensor

from soup.adapters.raw_outputs import Key, corners, expect_axes, lengths, one_of, tensor_at

WHERE = "adapter 'detr'"


def decode(
    raw: object,
    images: Tensor,
    *,
    scores: str = "softmax",
    background: str | None = None,
    logits: Key = "pred_logits",
    boxes: Key = "pred_boxes",
) -> tuple[Tensor, Tensor]:
    """Boxes [n, queries, 4] in pixels of the input and scores [n, queries, classes].

    Takes logits [n, queries, columns] and boxes [n, queries, 4] as centre and size over the input's width and height;
    `logits` and `boxes` are their names in a dict, or attributes (Hugging Face: `logits: logits`), or positions.
    `scores` is softmax with "no object" in the last column (Carion et al., DETR, arXiv 2005.12872, section 3.1), or
    sigmoid, as with the focal loss of Deformable DETR and RT-DETR. `background` is the column to leave out: last,
    first (Deformable DETR's 91 columns, numbered from 1) or none; by default last for softmax, none for sigmoid.
    Raises SoupError for outputs that are missing or have other shapes.
    """
    one_of(scores, ("softmax", "sigmoid"), name="scores", where=WHERE)
    background = background or ("last" if scores == "softmax" else "none")
    one_of(background, ("last", "first", "none"), name="background", where=WHERE)
    classes = tensor_at(raw, logits, where=WHERE)
    expect_axes(classes, ("queries", "columns"), name=f"'{logits}'", where=WHERE)
    places = tensor_at(raw, boxes, where=WHERE)
    expect_axes(places, (lengths(classes)[0], 4), name=f"'{boxes}'", where=WHERE)
    shares = classes.softmax(-1) if scores == "softmax" else classes.sigmoid()
    kept = {"last": slice(None, -1), "first": slice(1, None), "none": slice(None)}[background]
    _, height, width = lengths(images)
    sides = [places.new_full((1,), float(side)) for side in (width, height)]
    return corners(places[..., :2], places[..., 2:]) * torch.cat(sides * 2), shares[..., kept]
