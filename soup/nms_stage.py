"""Suppression inside the graph that ships, where val.yaml wants it there: appended to the graph that was proved."""

from __future__ import annotations

from dataclasses import replace

from exporters.efficient_nms import with_efficient_nms
from exporters.nms_graph import with_nms
from soup.export_proof import Job, Proved, prove_file
from soup.files import sha256_bytes, write_file
from soup.proof import BOXES_TOLERANCE, Artifact


def with_suppression(job: Job, graph: Proved) -> Proved | None:
    """The same graph with `export.nms` after it, proved on all of val; None where it stays outside.

    What TensorRT's plugin gives cannot be run by ONNX Runtime: that graph is written and not proved here.
    """
    export, rules = job.source.config.export, job.source.config.detection.suppression
    if export.nms == "none" or len(graph.golden) > 2:
        return None
    dense, where = job.stage / graph.artifact.file, graph.artifact.file
    if export.nms == "onnx":
        model = with_nms(
            dense.read_bytes(), iou=rules.iou, score=rules.score, max_detections=rules.max_detections,
            candidates=rules.candidates, class_agnostic=rules.class_agnostic, where=where,
        )  # fmt: skip
    else:
        model = with_efficient_nms(
            dense.read_bytes(), iou=rules.iou, score=rules.score, max_detections=rules.max_detections,
            class_agnostic=rules.class_agnostic, where=where,
        )  # fmt: skip
    file = graph.artifact.file.replace(".onnx", ".nms.onnx")
    write_file(job.stage / file, model)
    artifact = Artifact(
        file, "onnx", sha256_bytes(model), graph.artifact.batch, BOXES_TOLERANCE, graph.artifact.precision, boxes=True
    )
    if export.nms == "efficientnms_trt":
        job.findings.notes.append(f"{file} holds TensorRT's plugin EfficientNMS_TRT: it was not run here")
        return replace(graph, artifact=artifact, parity=(), gates=())
    proved = prove_file(job, artifact, graph.as_before, limit=BOXES_TOLERANCE, label=f"{graph.artifact.label} with NMS")
    return replace(proved, audits=graph.audits)
