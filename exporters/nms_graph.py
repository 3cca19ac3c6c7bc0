"""Non-maximum suppression at the end of a detector's graph, by standard ONNX operators: a fixed number of rows out."""

from __future__ import annotations

import numpy as np

from exporters import ExportError
from exporters.detector_graph import NMS, DetectorGraph

_INT32 = 6  # TensorProto.DataType


def with_nms(
    model: bytes,
    *,
    iou: float,
    score: float,
    max_detections: int,
    candidates: int,
    class_agnostic: bool,
    where: str,
) -> bytes:
    """The graph of boxes [n, A, 4] and scores [n, A, C] with suppression after it, at its own opset.

    Its outputs keep their names and become boxes [n, D, 4], scores [n, D] and "labels" int32 [n, D], best first, with D
    = `max_detections`; a row that holds no detection is label -1, score 0 and a box of zeros. Each pair of an anchor
    and a class above `score` is a candidate, the best `candidates` of an image count, and one goes where a better one
    that stays overlaps it by more than `iou` (of its class, or of any where `class_agnostic`). Of equal scores the
    lower anchor is first, then the lower class. Overlaps are computed in float32.
    (TensorRT takes no `candidates` above 3840: its TopK ends there.)

    Raises ExportError: input for no model, other outputs, an opset below 13 or limits below 1; environment without
    onnx; build where ONNX's checker refuses the result.
    """
    if max_detections < 1 or candidates < 1 or score < 0:
        limits = f"max_detections {max_detections}, candidates {candidates}, score {score:g}"
        raise ExportError(f"{where}: {limits}; expected 1 or more of both, and no negative score.", kind="input")
    graph = DetectorGraph(model, where=where)
    count = min(candidates, graph.anchors * graph.classes)
    values, boxes, labels = _candidates(graph, count, score=score)
    kept = _suppressed(graph, values, boxes, labels, iou=iou, most=min(max_detections, count), agnostic=class_agnostic)
    return _rows(graph, kept, boxes, labels, count=count, rows=max_detections)


def _candidates(graph: DetectorGraph, count: int, *, score: float) -> tuple[str, str, str]:
    """Scores [n, k] descending (-1 at or below the threshold, and for NaN), boxes [n, k, 4] and labels int64 [n, k]."""
    node, constant = graph.node, graph.constant
    flat = node("Reshape", [graph.scores, constant([0, -1], "pairs_shape")], "pairs")
    above = node("Greater", [flat, constant(float(score), "threshold")], "above")
    candidates = node("Where", [above, flat, constant(-1.0, "none")], "candidate_scores")
    values = node("TopK", [candidates, constant([count], "count")], "values", "pair", axis=1)
    classes = constant([graph.classes], "classes")
    anchor = node("Div", [f"{NMS}pair", classes], "anchor")
    labels = node("Sub", [f"{NMS}pair", node("Mul", [anchor, classes], "first_pair")], "label")
    return values, _gathered(graph, graph.boxes, anchor, "candidate_boxes"), labels


def _suppressed(
    graph: DetectorGraph, values: str, boxes: str, labels: str, *, iou: float, most: int, agnostic: bool
) -> str:
    """Scores [n, k] with -1 where a candidate is none, or goes."""
    node, constant = graph.node, graph.constant
    axis = constant([1], "class_axis")
    by_class = node("Unsqueeze", [values, axis], "values_by_class")
    if not agnostic and graph.classes > 1:  # [n, classes, k]: a candidate competes in the row of its class alone
        own = constant(np.arange(graph.classes).reshape(1, -1, 1), "own_class")
        member = node("Equal", [node("Unsqueeze", [labels, axis], "labels_by_class"), own], "is_member")
        by_class = node("Where", [member, by_class, f"{NMS}none"], "scores_by_class")
    # The threshold is behind us: what is left is above 0, the others are -1.
    limits = [constant([most], "most"), constant(float(iou), "iou"), constant(0.0, "zero")]
    found = node("NonMaxSuppression", [boxes, by_class, *limits], "selected")
    places = node("Gather", [found, constant([0, 2], "image_and_candidate")], "places", axis=1)
    blank = node("ConstantOfShape", [node("Shape", [values], "values_shape")], "blank")
    kept_scores = node("GatherND", [values, places], "kept_scores")
    marked = node("ScatterND", [blank, places, kept_scores], "marked")
    kept = node("Greater", [marked, f"{NMS}zero"], "kept")
    return node("Where", [kept, values, f"{NMS}none"], "survivors")


def _rows(graph: DetectorGraph, kept: str, boxes: str, labels: str, *, count: int, rows: int) -> bytes:
    """The best of what is kept, filled up to `rows`."""
    node, constant = graph.node, graph.constant
    best = node("TopK", [kept, constant([min(rows, count)], "rows")], "best", "row", axis=1)
    there = node("Greater", [best, f"{NMS}zero"], "there")
    scores = node("Where", [there, best, f"{NMS}zero"], "best_scores")
    named = node("GatherElements", [labels, f"{NMS}row"], "best_labels", axis=1)
    named = node("Where", [there, named, constant(np.array(-1), "no_label")], "labels_or_none")
    placed = _gathered(graph, boxes, f"{NMS}row", "best_boxes")
    wide = node("Unsqueeze", [there, constant([2], "box_axis")], "there_by_box")
    placed = node("Where", [wide, placed, f"{NMS}zero"], "boxes_or_zero")
    if rows > count:
        more = rows - count
        scores = node("Pad", [scores, constant([0, 0, 0, more], "more_rows"), f"{NMS}zero"], "padded_scores")
        named = node("Pad", [named, f"{NMS}more_rows", f"{NMS}no_label"], "padded_labels")
        placed = node("Pad", [placed, constant([0, 0, 0, 0, more, 0], "more_boxes"), f"{NMS}zero"], "padded_boxes")
    return graph.finish(placed, scores, node("Cast", [named], "labels_int32", to=_INT32), rows=rows)


def _gathered(graph: DetectorGraph, boxes: str, rows: str, name: str) -> str:
    """Boxes [n, k, 4] at the rows int64 [n, k] of each image."""
    indices = graph.node("Unsqueeze", [rows, graph.constant([2], f"{name}_axis")], f"{name}_rows")
    return graph.node("GatherND", [boxes, indices], name, batch_dims=1)
