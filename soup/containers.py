"""Which weights a checkpoint holds: the containers of the common trainers, raw or EMA, their wrappers' prefixes."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

from soup.rebuild import Inert, Unreadable
from soup.tensors import TensorSpec

Use = Literal["auto", "raw", "ema"]
Entries = Mapping[str, object]
_RAW_KEYS = ("state_dict", "model_state_dict", "model", "module", "params", "net", "network", "weights")
_EMA_KEYS = (
    "state_dict_ema", "model_ema", "model_ema_state_dict", "model_state_dict_ema", "ema_model_state_dict",
    "ema_state_dict", "ema_model", "ema", "params_ema",
)  # fmt: skip
_INNER_KEYS = ("module", "state_dict", "model")
_COUNTERS = ("n_averaged", "steps")  # torch's AveragedModel, mmengine's averaged models
_PREFIXES = ("module.", "model.")
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_RECORDED = re.compile(
    r"epoch|iter|step|acc|metric|score|loss|map|f1|iou|fitness|top\d|prec|recall|auc|psnr|ssim|err|best", re.IGNORECASE
)
_QUANTISED_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_MAX_MODULES = 100_000
_MAX_NAME = 2_000
_SHOWN = 5
_MAX_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights chosen from a checkpoint: where they were found, of which kind they are, and what was left out."""

    container: str
    kind: Literal["raw", "ema"]
    tensors: Mapping[str, TensorSpec]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    container: str
    entries: Entries


def find_weights(value: object, *, use: Use, drop: Sequence[str]) -> Weights:
    """Choose the EMA weights where there are any (`auto`), or those asked for; rename and drop (fnmatch patterns).

    A pattern is compared with a tensor's name as it stands in the file, and with the name that it has without prefixes.
    Raises ValueError, whose text says what is wrong and what to do.
    """
    raw, ema, notes = _candidates(value)
    found = {"raw": raw, "ema": ema, "auto": ema or raw}[use]
    if found is None:
        raise ValueError(_none_found(value, use, other=raw or ema))
    kind: Literal["raw", "ema"] = "ema" if found is ema else "raw"
    tensors, ignored = _tensors(found.entries)
    tensors, renamed = _renamed(tensors, drop)
    if not tensors:
        raise ValueError("checkpoints.drop leaves no tensor. Drop less.")
    return Weights(found.container, kind, tensors, (*notes, *ignored, *renamed))


def recorded_numbers(value: object) -> dict[str, float | TensorSpec]:
    """Epoch and metrics that a trainer wrote beside the weights; one saved as a tensor comes as its `TensorSpec`."""
    tree = value if isinstance(value, dict) and not _is_flat(value) else {}
    sources = [tree.get("meta"), tree.get("metrics"), tree.get("train_metrics"), *_monitored(tree), tree]
    return {
        str(key): number
        for source in sources
        if isinstance(source, dict)
        for key, item in source.items()
        if isinstance(key, str) and _RECORDED.search(key) and (number := _number(item)) is not None
    }


