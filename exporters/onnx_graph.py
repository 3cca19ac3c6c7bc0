"""An ONNX graph in memory made fit to ship: nothing local inside, valid, and slimmer where that changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporters import ExportError
from exporters.onnx_facts import onnx_facts
from exporters.parity import compare_outputs, within
from exporters.quiet import quiet
from exporters.runtimes import Arrays, OnnxRuntime


def clean_bytes(model: bytes, *, metadata: Mapping[str, str], where: str) -> bytes:
    """The model without doc strings and exporter metadata (they hold local paths), with `metadata` of its own, checked.

    The same model and metadata give the same bytes.

    Raises:
        ExportError: where ONNX's own checker, shape inference included, does not accept it.
    """
    import onnx

    proto = onnx.ModelProto.FromString(model)
    _strip(proto)
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{where}: ONNX's checker refuses the exported graph: {error}") from error
    cleaned: bytes = proto.SerializeToString(deterministic=True)
    return cleaned


def slim_bytes(model: bytes, *, example: Arrays, batches: Sequence[int], where: str) -> tuple[bytes | None, str]:
    """onnxslim's version of the model, or None; and a sentence that says why.

    It is kept only where ONNX Runtime gives the same outputs for `example` as before, at each of the batch sizes.
    """
    try:
        slimmed = _onnxslim(model)
    except ImportError:
        return None, "not simplified: onnxslim is not installed (pip install 'edgesoup[build]')"
    # An optional step must not cost the release, and onnxslim has no error class of its own.
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        return None, f"not simplified: onnxslim failed with {type(error).__name__}: {error}"
    try:
        same = all(_same(model, slimmed, example, batch=batch, where=where) for batch in batches)
    except ExportError as error:
        return None, f"not simplified: its parity could not be shown: {error}"
    if not same:
        return None, "not simplified: onnxslim's graph has another interface or other outputs than the exported one"
    return slimmed, "simplified by onnxslim; same outputs as the exported graph by ONNX Runtime"


def _onnxslim(model: bytes) -> bytes:
    import onnx
    import onnxslim

    with quiet():
        slimmed = onnxslim.slim(onnx.ModelProto.FromString(model))  # it works in place: a copy
    serialized: bytes = slimmed.SerializeToString(deterministic=True)
    return serialized


def _same(before: bytes, after: bytes, example: Arrays, *, batch: int, where: str) -> bool:
    """Same opset and interface, and the same outputs."""
    was, now = onnx_facts(before, where=where), onnx_facts(after, where=where)
    if (was.opset, was.inputs, was.outputs) != (now.opset, now.inputs, now.outputs):
        return False
    with (
        OnnxRuntime(before, where=where, batch=batch) as reference,
        OnnxRuntime(after, where=where, batch=batch) as slim,
    ):
        return within(compare_outputs(reference(example), slim(example)))


def _strip(message: Any) -> None:
    """Clear doc strings and metadata of a protobuf message and of all inside it, in place."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in [value] if hasattr(value, "ListFields") else value:
                _strip(child)
