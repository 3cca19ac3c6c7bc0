"""The interface that a device's code is written against, and what a new model changes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from exporters.runtimes import TensorInfo
from soup.gates import Check, Subject

_CHANNELS = (1, 3, 4)
_IN_GRAPH = ("mean", "std", "color")  # what a graph that takes frames does by itself


@dataclass(frozen=True, slots=True)
class Interface:
    """What goes in and what comes out, in the model's order.

    `classes` and `preprocess` are None where the file does not tell; no preprocessing at all is an empty one.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    classes: tuple[str, ...] | None = None
    preprocess: Mapping[str, JsonValue] | None = None

    @property
    def takes_frames(self) -> bool:
        """Whether it normalises by itself: every input is uint8."""
        return all(info.dtype == "uint8" for info in self.inputs)


def contract_check(was: Interface, now: Interface, subject: Subject) -> Check:
    """Fail with every difference that a device would notice, of names, order, dtypes, shapes, layouts, preprocessing
    and classes."""
    changed = changes(was, now)
    ends = [", ".join(_shown(info) for info in infos) for infos in (now.inputs, now.outputs)]
    message = f"the interface changed: {'; '.join(changed)}" if changed else f"as before: {ends[0]} → {ends[1]}"
    return Check(subject.name, subject.hop, "contract", "fail" if changed else "pass", message, where=subject.where)


def changes(was: Interface, now: Interface) -> tuple[str, ...]:
    """Every difference, a sentence's part each. A dynamic axis is one whatever its name."""
    return (
        *_tensors("input", was.inputs, now.inputs),
        *_tensors("output", was.outputs, now.outputs),
        *preprocess_changes(was, now),
        *_classes(was.classes, now.classes),
    )


def preprocess_changes(was: Interface, now: Interface) -> tuple[str, ...]:
    """Every key that differs, where both tell theirs; but for what graphs that take frames do by themselves."""
    if was.preprocess is None or now.preprocess is None:
        return ()
    if not was.preprocess or not now.preprocess:
        words = ["given" if one else "none" for one in (now.preprocess, was.preprocess)]
        return (f"preprocessing is {words[0]}, was {words[1]}",) if words[0] != words[1] else ()
    skipped = _IN_GRAPH if was.takes_frames and now.takes_frames else ()
    keys = [key for key in {**was.preprocess, **now.preprocess} if key not in skipped]
    pairs = [(key, now.preprocess.get(key), was.preprocess.get(key)) for key in keys]
    return tuple(f"preprocess.{key} is {_value(new)}, was {_value(old)}" for key, new, old in pairs if new != old)


def layout(shape: Sequence[int | str]) -> str | None:
    """NCHW or NHWC of an image by where its 1, 3 or 4 channels are; None where that does not tell."""
    if len(shape) != 4 or (shape[1] in _CHANNELS) == (shape[3] in _CHANNELS):
        return None
    return "NCHW" if shape[1] in _CHANNELS else "NHWC"


def _tensors(kind: str, was: Sequence[TensorInfo], now: Sequence[TensorInfo]) -> list[str]:
    old, new = {info.name: info for info in was}, {info.name: info for info in now}
    found = [f"{kind} '{name}' is gone" for name in old if name not in new]
    found += [f"{kind} {_shown(info)} is new" for name, info in new.items() if name not in old]
    common = [name for name in old if name in new]
    if common != [name for name in new if name in old]:
        found.append(f"the {kind}s come in another order: {', '.join(new)}, were {', '.join(old)}")
    for name in common:
        before, after = old[name], new[name]
        if before.dtype != after.dtype:
            found.append(f"{kind} '{name}' is {after.dtype}, was {before.dtype}")
        if _fixed(before.shape) != _fixed(after.shape):
            found.append(
                f"{kind} '{name}' is {_axes(after.shape, before.shape)}, was {_axes(before.shape, after.shape)}"
            )
    return found


def _classes(was: Sequence[str] | None, now: Sequence[str] | None) -> list[str]:
    if was is None or now is None or tuple(was) == tuple(now):
        return []
    if len(was) != len(now):
        return [f"there are {len(now)} classes, were {len(was)}"]
    moved = [at for at in range(len(was)) if was[at] != now[at]]
    more = f" (and {len(moved) - 1} more)" if len(moved) > 1 else ""
    return [f"class {moved[0]} is '{now[moved[0]]}', was '{was[moved[0]]}'{more}"]


def _fixed(shape: Sequence[int | str]) -> list[int | None]:
    return [axis if isinstance(axis, int) else None for axis in shape]


def _axes(shape: Sequence[int | str], other: Sequence[int | str]) -> str:
    """A shape, with its layout where that is what differs."""
    told = layout(shape)
    named = f"{told} " if told and layout(other) and told != layout(other) else ""
    return f"{named}({', '.join(map(str, shape))})"


def _shown(info: TensorInfo) -> str:
    return f"'{info.name}' {info.dtype} ({', '.join(map(str, info.shape))})"


def _value(value: JsonValue) -> str:
    return "none" if value is None else str(value)