def listed(names: Sequence[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    shown = ", ".join(f"'{name[:_MAX_SHOWN]}'" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "none"


def _is_flat(tree: Mapping[object, object]) -> bool:
    return any(isinstance(item, TensorSpec) and item.shape not in ((), (1,)) for item in tree.values())


def _number(item: object) -> float | TensorSpec | None:
    if isinstance(item, TensorSpec):
        return item if item.shape in ((), (1,)) and item.dtype.is_floating_point else None
    small = isinstance(item, float) or (type(item) is int and item.bit_length() <= 53)
    return float(item) if small and isinstance(item, (int, float)) else None


def _monitored(tree: Mapping[object, object]) -> Iterator[dict[object, object]]:
    """Lightning's ModelCheckpoint: the score of this very checkpoint, under the name that it monitors."""
    callbacks = tree.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and isinstance(state.get("monitor"), str):
            yield {state["monitor"]: state.get("current_score")}


def _candidates(value: object) -> tuple[_Found | None, _Found | None, tuple[str, ...]]:
    """The raw and the EMA weights of a checkpoint, either of which may be missing."""
    tree = value if isinstance(value, dict) else {}
    raw = [found for key in _RAW_KEYS if (found := _state(tree.get(key), key))]
    ema = [found for key in _EMA_KEYS if (found := _state(tree.get(key), key))]
    notes = [f"also holds weights under '{other.container}', not used" for other in raw[1:] + ema[1:]]
    if current := _state(tree.get("current_model_state"), "current_model_state"):
        return current, _first(raw), tuple(notes)  # Lightning's WeightAveraging puts the average under state_dict
    if "state_dict" in tree and ema and ema[0].container.startswith("ema_state_dict"):
        note = "as in mmengine, 'state_dict' holds the EMA weights and 'ema_state_dict' the raw ones"
        return ema[0], _first(raw), (note, *notes)
    if raw and not ema and tree.get("ema", "") is None and tree.get("updates", "") is None:
        note = "as in a finished Ultralytics training, 'model' holds the EMA weights"
        return None, raw[0], (note, *notes)
    if not raw and not ema and (flat := _state(value, "flat")):
        return (None, flat, ()) if "n_averaged" in flat.entries else (flat, None, ())
    return _first(raw), _first(ema), tuple(notes)


def _first(found: Sequence[_Found]) -> _Found | None:
    return found[0] if found else None


def _state(value: object, container: str) -> _Found | None:
    """A state dict, the state of a pickled module, or one of these a level down, as in `ema.module`."""
    if _is_module(value):
        return _Found(container if container != "flat" else "module", dict(_module_entries(value)))
    if not isinstance(value, dict):
        return None
    tensors = [key for key, item in value.items() if isinstance(item, (TensorSpec, Unreadable))]
    if nameless := [key for key in tensors if not isinstance(key, str)]:
        raise ValueError(f"a tensor has the key {nameless[0]!r}, expected names only. Save model.state_dict().")
    if tensors:
        return _Found(container, {name: item for name, item in value.items() if isinstance(name, str)})
    if container in _EMA_KEYS + _RAW_KEYS:
        return _first([found for key in _INNER_KEYS if (found := _state(value.get(key), f"{container}.{key}"))])
    return None


def _is_module(value: object) -> TypeGuard[Inert]:
    return isinstance(value, Inert) and isinstance(value.state, dict) and isinstance(value.state.get("_modules"), dict)


def _module_entries(module: Inert) -> Iterator[tuple[str, object]]:
    """What a pickled module's `state_dict()` would hold, in order: parameters, persistent buffers, then submodules."""
    waiting, visited = [("", module)], 0
    while waiting:
        prefix, current = waiting.pop()
        visited += 1
        if visited > _MAX_MODULES or len(prefix) > _MAX_NAME:
            raise ValueError("its pickled module is nested without end. Save its state_dict() instead.")
        if current.name.startswith(_QUANTISED_MODULES):
            raise ValueError(f"its module '{prefix}' is quantised ({current.name}). Average before quantising.")
        state = current.state if isinstance(current.state, dict) else {}
        transient = state.get("_non_persistent_buffers_set")
        passing = transient if isinstance(transient, set) else ()
        buffers = [(name, item) for name, item in _items(state.get("_buffers")) if name not in passing]
        for name, item in [*_items(state.get("_parameters")), *buffers]:
            if item is not None:
                yield prefix + name, item
        children = [(f"{prefix}{name}.", child) for name, child in _items(state.get("_modules")) if _is_module(child)]
        waiting.extend(reversed(children))


def _items(value: object) -> list[tuple[str, object]]:
    return [(name, item) for name, item in value.items() if isinstance(name, str)] if isinstance(value, dict) else []


def _tensors(entries: Entries) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    for name, item in entries.items():
        for part in item if isinstance(item, (tuple, list)) else (item,):
            if isinstance(part, Unreadable):
                raise ValueError(f"tensor '{name}' is {part.what}. Save ordinary dense tensors instead.")
    tensors = {name: item for name, item in entries.items() if isinstance(item, TensorSpec)}
    counters = [name for name in _COUNTERS if name in tensors and tensors[name].size_bytes <= 8]
    if counters and all(name.startswith("module.") or name in counters for name in tensors):
        tensors = {name: spec for name, spec in tensors.items() if name not in counters}
    left = [name for name in entries if name not in tensors]
    return tensors, (f"ignored what is no weight: {listed(left)}",) if left else ()


def _renamed(tensors: dict[str, TensorSpec], drop: Sequence[str]) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    """Without wrappers, prefixes and what `drop` matches; dropping can bring out a prefix that all others share."""
    dropped = [name for name in tensors if _matches(name, drop)]
    left = {name: spec for name, spec in tensors.items() if name not in dropped}
    while True:
        named = _without_prefixes(list(left))
        more = [name for name in left if _matches(named[name], drop)]
        if not more:
            break
        dropped += more
        left = {name: spec for name, spec in left.items() if name not in more}
    notes = [f"dropped: {listed(dropped)}"] if dropped else []
    changed = next((name for name in left if named[name] != name), None)
    if changed is not None:
        notes.append(f"names changed as in '{changed}' → '{named[changed]}'")
    if len(set(named.values())) < len(left):
        raise ValueError("two tensors have one name once wrappers such as '_orig_mod.' are removed. Drop one of them.")
    return {named[name]: spec for name, spec in left.items()}, tuple(notes)


def _without_prefixes(names: Sequence[str]) -> dict[str, str]:
    """Each name without the wrappers of compile, FSDP and checkpointing, and without the prefixes that all share."""
    named = {name: _WRAPPERS.sub("", name) for name in names}
    while prefix := _shared_prefix(list(named.values())):
        named = {name: short.removeprefix(prefix) for name, short in named.items()}
    return named


def _shared_prefix(names: Sequence[str]) -> str | None:
    shared = (prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names))
    return next(shared, None) if names else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _none_found(value: object, use: Use, *, other: _Found | None) -> str:
    if other is not None:
        return f"has no {use} weights, only those under '{other.container}'. Set checkpoints.use to auto."
    if isinstance(value, dict):
        keys = [key for key in value if isinstance(key, str)]
        return f"holds no weights under a known name; its entries: {listed(keys)}. Save the model's state_dict() alone."
    what = value.name if isinstance(value, Inert) else type(value).__name__
    return f"holds no weights, only {what}. Save the model's state_dict() instead."
