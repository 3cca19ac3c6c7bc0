"""A pickle read as data: tensors become `TensorSpec`, all else that it names an inert record. Nothing is imported.

The opcodes are interpreted here, so none has a way to run code, and none can allocate more than the pickle is long:
a memo index is only a dict key, a length only what was really read.
"""

from __future__ import annotations

import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from soup import SoupError
from soup.rebuild import Inert, Storage, as_key, natural, rebuild

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
}  # fmt: skip
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


@dataclass(frozen=True, slots=True)
class Unpickled:
    """The value at the top of a pickle, and the names of all that loading it would have called."""

    value: object
    inert: tuple[str, ...]


@dataclass(slots=True)
class _Machine:
    """The pickle virtual machine: its stack, the marks on it and its memo; and what the file offers as storages."""

    file: Path
    storages: Mapping[str, tuple[int, int]]
    file_bytes: int
    stack: list[object] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[object, object] = field(default_factory=dict)
    inert: set[str] = field(default_factory=set)


def unpickle(data: bytes, storages: Mapping[str, tuple[int, int]], *, file: Path) -> Unpickled:
    """Interpret a pickle of `torch.save`; `storages` gives each storage's offset in `file` and its size in bytes.

    Raises SoupError, and nothing else, whatever the bytes are.
    """
    machine = _Machine(file, storages, sum(size for _, size in storages.values()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns of odd escapes in a string
            _run(machine, data)
        return Unpickled(machine.stack.pop(), tuple(sorted(machine.inert)))
    except (ValueError, LookupError) as error:
        raise SoupError(f"{file}: its pickle cannot be read: {error}. Copy or save the checkpoint again.") from error


def _run(machine: _Machine, data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _LITERALS:
            machine.stack.append(argument)
        elif opcode.name in _OPCODES:
            _OPCODES[opcode.name](machine, argument)
        else:
            raise ValueError(f"opcode {opcode.name} has no place in a checkpoint")


def _call(machine: _Machine, function: object, args: object) -> None:
    if not isinstance(function, Inert) or not isinstance(args, tuple):
        raise ValueError("what it calls is no function")
    result = rebuild(function.name, args)
    if isinstance(result, Inert):
        machine.inert.add(result.name)
    machine.stack.append(result)


def _reduce(machine: _Machine, _: object) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    _call(machine, function, args)


def _reduce_with_keywords(machine: _Machine, _: object) -> None:
    machine.stack.pop()
    _reduce(machine, None)


def _instance(machine: _Machine, argument: object) -> None:
    """OBJ has its class as the first item after the mark, INST in its argument."""
    items = _since_mark(machine)
    function = items.pop(0) if argument is None else Inert(_dotted(argument))
    _call(machine, function, tuple(items))


def _global(machine: _Machine, argument: object) -> None:
    """STACK_GLOBAL has the two names on the stack, GLOBAL in its argument."""
    if argument is None:
        name, module = machine.stack.pop(), machine.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global has no name")
        argument = f"{module} {name}"
    name = _dotted(argument)
    machine.stack.append(_DTYPES.get(name) or Inert(name))


def _dotted(argument: object) -> str:
    return re.sub(r"^__builtin__\.", "builtins.", str(argument).replace(" ", ".", 1))


def _persistent(machine: _Machine, _: object) -> None:
    identifier = machine.stack.pop()
    if not isinstance(identifier, tuple) or len(identifier) != 5 or not isinstance(identifier[1], Inert):
        raise ValueError("a persistent id names no storage")
    _, kind, key, _, count = identifier
    dtype = _STORAGES.get(kind.name.rpartition(".")[2])
    if dtype is None:  # quantised, as will be the tensor that uses it
        machine.stack.append(Inert(kind.name, ()))
        return
    if not isinstance(key, str) or not natural(count):
        raise ValueError("a persistent id names no storage")
    if key not in machine.storages:
        raise ValueError(f"the file lacks its storage '{key}'")
    offset, held_bytes = machine.storages[key]
    if count * dtype.itemsize > held_bytes:
        raise ValueError(f"its storage '{key}' should have {count * dtype.itemsize} bytes, the file holds {held_bytes}")
    machine.stack.append(Storage(machine.file, offset, count * dtype.itemsize, dtype, machine.file_bytes))


def _build(machine: _Machine, _: object) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Inert):
        target.state = state


def _fill(machine: _Machine, items: list[object]) -> None:
    """APPEND(S), ADDITEMS: onto a list or set; objects of other classes keep no items."""
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(map(as_key, items))


def _set_items(machine: _Machine, items: list[object]) -> None:
    target = machine.stack[-1]
    if isinstance(target, dict):
        target.update(_as_dict(items))


def _as_dict(items: list[object]) -> dict[object, object]:
    return dict(zip(map(as_key, items[::2]), items[1::2], strict=True))


def _since_mark(machine: _Machine) -> list[object]:
    start = machine.marks.pop()
    items = machine.stack[start:]
    del machine.stack[start:]
    return items


def _top(machine: _Machine, count: int) -> list[object]:
    items = [machine.stack.pop() for _ in range(count)]
    return items[::-1]


def _pop(machine: _Machine, _: object) -> None:
    """POP removes a mark where that is what lies on top."""
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.stack.pop()


def _remember(machine: _Machine, index: object) -> None:
    """PUT names its index; MEMOIZE takes the next one."""
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_OPCODES: Mapping[str, Callable[[_Machine, object], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _global),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    **dict.fromkeys(("INST", "OBJ"), _instance),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: _fill(machine, _since_mark(machine))),
    "NEWOBJ_EX": _reduce_with_keywords,
    "BINPERSID": _persistent,
    "BUILD": _build,
    "APPEND": lambda machine, _: _fill(machine, _top(machine, 1)),
    "SETITEM": lambda machine, _: _set_items(machine, _top(machine, 2)),
    "SETITEMS": lambda machine, _: _set_items(machine, _since_mark(machine)),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(_top(machine, 1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(_top(machine, 2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(_top(machine, 3))),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(_since_mark(machine))),
    "LIST": lambda machine, _: machine.stack.append(_since_mark(machine)),
    "DICT": lambda machine, _: machine.stack.append(_as_dict(_since_mark(machine))),
    "FROZENSET": lambda machine, _: machine.stack.append(set(map(as_key, _since_mark(machine)))),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": _pop,
    "POP_MARK": lambda machine, _: _since_mark(machine).clear(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
}
