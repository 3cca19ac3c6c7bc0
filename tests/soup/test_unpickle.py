"""The pickle inside a checkpoint is data: nothing in it runs, and no bytes bring out another error than SoupError."""

from __future__ import annotations

import collections
import os
import pickle
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soup import SoupError
from soup.rebuild import Inert, Unreadable
from soup.tensors import TensorSpec
from soup.unpickle import Unpickled, unpickle

FILE = Path("some.pt")
STORAGES = {"0": (1000, 48)}


def read(data: bytes) -> object:
    return unpickle(data, STORAGES, file=FILE).value


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor_pickle(*, first: bytes, shape: bytes, stride: bytes, count: int = 12, kind: str = "FloatStorage") -> bytes:
    """The opcodes that torch.save writes for one tensor in a storage of 48 bytes."""
    storage = (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text("0") + text("cpu") + number(count) + b"tQ"
    )
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + first + shape + stride + b"\x89NtR."


def dims(*sizes: int) -> bytes:
    return b"(" + b"".join(map(number, sizes)) + b"t"


class Shell:
    """Runs a command when unpickled by anything that runs pickles."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_out_as_pickle_itself_reads_them(protocol: int) -> None:
    value = {
        "numbers": [0, -1, 2**31, 2**70, 1.5, float("inf"), True, False, None],
        "text": ("", "a\nb", "ü", b"\x00\xff"),
        "nested": {1: ({}, []), (1, "a"): {"x"}, None: frozenset({2})},
        "ordered": collections.OrderedDict(a=1, b=2),
        "default": collections.defaultdict(list, a=1),
        "numpy": [np.float64(0.25), np.float32(0.5), np.int64(-3), np.uint8(7)],
    }
    value["again"] = value["numbers"]
    result = read(pickle.dumps(value, protocol=protocol))
    assert result == value
    assert isinstance(result, dict)
    assert result["again"] is result["numbers"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_read_without_running(protocol: int, tmp_path: Path) -> None:
    """Correctness 15."""
    data = pickle.dumps({"w": 1, "x": Shell(f"touch {tmp_path / 'ran'}")}, protocol=protocol)
    result = unpickle(data, {}, file=FILE)
    assert not (tmp_path / "ran").exists()
    assert isinstance(result.value, dict)
    assert isinstance(result.value["x"], Inert)
    assert result.inert == (f"{os.system.__module__}.system",)
    pickle.loads(data)
    assert (tmp_path / "ran").exists(), "the pickle would have run"


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'touch ran'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch ran'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",  # STACK_GLOBAL, REDUCE
        b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch ran\x85\x81.",  # NEWOBJ
        b"\x80\x04cos\nsystem\nX\x09\x00\x00\x00touch ran\x85}\x92.",  # NEWOBJ_EX
        b"c__main__\nx\n}S'__setstate__'\ncos\nsystem\nsbS'touch ran'\nb.",  # BUILD of a BUILT object
        b'cbuiltins\neval\n(S\'open("ran", "w")\'\ntR.',
    ],
)
def test_every_opcode_that_calls_gives_an_inert_record(
    opcodes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(read(opcodes), Inert)
    assert not list(tmp_path.iterdir())


def test_objects_of_classes_that_do_not_exist_keep_their_state() -> None:
    result = read(b"\x80\x02cno.such\nModule\n)\x81}X\x01\x00\x00\x00aK\x05sb.")
    assert isinstance(result, Inert)
    assert (result.name, result.args, result.state) == ("no.such.Module", (), {"a": 5})


@pytest.mark.parametrize(
    "opcodes", [b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00.", b"Pid\n.", b"\x80\x05\x97."]
)
def test_opcodes_that_a_checkpoint_never_has_are_refused_by_name(opcodes: bytes) -> None:
    with pytest.raises(
        SoupError, match=r"some\.pt: its pickle cannot be read: opcode \w+ has no place in a checkpoint"
    ):
        read(opcodes)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # a memo index of two thousand million
        b"K\x01p99999999999999999999\n.",
        b"\x8e" + struct.pack("<Q", 1 << 40) + b"short.",  # bytes that claim a terabyte
        b"\x96" + struct.pack("<Q", 1 << 40) + b"short.",
        b"\x8b" + struct.pack("<I", 1 << 30) + b"1.",  # an integer that claims a gigabyte
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"K\x01.",  # a frame that claims an exabyte
    ],
)
def test_a_length_that_the_pickle_does_not_hold_allocates_nothing(opcodes: bytes) -> None:
    """Correctness 15: a 351-byte file allocated 10 GiB elsewhere."""
    tracemalloc.start()
    try:
        result = read(opcodes)
    except SoupError:
        result = 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result == 1
    assert peak < 1 << 20


def test_a_key_that_would_take_for_ever_to_hash_is_no_key() -> None:
    doubled = b")" + b"2\x86" * 64  # a tuple of tuples, 2^64 leaves
    assert len(read(b"}" + doubled + b"Ns.")) == 1  # type: ignore[arg-type]
    assert len(read(b"\x8f(" + doubled + b"\x90.")) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "end", [b"h\x00\x93.", b"cs\nt\n(h\x00tR.", b"(\x8c\x07storageh\x00h\x00h\x00h\x00tQ.", b"}h\x00Ns."]
)
def test_a_value_nested_deeply_is_never_shown_or_hashed(end: bytes) -> None:
    nested = b"]" * 50_000 + b"a" * 49_999 + b"\x94"
    try:
        read(b"X\x01\x00\x00\x00m" + nested + end)
    except SoupError as error:
        message = str(error)
        assert len(message) < 200


def test_a_pickle_that_holds_itself_and_one_nested_deeply_are_read() -> None:
    itself = read(b"]q\x00h\x00a.")
    assert isinstance(itself, list)
    assert itself[0] is itself
    read(b"]" * 100_000 + b"a" * 99_999 + b".")


def test_a_tensor_is_where_its_storage_offset_shape_and_strides_say() -> None:
    spec = read(tensor_pickle(first=number(2), shape=dims(2, 3), stride=dims(1, 4)))
    assert spec == TensorSpec(FILE, 1008, torch.float32, (2, 3), (1, 4))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"first": number(0), "shape": dims(13), "stride": dims(1)}, "reaches beyond its storage of 48 bytes"),
        ({"first": number(11), "shape": dims(2), "stride": dims(1)}, "reaches beyond its storage"),
        ({"first": number(0), "shape": dims(2, 2), "stride": dims(11, 1)}, "reaches beyond its storage"),
        (
            {"first": number(0), "shape": dims(2), "stride": dims(1), "count": 13},
            "should have 52 bytes, the file holds 48",
        ),
        ({"first": number(0), "shape": dims(-2), "stride": dims(1)}, "not natural numbers"),
        ({"first": number(-1), "shape": dims(2), "stride": dims(1)}, "not natural numbers"),
        ({"first": number(0), "shape": dims(2), "stride": dims(-1)}, "not natural numbers"),
        ({"first": b"\x88", "shape": dims(2), "stride": dims(1)}, "not natural numbers"),
        ({"first": number(0), "shape": b"X\x00\x00\x00\x00", "stride": dims(1)}, "not natural numbers"),
        ({"first": number(0), "shape": dims(2, 2), "stride": dims(1)}, "no tensor has 2 axes"),
        ({"first": number(0), "shape": dims(0, 1 << 30, 1 << 30), "stride": dims(1, 1, 1)}, "no tensor has"),
        ({"first": number(0), "shape": dims(*[1] * 65), "stride": dims(*[1] * 65)}, "no tensor has"),
        ({"first": number(0), "shape": dims(1 << 30), "stride": dims(0)}, "larger than the whole file"),
    ],
)
def test_a_tensor_that_its_storage_cannot_hold_is_refused(arguments: dict[str, bytes], reason: str) -> None:
    """Correctness 15."""
    with pytest.raises(SoupError, match=reason):
        read(tensor_pickle(**arguments))  # type: ignore[arg-type]


def test_a_tensor_of_a_quantised_storage_is_refused() -> None:
    with pytest.raises(SoupError, match="no known storage and dtype"):
        read(tensor_pickle(first=number(0), shape=dims(2), stride=dims(1), kind="QInt8Storage"))


def test_a_tensor_with_its_conjugate_bit_set_is_unreadable_rather_than_wrong() -> None:
    plain = tensor_pickle(first=number(0), shape=dims(2), stride=dims(1), count=6, kind="ComplexFloatStorage")
    marked = plain.removesuffix(b"tR.") + b"}" + text("conj") + b"\x88stR."
    assert isinstance(read(marked), Unreadable)
    assert isinstance(read(plain), TensorSpec)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_give_a_value_or_a_soup_error(data: bytes) -> None:
    try:
        result = unpickle(data, STORAGES, file=FILE)
    except SoupError:
        return
    assert isinstance(result, Unpickled)


def test_mutated_pickles_give_a_value_or_a_soup_error() -> None:
    """Correctness 15: seven types of exception came out elsewhere."""
    source = random.Random(0)
    objects = pickle.dumps({"a": [np.float64(1), Shell("true")], "b": {1, 2}, "c": b"12"}, protocol=2)
    originals = [tensor_pickle(first=number(2), shape=dims(2, 3), stride=dims(1, 4)), objects]
    for _ in range(3000):
        data = bytearray(source.choice(originals))
        for _ in range(source.randint(1, 4)):
            data[source.randrange(len(data))] = source.choice(
                b"()]}0125NKRtQsabcoiux\x81\x85\x86\x93\x94" + source.randbytes(9)
            )
        try:
            read(bytes(data))
        except SoupError:
            continue
