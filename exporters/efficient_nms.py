"""Non-maximum suppression at the end of a detector's graph, by TensorRT's plugin EfficientNMS_TRT."""

from __future__ import annotations

import numpy as np

from exporters import ExportError
from exporters.detector_graph import NMS, DetectorGraph

_DOMAIN = "TRT"  # TensorRT's parser looks a plugin up by its operator's name alone; the checker lets the domain pass
_FLOAT, _INT32 = 1, 6  # TensorProto.DataType


def with_efficient_nms(
    model: bytes,
    *,
    iou: float,
    score: float,
    max_detections: int,
    class_agnostic: bool,
    where: str,
) -> bytes:
    """The graph of boxes [n, A, 4] and scores [n, A, C] with the plugin after it, for classic TensorRT alone.

    Its outputs are those of `with_nms`: boxes [n, D, 4], scores [n, D] and "labels" int32 [n, D], with label -1, score
    0 and a box of zeros in the rows beyond the plugin's num_detections, which it does not define. The plugin compares
    the 4,096 best pairs of an image, whatever `candidates` is elsewhere. Its `class_agnostic` came late in TensorRT 8:
    a builder that does not know it suppresses per class.

    Attributes and outputs are those of NVIDIA's documentation of the plugin (TensorRT OSS, plugin/efficientNMSPlugin,
    version 1). ONNX Runtime and tensorrt_rtx lack it; no engine was ever built from this graph here.

    Raises ExportError: input for no model, other outputs, an opset below 13 or limits below 1; environment without
    onnx; build where ONNX's checker refuses the result.
    """
    if max_detections < 1 or score < 0:
        limits = f"max_detections {max_detections}, score {score:g}"
        raise ExportError(f"{where}: {limits}; expected 1 or more, and no negative score.", kind="input")
    graph = DetectorGraph(model, where=where)
    graph.use_domain(_DOMAIN, version=1)
    node, constant = graph.node, graph.constant
    node(
        "EfficientNMS_TRT", [graph.boxes, graph.scores], "count", "boxes", "scores", "classes", domain=_DOMAIN,
        plugin_version="1", plugin_namespace="", score_threshold=float(score), iou_threshold=float(iou),
        max_output_boxes=max_detections, background_class=-1, score_activation=0, box_coding=0,
        class_agnostic=int(class_agnostic),
    )  # fmt: skip
    # Nothing infers what a plugin gives.
    shapes = {"count": (_INT32, [1]), "boxes": (_FLOAT, [max_detections, 4])}
    shapes |= {"scores": (_FLOAT, [max_detections]), "classes": (_INT32, [max_detections])}
    for name, (code, axes) in shapes.items():
        graph.declare(f"{NMS}{name}", code, axes)
    row = constant(np.arange(max_detections, dtype=np.int32)[None], "row")
    there = node("Less", [row, f"{NMS}count"], "there")
    scores = node("Where", [there, f"{NMS}scores", constant(0.0, "zero")], "scores_or_zero")
    labels = node("Where", [there, f"{NMS}classes", constant(np.array(-1, np.int32), "no_label")], "labels_or_none")
    wide = node("Unsqueeze", [there, constant([2], "box_axis")], "there_by_box")
    boxes = node("Where", [wide, f"{NMS}boxes", f"{NMS}zero"], "boxes_or_zero")
    return graph.finish(boxes, scores, labels, rows=max_detections)
