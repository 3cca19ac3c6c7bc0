"""What val.yaml says of the ONNX file, its precision, and the engine that is built from it, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from exporters.precision import Precision as PrecisionName
from soup.sections import Count, Dtype, Flag, Number, Section, Spec, Text, Whole, expects

Precision = Annotated[PrecisionName, expects("'fp32', 'fp16' or 'int8'")]


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), expects("64 hexadecimal digits")]


class Quantization(Section):
    """INT8: where its ranges come from, and what may be spent on finding the layers that must stay higher."""

    samples: Annotated[Whole, Field(ge=32)] = 500
    """training images that the ranges are measured on; none of them is in val or test"""
    method: Literal["entropy", "percentile", "minmax", "mse"] = "entropy"
    """how a range is taken from what was measured: least divergence (entropy), a percentile of the magnitudes, all of
    it (minmax), or the least squared error (mse)"""
    percentile: Annotated[Number, Field(gt=50, le=100)] = 99.99
    """of the magnitudes, for the method percentile"""
    backend: Literal["onnxruntime", "modelopt"] = "onnxruntime"
    """what places the Q/DQ nodes; modelopt is NVIDIA's, where it is installed"""
    rest: Annotated[Literal["fp32", "fp16"], expects("'fp32' or 'fp16'")] = "fp32"
    """what the layers that are not INT8 compute in"""
    budget: Annotated[Whole, Field(ge=0)] = 100
    """evaluations that a failed accuracy gate may spend on finding the layers to keep higher; 0 never looks"""


class DynamicBatch(Section):
    """A batch size that is free between two bounds."""

    min: Count
    """smallest batch"""
    opt: Count
    """the batch that the engine is tuned for"""
    max: Count
    """largest batch"""

    @model_validator(mode="after")
    def _ordered(self) -> DynamicBatch:
        if not self.min <= self.opt <= self.max:
            raise ValueError("expected min <= opt <= max")
        return self


class Engine(Section):
    """How TensorRT builds the engine."""

    workspace_mb: Count | None = None
    """most memory for the builder's workspace; null is half of what is free"""
    optimization_level: Annotated[Whole, Field(ge=0, le=5)] | None = None
    """0 builds fastest, 5 looks longest; null is TensorRT's own"""
    version_compatible: Flag = False
    """whether later versions of TensorRT may run it, too"""
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """GPUs beside the builder's that may run it"""
    refit: Flag = False
    """whether its weights may be exchanged later"""
    strip_weights: Flag = False
    """whether it is built without weights, to be refitted on the device"""
    timing_cache: Text | None = None
    """file of layer timings, relative to val.yaml: read where it exists, and written anew by the build"""
    timing_cache_sha256: Sha256 | None = None
    """its SHA-256, needed where it exists"""
    dla_core: Annotated[Whole, Field(ge=0)] | None = None
    """build for this core of a deep-learning accelerator; what it cannot run falls back to the GPU"""


class Export(Section):
    """The ONNX file and what is built from it."""

    batch: Annotated[Count | DynamicBatch, expects("a whole number from 1, or {min, opt, max} in rising order")] = 1
    """images per call: a number is static, {min, opt, max} is dynamic"""
    profiles: tuple[DynamicBatch, ...] = ()
    """more than one range that the engine is tuned for, within a dynamic batch; empty is the batch itself"""
    inputs: Mapping[Text, Dtype] = Field(default_factory=dict)
    """name and dtype of each graph input, in order; empty keeps the model's own"""
    outputs: Mapping[Text, Dtype] = Field(default_factory=dict)
    """name and dtype of each graph output, in order; empty keeps the model's own"""
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] | None = None
    """precisions in the order of preference: the first that builds and passes its gates ships; null is fp32, with --trt
    fp16 and then fp32"""
    preprocess: Literal["outside", "in_graph"] = "outside"
    """in_graph: the graph takes uint8 frames [n, height, width, channels] after resize and crop, and normalises them"""
    frames: Literal["rgb", "bgr", "gray"] | None = None
    """channel order of those frames; null is preprocess.color"""
    target: Text | None = None
    """the device that the release is for, as jetson-orin-jp6.2 or rtx-4060; decides what may be asked and built"""
    engine: Engine = Field(default_factory=Engine)
    """how TensorRT builds the engine"""
    nms: Annotated[Literal["none", "onnx", "efficientnms_trt"], expects("'none', 'onnx' or 'efficientnms_trt'")] = (
        "none"
    )
    """where a detector's boxes are thinned out: after the graph, inside by ONNX's operators, or by TensorRT's plugin"""
    prepare: Spec | None = None
    """callable(model) -> model, called before the export"""
    opset: Annotated[Whole, Field(ge=13, le=24)] = 18
    """ONNX opset that the file must have; a target's greatest is kept to"""

    @field_validator("precision")
    @classmethod
    def _each_once(cls, precision: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if precision is not None and len(set(precision)) != len(precision):
            raise ValueError("names a precision twice")
        return precision

    @field_validator("profiles")
    @classmethod
    def _within_the_batch(cls, profiles: tuple[DynamicBatch, ...], info: ValidationInfo) -> tuple[DynamicBatch, ...]:
        batch = info.data.get("batch")
        if not profiles or batch is None:
            return profiles
        if isinstance(batch, int):
            raise ValueError("are for a dynamic batch. Give export.batch as {min, opt, max}")
        if any(one.min < batch.min or one.max > batch.max for one in profiles):
            raise ValueError(f"expected each within export.batch, {batch.min} to {batch.max}")
        return profiles

    @field_validator("frames")
    @classmethod
    def _frames_are_for_the_graph(cls, frames: str | None, info: ValidationInfo) -> str | None:
        if frames is not None and info.data.get("preprocess") != "in_graph":
            raise ValueError("is the order of camera frames, for export.preprocess: in_graph only. Set that too")
        return frames
