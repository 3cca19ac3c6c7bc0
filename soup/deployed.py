"""A candidate as it will run: exported, converted to the deployed precision and asked through ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import nn

from exporters.precision import Precision
from exporters.runtimes import Arrays, OnnxRuntime, Predict
from exporters.torch_to_onnx import torch_to_onnx
from soup.tensors import StateDict
from soup.variants import Forge, Images, Rules

_TRACED = 8  # samples that the exporter traces with


@dataclass(frozen=True, slots=True)
class Deployed:
    """Runs candidates of one network in the precision that they will have, in place of `runner.Runner`.

    `model` holds a candidate's weights when it is asked. `rules` and `images` are for its ranges.
    """

    model: nn.Module
    precision: Precision
    rules: Rules
    images: Images
    opset: int
    batch: int

    @property
    def facts(self) -> Mapping[str, object]:
        """All that an answer depends on beside weights and samples, for the ledger."""
        return {
            "precision": self.precision, "method": self.rules.method, "percentile": self.rules.percentile,
            "backend": self.rules.backend, "rest": self.rules.rest, "images": len(self.images.array),
            "list_sha256": self.images.list_sha256, "opset": self.opset,
            "versions": {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")},
        }  # fmt: skip

    @property
    def name(self) -> str:
        """As the report and the ledger name what evaluates."""
        return f"{self.precision} in onnxruntime"

    def predict(self, state: StateDict, reference: Predict) -> Predict:
        """The network with the weights that it has now, under torch's names of its outputs.

        Each candidate has ranges of its own, as the one that ships will have.
        Raises ExportError or CalibError for a network that cannot be exported or converted.
        """
        example = {"input": self.images.array[np.arange(_TRACED) % len(self.images.array)]}
        names = list(reference({"input": example["input"][:1]}))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.onnx"
            torch_to_onnx(
                self.model.to("cpu").eval(), example, path, inputs={}, outputs={}, opset=self.opset,
                batch=(1, self.batch, self.batch), metadata={}, simplify=False,
            )  # fmt: skip
            forge = Forge(path.read_bytes(), lambda: self.images, self.rules, where="a candidate")
        runtime = OnnxRuntime(forge.make(self.precision).graph, where="a candidate", batch=(1, self.batch, self.batch))

        def predict(inputs: Arrays) -> Arrays:
            (array,) = inputs.values()
            outputs = runtime({info.name: array.astype(info.dtype, copy=False) for info in runtime.inputs})
            return {name: out.astype(np.float32) for name, out in zip(names, outputs.values(), strict=True)}

        return predict
