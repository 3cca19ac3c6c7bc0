"""One FP32 graph in another precision: ranges measured once on real images, then as many variants as are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calib.ranges import Method, RangeTable, measure_ranges
from calib.real_images import refuse_unreal
from exporters.in_graph import PREPROCESS
from exporters.int8_plan import Int8Plan, plan_int8
from exporters.layers import Layer, compute_layers
from exporters.modelopt import onnx_to_int8_modelopt
from exporters.onnx_facts import onnx_facts
from exporters.onnx_to_fp16 import Span, onnx_to_fp16, spans
from exporters.onnx_to_int8 import calibration_tensors, to_int8
from exporters.precision import Precision
from exporters.runtimes import Arrays
from exporters.tapped import tapped
from soup import Progress, SoupError, silent
from soup.files import sha256_bytes

_ROWS = 16  # images at once while every activation of the graph is an output
_FP16_IMAGES = 64  # of the calibration images, for the spans that decide what stays FP32


@dataclass(frozen=True, slots=True)
class Rules:
    """How INT8 is made: `quantization` of val.yaml as plain values."""

    method: Method
    percentile: float
    backend: Literal["onnxruntime", "modelopt"]
    rest: Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True)
class Images:
    """Real images as the graph is fed, first axis the image; the hash of their list, and the split they are from."""

    array: np.ndarray
    list_sha256: str
    split: str


@dataclass(frozen=True, slots=True)
class Variant:
    """A graph in a lower precision, and the layers that stayed higher with the reason."""

    precision: Precision
    graph: bytes
    kept: Mapping[str, str]


@dataclass(slots=True)
class Forge:
    """Makes variants of one FP32 graph; what is measured on the images is kept between them.

    `images` is asked for at most once, and not before they are needed.
    """

    graph: bytes
    images: Callable[[], Images]
    rules: Rules
    where: str
    progress: Progress = silent
    known: RangeTable | None = None  # used again where it is of this very graph, these images and this method
    _images: Images | None = None
    _spans: Mapping[str, Span] | None = None
    _table: RangeTable | None = None
    _plan: Int8Plan | None = None
    _layers: tuple[Layer, ...] | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The graph's layers that multiply and add."""
        if self._layers is None:
            import onnx

            self._layers = compute_layers(onnx.ModelProto.FromString(self.graph))
        return self._layers

    def make(self, precision: Precision, *, keep: Collection[str] = (), only: Collection[str] | None = None) -> Variant:
        """The graph in `precision`, but for the layers in `keep`, or in nothing but the layers in `only`.

        Raises CalibError (input) where the images cannot give ranges, ExportError where the graph cannot be converted.
        """
        if only is not None:
            keep = [layer.name for layer in self.layers if layer.name not in only]
        if precision == "fp32":
            return Variant("fp32", self.graph, {})
        return self._fp16(self.graph, keep) if precision == "fp16" else self._int8(keep)

    @property
    def measured(self) -> RangeTable | None:
        """The ranges, where they were needed."""
        return self._table

    def table(self) -> RangeTable:
        """The range of every activation that INT8 needs; measured at the first call, on images that are real."""
        if self._table is None:
            images = self._real_images()
            percentile = self.rules.percentile if self.rules.method == "percentile" else None
            facts = (self.rules.method, len(images.array), images.list_sha256, sha256_bytes(self.graph))
            known = self.known
            if known and (known.method, known.samples, known.list_sha256, known.graph_sha256) == facts:
                self._table = known if known.percentile == percentile else None
            self._table = self._table or RangeTable(*facts, self._all_ranges(), percentile)
        return self._table

    def _all_ranges(self) -> dict[str, tuple[float, float]]:
        names = calibration_tensors(self.graph)
        return measure_ranges(
            lambda: tapped(self.graph, names, self._batches(), where=self.where),
            method=self.rules.method, percentile=self.rules.percentile, unclipped=_pixels(self.graph),
        )  # fmt: skip

    def _fp16(self, graph: bytes, keep: Collection[str]) -> Variant:
        if self._spans is None:
            self._spans = spans(self.graph, self._batches(_FP16_IMAGES), where=self.where)
        made = onnx_to_fp16(graph, self._spans, keep=keep, where=self.where)
        return Variant("fp16", made.model, made.kept)

    def _int8(self, keep: Collection[str]) -> Variant:
        if self.rules.backend == "modelopt":
            self._real_images()
            made = onnx_to_int8_modelopt(
                self.graph, self._batches, method=self.rules.method, keep=keep, where=self.where
            )
        else:
            self._plan = self._plan or plan_int8(self.graph, where=self.where)
            made = to_int8(self._plan, self.table().ranges, keep=keep, where=self.where)
        graph = made.model if self.rules.rest == "fp32" else self._fp16(made.model, ()).graph
        return Variant("int8", graph, made.kept)

    def _real_images(self) -> Images:
        """Images that may calibrate INT8. Raises CalibError for noise, constants and too few, SoupError for val's."""
        images = self._loaded()
        if images.split != "train":
            raise SoupError(
                "data.train: not given, expected real images that are in neither val nor test to measure INT8 ranges "
                "on. Give it, or leave int8 out of export.precision."
            )
        refuse_unreal(images.array, where=f"data.{images.split}")
        return images

    def _batches(self, count: int | None = None) -> Iterator[Arrays]:
        """The first `count` images, a few at once, as the graph takes them: whole batches where it has a static one.

        The last of those is filled up by images from the beginning, so that none is left out.
        """
        array, (info,) = self._loaded().array[:count], onnx_facts(self.graph, where=self.where).inputs
        size = info.shape[0] if isinstance(info.shape[0], int) else 1
        step, total = size * max(1, _ROWS // size), -(-len(array) // size) * size
        for start in range(0, total, step):
            self.progress("measuring activations", start, total)
            rows = np.arange(start, min(start + step, total)) % len(array)
            yield {info.name: array[rows].astype(info.dtype, copy=False)}

    def _loaded(self) -> Images:
        if self._images is None:
            self._images = self.images()
        return self._images


def _pixels(graph: bytes) -> set[str]:
    """The tensors that hold the image itself: inputs, and what in-graph preprocessing makes of them.

    Their range is known and all of it is used. A threshold from a histogram cuts off what is rare in images with a
    plain background, which is all that they show (16 points of accuracy lost on digits; docs/decisions.md).
    """
    import onnx

    proto = onnx.ModelProto.FromString(graph).graph
    made = {name for node in proto.node if node.name.startswith(PREPROCESS) for name in node.output}
    return {value.name for value in proto.input} | made
