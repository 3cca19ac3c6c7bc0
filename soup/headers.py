"""What names, shapes and dtypes alone tell about averaging, before a byte of a tensor is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from soup.checkpoint import Checkpoint

Table = Mapping[str, tuple[tuple[int, ...], str]]  # name → (shape, dtype), as `models.tensor_table`
Like = Literal["the model", "the first ingredient"]
FEW = 6  # tensors that are named one by one

_QUANTISED = re.compile(
    r"(^|[._])(zero_points?|fake_quant\w*|activation_post_process\w*|observer_enabled|packed_params|quantizer)(\.|$)"
)
_BYTES = ("int8", "uint8", "float8")  # how quantised weights are stored; the last one with its variants


def table_of(checkpoint: Checkpoint) -> Table:
    """Name → (shape, dtype) of an ingredient's tensors, in the file's order."""
    return {name: (spec.shape, str(spec.dtype).removeprefix("torch.")) for name, spec in checkpoint.tensors.items()}


def is_floating(dtype: str) -> bool:
    """True for what is averaged: float16, bfloat16, … and complex numbers."""
    return dtype.startswith(("float", "bfloat", "complex"))


def unaverageable(table: Table) -> list[str]:
    """Why tensors named like these have no meaningful average: one sentence for each kind of reason found."""
    kinds = {
        _parametrised: "is part of a parametrised weight (weight norm, spectral norm, …), and averaging the parts is "
        "not averaging the weight. Save the checkpoints after torch.nn.utils.parametrize.remove_parametrizations "
        "(or remove_weight_norm, remove_spectral_norm).",
        _quantised: "comes from quantisation or quantisation-aware training, whose scales and observers have no "
        "average. Average the checkpoints of before, and quantise the soup.",
    }
    found = ((next((name for name in table if test(name, table)), None), reason) for test, reason in kinds.items())
    return [f"tensor '{name}' {reason}" for name, reason in found if name is not None]


def differences(table: Table, expected: Table, *, like: Like) -> list[str]:
    """Everything in which names, shapes and kinds of numbers (float or not) of `table` differ from `expected`.

    A sentence for each kind of difference. Of more than FEW names, those that are all of a module stand as 'module.*',
    which leaves nothing out.
    """
    missing = [name for name in expected if name not in table]
    unexpected = [name for name in table if name not in expected]
    shared = [name for name in expected if name in table]
    if table and expected and not shared:
        found, wanted = _grouped(unexpected, table), _grouped(missing, expected)
        return [f"shares no tensor with {like}: it is of another network. It has {found}; {like} has {wanted}."]
    lines = [_folded(missing, unexpected, expected, like=like)] if _is_folded(missing, unexpected, expected) else []
    if missing:
        lines.append(f"lacks {_counted(missing)} that {like} has: {_grouped(missing, expected)}.")
    if unexpected:
        lines.append(
            f"has {_counted(unexpected)} that {like} lacks: {_grouped(unexpected, table)}. "
            "checkpoints.drop leaves tensors out."
        )
    reshaped = {name: (table[name][0], expected[name][0]) for name in shared if table[name][0] != expected[name][0]}
    if reshaped and (head := _head(table, expected, reshaped)):
        classes = [shape[0] for shape in next(iter(reshaped.values()))]
        lines.append(f"the last layer '{head}' has {classes[0]} classes, expected {classes[1]} as in {like}.")
    kinds = {name: (table[name][1], expected[name][1]) for name in shared if table[name][1] != expected[name][1]}
    mixed = {name: pair for name, pair in kinds.items() if not all(map(is_floating, pair))}
    return [*lines, *_unlike(reshaped, "has shape", like=like), *_unlike(mixed, "is", like=like)]


def other_precision(table: Table, expected: Table) -> list[str]:
    """Names of floating tensors whose dtype is not that of `expected`."""
    return [name for name, (_, dtype) in table.items() if is_floating(dtype) and dtype != expected[name][1]]


def only_float16(table: Table) -> bool:
    """True where every floating tensor is float16, as trainers that strip their checkpoints leave them."""
    dtypes = {dtype for _, dtype in table.values() if is_floating(dtype)}
    return dtypes == {"float16"}


def _parametrised(name: str, table: Table) -> bool:
    stem, _, suffix = name.rpartition("_")
    partner = {"g": "v", "orig": "u"}.get(suffix)  # torch.nn.utils.weight_norm and spectral_norm
    in_pair = partner is not None and stem.rpartition(".")[2].startswith("weight") and f"{stem}_{partner}" in table
    return in_pair or ".parametrizations." in f".{name}"


def _quantised(name: str, table: Table) -> bool:
    shape, dtype = table[name]
    return bool(_QUANTISED.search(name)) or (name.endswith("weight") and len(shape) > 1 and dtype.startswith(_BYTES))


def _new_biases(unexpected: Collection[str], expected: Table) -> list[str]:
    """Biases of layers that have none in `expected`, where a folded BatchNorm leaves its shift."""
    return [name for name in unexpected if name.endswith("bias") and f"{name.removesuffix('bias')}weight" in expected]


def _is_folded(missing: Collection[str], unexpected: Collection[str], expected: Table) -> bool:
    return any(name.endswith("running_mean") for name in missing) and bool(_new_biases(unexpected, expected))


def _folded(missing: Collection[str], unexpected: Collection[str], expected: Table, *, like: Like) -> str:
    statistics = next(name for name in missing if name.endswith("running_mean"))
    bias = _new_biases(unexpected, expected)[0]
    return (
        f"BatchNorm is already folded into its layers ('{bias}' is here, '{statistics}' of {like} is not), and "
        "averaging folded weights is not folding averaged ones. Take the checkpoints of before fusing."
    )


def _head(table: Table, expected: Table, reshaped: Collection[str]) -> str | None:
    """The module that alone differs, in its first axis only, and has the last matrix: a head for other classes."""
    modules = {name.rpartition(".")[0] for name in reshaped}
    matrices = [name for name, (shape, _) in expected.items() if len(shape) > 1]
    last = matrices[-1].rpartition(".")[0] if matrices else None
    first_axis_only = all(
        shape and table[name][0][1:] == shape[1:] and len(table[name][0]) == len(shape)
        for name, (shape, _) in expected.items()
        if name in reshaped
    )
    return last if modules == {last} and first_axis_only else None


def _unlike(pairs: Mapping[str, tuple[object, object]], verb: str, *, like: Like) -> list[str]:
    """(found, expected) by tensor: a sentence each, or one for all of more than FEW."""
    if len(pairs) <= FEW:
        return [
            f"tensor '{name}' {verb} {found}, expected {wanted} as in {like}."
            for name, (found, wanted) in pairs.items()
        ]
    groups: dict[tuple[object, object], list[str]] = {}
    for name, pair in pairs.items():
        groups.setdefault(pair, []).append(f"'{name}'")
    listed = "; ".join(f"{found} for {wanted}: {', '.join(names)}" for (found, wanted), names in groups.items())
    what = "shape" if verb == "has shape" else "dtype"
    return [f"{len(pairs)} tensors have another {what} than in {like}. {listed}."]


def _counted(names: Collection[str]) -> str:
    return "a tensor" if len(names) == 1 else f"{len(names)} tensors"


def _grouped(names: Sequence[str], among: Table) -> str:
    """The names, or of more than FEW the largest modules of `among` whose tensors are all in them."""
    if len(names) <= FEW:
        return ", ".join(f"'{name}'" for name in names)
    chosen = set(names)
    mixed = {module for name in among if name not in chosen for module in _modules(name)}
    groups = Counter(next((module for module in _modules(name) if module not in mixed), name) for name in names)
    lone = {group: name for name in names for group in _modules(name) if groups[group] == 1}
    return ", ".join(f"'{lone.get(group, group)}'" if count == 1 else f"'{group}.*'" for group, count in groups.items())


def _modules(name: str) -> list[str]:
    """The modules that a tensor is in, outermost first."""
    return ["".join(part) for part in accumulate(re.split(r"(?=\.)", name)[:-1])]
