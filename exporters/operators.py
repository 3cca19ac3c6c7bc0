"""What a parser's refusal means: the node, its operator, the reason, and the opset that has the operator."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from exporters.onnx_types import nodes
from exporters.trt_api import has


def parser_error(trt: ModuleType, failure: Any, model: bytes) -> str:
    """One sentence part for a ParserError; TensorRT 8.6 tells the node by its number only, which the file resolves."""
    reason = str(failure.desc())
    if reason == "false":  # a bare assertion: its function is all there is
        reason = f"not supported ({failure.code().name}, {failure.func()})"
    elif quoted := re.search(r'&& "(.+)"', reason):  # an assertion with its explanation
        reason = quoted[1]
    name, operator = _node(trt, failure, model)
    if not operator:
        return reason
    return f"node '{name}' ({operator}): {reason.rstrip('.')}{_since(operator)}"


def first_opset(operator: str) -> int | None:
    """The first opset of ONNX's default domain with this operator; None where no opset has it.

    Raises ImportError without the onnx package.
    """
    import onnx.defs

    versions = [item.since_version for item in onnx.defs.get_all_schemas_with_history() if item.name == operator
                and item.domain == ""]  # fmt: skip
    return min(versions, default=None)


def _node(trt: ModuleType, failure: Any, model: bytes) -> tuple[str, str]:
    if has(trt, "node_names"):
        return str(failure.node_name()), str(failure.node_operator())
    number, found = int(failure.node()), nodes(model)
    return (found[number].name, found[number].op) if 0 <= number < len(found) else ("", "")


def _since(operator: str) -> str:
    """What onnx says of the operator; nothing where onnx is not installed, as on a device."""
    try:
        opset = first_opset(operator)
    except ImportError:
        return ""
    if opset is None:
        return " (no opset of ONNX has this operator)"
    return f" (ONNX has this operator since opset {opset})"
