"""Tensors written as safetensors and read back: every dtype and layout, equal bytes for equal content."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from soup import SoupError
from soup.checkpoint import read_checkpoint
from soup.formats import read_contents
from soup.tensors import DTYPES, StateDict, TensorSpec, read_tensor, save_state, state_entry, state_sha256


def specs(path: Path) -> dict[str, TensorSpec]:
    value = read_contents(path).value
    assert isinstance(value, dict)
    return value


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal in dtype, shape and bits, so that NaN equals itself and 0 is not -0."""
    return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state() -> StateDict:
    torch.manual_seed(0)
    return {
        "scalar": torch.tensor(float("nan")),
        "empty": torch.zeros(2, 0, 3),
        "transposed": torch.randn(3, 4).T,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "sliced": torch.randn(6, 4)[1::2, ::3],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "weight": torch.nn.Parameter(torch.randn(2, 2)),
    }


def test_torch_save_and_safetensors_give_the_same_tensors_of_every_dtype(tmp_path: Path) -> None:
    """Correctness 2."""
    every = {name: torch.arange(6, dtype=torch.uint8).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    torch.save(every, tmp_path / "a.pt")
    save_state(tmp_path / "a.safetensors", every)
    for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        read = {name: read_tensor(spec) for name, spec in specs(path).items()}
        assert read.keys() == every.keys()
        assert all(same(read[name], every[name]) for name in every)


def test_every_layout_is_read_from_torch_save_in_c_order_and_in_memory_of_its_own(tmp_path: Path) -> None:
    """Correctness 2."""
    stored = state() | {"conjugate": torch.zeros(1), "complex128": torch.randn(2, dtype=torch.complex128)}
    torch.save(stored, tmp_path / "a.pt")
    for name, spec in specs(tmp_path / "a.pt").items():
        read = read_tensor(spec)
        assert same(read, stored[name]), name
        assert read.is_contiguous(), name
        assert spec.size_bytes == stored[name].numel() * stored[name].element_size(), name
        assert spec.contiguous == stored[name].is_contiguous(), name


def test_what_is_written_is_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    written = state()
    save_state(tmp_path / "a.safetensors", written, metadata={"made": "by a test"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert all(same(loaded[name], tensor.detach().resolve_conj()) for name, tensor in written.items())


def test_what_the_safetensors_library_writes_is_what_is_read(tmp_path: Path) -> None:
    written = {name: tensor.detach().resolve_conj().contiguous() for name, tensor in state().items()}
    save_file(written, tmp_path / "a.safetensors", metadata={"format": "pt"})
    read = {name: read_tensor(spec) for name, spec in specs(tmp_path / "a.safetensors").items()}
    assert read.keys() == written.keys()
    assert all(same(read[name], written[name]) for name in written)


def test_equal_content_gives_equal_bytes_and_the_users_permissions(tmp_path: Path) -> None:
    """Correctness 46."""
    first, metadata = state(), {"b": "2", "a": "1", "c": "3"}
    second = dict(reversed(first.items()))
    save_state(tmp_path / "a.safetensors", first, metadata=metadata)
    save_state(tmp_path / "b.safetensors", second, metadata=dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~umask


def test_tied_tensors_are_written_under_each_name(tmp_path: Path) -> None:
    """Correctness 5."""
    weight = torch.randn(3, 2)
    save_state(tmp_path / "a.safetensors", {"a": weight, "b": weight, "c": weight[1:]})
    loaded = load_file(tmp_path / "a.safetensors")
    assert same(loaded["a"], weight)
    assert same(loaded["b"], weight)
    assert same(loaded["c"], weight[1:])


def test_a_dtype_that_safetensors_lacks_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"tensor 'head': safetensors has no torch\.complex128"):
        save_state(tmp_path / "a.safetensors", {"head": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())


def test_the_content_hash_ignores_order_and_layout_and_sees_all_else() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    known = state_sha256(state)
    assert state_sha256({"b": state["b"], "a": state["a"].T.contiguous().T}) == known
    assert state_sha256(state | {"a": state["a"].reshape(3, 2)}) != known
    assert state_sha256(state | {"a": state["a"].double()}) != known
    assert state_sha256(state | {"b": torch.tensor(2)}) != known
    assert state_sha256({"a": state["a"], "c": state["b"]}) != known
    assert state_sha256({"a": torch.tensor(0.0)}) != state_sha256({"a": torch.tensor(-0.0)})


@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(sorted(DTYPES)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_any_permuted_tensor_becomes_its_bytes_in_c_order(shape: list[int], dtype: str, source: object) -> None:
    order = list(range(len(shape)))
    source.shuffle(order)  # type: ignore[attr-defined]
    tensor = torch.randint(0, 2, shape).to(DTYPES[dtype]).permute(order)
    entry = state_entry(tensor)
    assert entry.shape == tuple(tensor.shape)
    written = b"".join(bytes(chunk) for chunk in entry.chunks)
    assert written == bits(tensor)
    assert len(written) == entry.size_bytes


def test_a_file_that_became_shorter_is_an_error_rather_than_zeros(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    spec = specs(tmp_path / "a.pt")["a"]
    os.truncate(tmp_path / "a.pt", 2000)
    with pytest.raises(SoupError, match=r"ends \d+ bytes before its last tensor"):
        read_tensor(spec)


class Labelled(torch.Tensor):
    """A tensor subclass, which may give its stored numbers any meaning."""


def test_parameters_and_tensors_with_attributes_are_plain_tensors(tmp_path: Path) -> None:
    parameter, tensor = torch.nn.Parameter(torch.ones(2)), torch.zeros(3)
    parameter.note, tensor.note = "a", "b"  # type: ignore[attr-defined]
    torch.save({"plain": torch.nn.Parameter(torch.ones(1)), "noted": parameter, "tensor": tensor}, tmp_path / "a.pt")
    read = {name: read_tensor(spec) for name, spec in specs(tmp_path / "a.pt").items()}
    assert same(read["noted"], parameter.detach())
    assert same(read["tensor"], torch.zeros(3))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # deprecated, and still in users' files
@pytest.mark.parametrize(
    "what", ["a quantised tensor", "a sparse tensor", "a meta tensor", "a tensor of the class", "conj"]
)
def test_a_tensor_that_is_not_simply_its_stored_numbers_is_refused_by_name(what: str, tmp_path: Path) -> None:
    """Correctness 9."""
    if what == "a quantised tensor":
        tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    elif what == "a sparse tensor":
        tensor = torch.eye(3).to_sparse()
    elif what == "a meta tensor":
        tensor = torch.zeros(2, device="meta")
    else:
        tensor = torch.ones(2).as_subclass(Labelled) if "class" in what else torch.ones(2, dtype=torch.complex64).conj()
    torch.save({"fine": torch.ones(1), "head": tensor}, tmp_path / "a.pt")
    with pytest.raises(SoupError, match=f"tensor 'head' is .*{what}"):
        read_checkpoint(tmp_path / "a.pt")
