from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import soup.average
import soup.blocks
from soup import SoupError
from soup.average import cook, cook_to_file
from soup.checkpoint import Checkpoint
from soup.formats import FileStamp
from soup.tensors import StateDict, TensorSpec, save_state
from soup.weights import Weight, Weights, weight_of

few = settings(max_examples=30, deadline=None)


def ingredient(path: Path, tensors: StateDict) -> Checkpoint:
    """A file that holds the storages of `tensors` as they are, strides and ties included, and its record."""
    storages: dict[int, int] = {}
    data = bytearray()
    specs = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages or not len(storage):
            data += b"\0" * (-len(data) % 64)
            storages[storage.data_ptr()] = len(data)
            data += bytes(torch.tensor([], dtype=torch.uint8).set_(storage).numpy())
        offset = storages[storage.data_ptr()] + tensor.storage_offset() * tensor.element_size()
        specs[name] = TensorSpec(path, offset, tensor.dtype, tuple(tensor.shape), tensor.stride())
    path.write_bytes(data)
    return record(path, specs)


def record(path: Path, specs: dict[str, TensorSpec]) -> Checkpoint:
    status, sha256 = path.stat(), hashlib.sha256(path.name.encode() + path.read_bytes()).hexdigest()
    stamp = FileStamp(path, status.st_size, status.st_mtime_ns, sha256)
    return Checkpoint(path, sha256, (stamp,), "flat", "raw", specs, {}, ())


def written(folder: Path, states: list[StateDict]) -> dict[str, Checkpoint]:
    made = [ingredient(folder / f"{index}.bin", state) for index, state in enumerate(states)]
    return {checkpoint.sha256: checkpoint for checkpoint in made}


def equal(ingredients: dict[str, Checkpoint]) -> dict[str, float]:
    return dict.fromkeys(ingredients, 1.0)


def average(folder: Path, *tensors: torch.Tensor) -> torch.Tensor:
    ingredients = written(folder, [{"w": tensor} for tensor in tensors])
    return cook(equal(ingredients), ingredients)["w"]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# ---- what is averaged, and how exactly


def test_thirds_come_out_as_the_float64_mean_rounded_once(tmp_path: Path) -> None:
    """Correctness 3."""
    tensors = [torch.randn(1000, generator=torch.manual_seed(seed)) for seed in range(3)]
    expected = (np.sum([t.double().numpy() for t in tensors], axis=0) / 3).astype(np.float32)
    assert np.max(np.abs(average(tmp_path, *tensors).numpy() - expected) / np.spacing(np.abs(expected))) <= 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_72_ingredients_equal_the_exact_mean_within_half_an_ulp(tmp_path: Path, dtype: torch.dtype) -> None:
    """Correctness 3: math.fsum knows the exact sum; a running mean in bfloat16 is ten times further off."""
    tensors = [torch.randn(200, generator=torch.manual_seed(seed)).mul(3).to(dtype) for seed in range(72)]
    columns = torch.stack(tensors).double().T.tolist()
    exact = np.array([math.fsum(column) / 72 for column in columns])
    got = average(tmp_path, *tensors).double().numpy()
    bits_kept = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24}[dtype]
    ulp = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(exact))), -14) - (bits_kept - 1))
    assert np.max(np.abs(got - exact) / ulp) <= 0.5


@few
@given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
def test_the_order_of_the_ingredients_does_not_change_a_bit(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], seed: int
) -> None:
    """Correctness 3: sums run in the order of the SHA-256."""
    generator = np.random.default_rng(seed)
    states = [
        {"w": torch.from_numpy(generator.normal(size=50) * 10.0 ** generator.integers(-9, 9, 50)).float()}
        for _ in order
    ]
    ingredients = written(tmp_path_factory.mktemp("order"), states)
    weights = dict(zip(ingredients, generator.uniform(0.1, 2, len(order)), strict=True))
    keys = list(ingredients)
    shuffled = {keys[index]: weights[keys[index]] for index in order}
    assert bits(cook(weights, ingredients)["w"]) == bits(cook(shuffled, ingredients)["w"])


@few
@given(
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]),
    st.integers(1, 7),
    st.one_of(st.just(1.0), st.floats(0.01, 100)),
    st.integers(0, 2**32 - 1),
)
def test_copies_average_to_the_bits_of_the_copy(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, copies: int, weight: float, seed: int
) -> None:
    """Correctness 6, with minus zero, the least and the largest number among the values."""
    finite = torch.finfo(dtype)
    edges = [-0.0, 0.0, finite.tiny, finite.smallest_normal / 8, *([finite.max] if dtype != torch.float64 else [])]
    tensor = torch.cat(
        [torch.randn(64, generator=torch.manual_seed(seed), dtype=torch.float64), torch.tensor(edges).double()]
    )
    tensor = tensor.to(dtype) if dtype != torch.complex64 else torch.complex(tensor.float(), -tensor.float())
    ingredients = written(tmp_path_factory.mktemp("copies"), [{"w": tensor}] * copies)
    assert bits(cook(dict.fromkeys(ingredients, weight), ingredients)["w"]) == bits(tensor)


def test_weights_count_in_proportion(tmp_path: Path) -> None:
    ingredients = written(tmp_path, [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, 10.0])}])
    first, second = ingredients
    assert cook({first: 3.0, second: 1.0}, ingredients)["w"].tolist() == [2.0, 4.0]


def test_float16_near_its_limit_does_not_overflow(tmp_path: Path) -> None:
    """Correctness 3."""
    largest = torch.full((3,), 65504.0, dtype=torch.float16)
    assert average(tmp_path, largest, largest, largest * 0.5).tolist() == [54592.0] * 3


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        # 1 + 2⁻¹¹ + 2⁻³³ lies just above the middle of two neighbours; through float32 it would tie and go down to 1
        (torch.float16, (1 + 2**-11 + 2**-33,), 1 + 2**-10),
        (torch.bfloat16, (1 + 2**-8 + 2**-33,), 1 + 2**-7),
        (torch.bfloat16, (1 + 3 * 2**-8 - 2**-33,), 1 + 2**-7),
        (torch.bfloat16, (-(1 + 2**-8 + 2**-33),), -(1 + 2**-7)),
    ],
)
def test_sixteen_bit_results_are_not_rounded_twice(
    tmp_path: Path, dtype: torch.dtype, values: tuple[float, ...], expected: float
) -> None:
    """Correctness 3."""
    ingredients = written(tmp_path, [{"w": torch.tensor(values, dtype=torch.float64)}])
    policy = "float16" if dtype == torch.float16 else "bfloat16"
    assert cook(equal(ingredients), ingredients, dtype=policy)["w"].double().tolist() == [expected]


def test_every_bfloat16_survives_as_it_is_but_for_the_payload_of_nan(tmp_path: Path) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    got = average(tmp_path, every)
    assert torch.equal(got.isnan(), every.isnan())
    assert bits(got[~every.isnan()]) == bits(every[~every.isnan()])


# ---- a weight for each part of the network


def test_the_longest_prefix_that_ends_at_a_dot_gives_the_weight() -> None:
    weight = {"": 1.0, "layer": 2.0, "layer.1": 3.0, "layer.1.conv.weight": 4.0}
    names = ["layer.1.conv.weight", "layer.1.conv.bias", "layer.10.bias", "layer", "layers.1", "head", "1.layer"]
    assert [weight_of(weight, name) for name in names] == [4.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    assert weight_of(0.5, "anything") == 0.5


def test_a_tensor_that_no_prefix_of_an_ingredient_fits_is_named(tmp_path: Path) -> None:
    ingredients = written(tmp_path, [{"a.x": torch.ones(2), "b.x": torch.ones(2)}])
    with pytest.raises(SoupError, match=r"0\.bin: tensor 'b.x' has no weight, expected one for its name, a prefix"):
        cook({next(iter(ingredients)): {"a": 1.0, "b.x.y": 1.0}}, ingredients)


@pytest.mark.parametrize("policy", ["same", "float32"])
def test_one_weight_for_every_tensor_gives_the_bits_of_the_plain_soup(tmp_path: Path, policy: str) -> None:
    ingredients = written(tmp_path, [mixed_state(seed) for seed in range(5)])
    plain = {sha: 0.3 + index for index, sha in enumerate(ingredients)}
    mapped = {sha: {"": weight} for sha, weight in plain.items()}
    for weights, name in ((plain, "plain"), (mapped, "mapped")):
        cook_to_file(weights, ingredients, tmp_path / name, dtype=policy)  # type: ignore[arg-type]
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "mapped").read_bytes()


def test_each_tensor_is_the_mean_under_its_own_weights(tmp_path: Path) -> None:
    states = [{"head.w": torch.randn(40), "stem.w": torch.randn(40), "stem.b": torch.randn(40)} for _ in range(3)]
    ingredients = written(tmp_path, states)
    shares = [{"": 1.0, "stem": 2.0, "stem.b": 0.0}, {"": 3.0}, {"head": 0.5, "stem.w": 0.0, "stem.b": 7.0}]
    got = cook(dict(zip(ingredients, shares, strict=True)), ingredients)
    expected = {"head.w": [1.0, 3.0, 0.5], "stem.w": [2.0, 3.0, 0.0], "stem.b": [0.0, 3.0, 7.0]}
    for name, weights in expected.items():
        mean = np.average([state[name].double().numpy() for state in states], axis=0, weights=weights)
        assert np.array_equal(got[name].numpy(), mean.astype(np.float32)), name


def test_a_part_of_weight_0_plays_no_part(tmp_path: Path) -> None:
    """Neither its NaN, nor its wider dtype, nor its integers and its counter."""
    kept = {"w": torch.tensor([-0.0, 0.1]).half(), "index": torch.arange(2), "bn.num_batches_tracked": torch.tensor(3)}
    left = {
        "w": torch.tensor([math.nan, math.inf]),
        "index": torch.ones(2).long(),
        "bn.num_batches_tracked": torch.tensor(9),
    }
    for zero in (0.0, {"": 0.0}):
        ingredients = written(tmp_path, [kept, left])
        one, other = sorted(ingredients, key=lambda sha: ingredients[sha].path)
        weights: Weights = {one: 2.0, other: zero}
        got = cook(weights, ingredients)
        assert {name: (tensor.dtype, bits(tensor)) for name, tensor in got.items()} == {
            name: (tensor.dtype, bits(tensor)) for name, tensor in kept.items()
        }


def test_tied_tensors_of_unequal_weights_are_averaged_apart(tmp_path: Path) -> None:
    shared = [torch.full((2,), value) for value in (1.0, 3.0)]
    ingredients = written(tmp_path, [{"a": one, "b": one, "c": one} for one in shared])
    weights: list[Weight] = [{"": 1.0, "b": 3.0}, 1.0]
    got = cook(dict(zip(ingredients, weights, strict=True)), ingredients)
    assert [got[name].tolist() for name in "abc"] == [[2.0, 2.0], [1.5, 1.5], [2.0, 2.0]]
    assert got["a"].data_ptr() == got["c"].data_ptr() != got["b"].data_ptr()


# ---- shapes, dtypes and layouts


LAYOUTS = {
    "0-dim": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "complex": torch.complex(torch.randn(3, 4), torch.randn(3, 4)),
    "transposed": torch.randn(40, 30).T,
    "channels_last": torch.randn(6, 5, 3, 3).contiguous(memory_format=torch.channels_last),
    "expanded": torch.randn(1, 5).expand(4, 5),
    "strided": torch.randn(10, 8)[::2, 1::3],
    "slice": torch.randn(100)[17:40],
    "float16": torch.randn(7).half(),
    "bfloat16": torch.randn(7).bfloat16(),
    "float64": torch.randn(7).double(),
}


@pytest.mark.parametrize("block_bytes", [16, 1 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_averages_to_a_contiguous_tensor_of_its_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, block_bytes: int
) -> None:
    """Correctness 2: blocks smaller than a row, and larger than the tensor."""
    for module in (soup.average, soup.blocks):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    tensor = LAYOUTS[layout]
    other = (tensor * 3).contiguous()  # the second ingredient keeps the same tensor in another layout
    got = average(tmp_path, tensor, other)
    assert (got.dtype, got.shape, got.is_contiguous()) == (tensor.dtype, tensor.shape, True)
    torch.testing.assert_close(got, (tensor + other) / 2)


def test_ingredients_of_two_precisions_average_to_the_wider_one(tmp_path: Path) -> None:
    got = average(tmp_path, torch.tensor([1.0, 2.0]).half(), torch.tensor([2.0, 3.0]))
    assert got.dtype == torch.float32
    assert got.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("policy", ["float32", "float16", "bfloat16"])
def test_the_dtype_policy_applies_to_floating_tensors_only(tmp_path: Path, policy: str) -> None:
    """Correctness 4."""
    state = {
        "w": torch.ones(2, dtype=torch.float64),
        "index": torch.arange(3),
        "c": torch.ones(2, dtype=torch.complex64),
    }
    ingredients = written(tmp_path, [state])
    got = cook(equal(ingredients), ingredients, dtype=policy)  # type: ignore[arg-type]
    assert [got[name].dtype for name in ("w", "index", "c")] == [getattr(torch, policy), torch.int64, torch.complex64]


def test_a_value_that_the_asked_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    ingredients = written(tmp_path, [{"head.weight": torch.tensor([70000.0])}])
    with pytest.raises(SoupError, match=r"tensor 'head.weight' reaches 70000, more than torch.float16 holds"):
        cook(equal(ingredients), ingredients, dtype="float16")


def test_float8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"tensor 'w' is torch.float8_e4m3fn"):
        average(tmp_path, torch.ones(4).to(torch.float8_e4m3fn))


# ---- integers, booleans, counters, ties


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_equal_integers_and_masks_are_copied(tmp_path: Path, dtype: torch.dtype) -> None:
    """Correctness 1."""
    index = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    got = average(tmp_path, index, index)
    assert got.dtype == dtype
    assert torch.equal(got, index)


def test_integers_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    """Correctness 1."""
    states = [{"attn.relative_position_index": torch.tensor([0, value])} for value in (1, 2)]
    ingredients = written(tmp_path, states)
    with pytest.raises(SoupError, match=r"tensor 'attn.relative_position_index' \(torch.int64\) differs"):
        cook(equal(ingredients), ingredients)


def test_an_integer_here_and_a_float_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"tensor 'w' is torch.(int64|float32) \(1,\), expected torch.(int64|float32)"):
        average(tmp_path, torch.tensor([1]), torch.tensor([1.0]))


def test_the_batch_counter_is_the_largest(tmp_path: Path) -> None:
    """Correctness 1."""
    states = [{"bn.num_batches_tracked": torch.tensor(count)} for count in (7, 1000, -3)]
    ingredients = written(tmp_path, states)
    got = cook(equal(ingredients), ingredients)["bn.num_batches_tracked"]
    assert (got.item(), got.dtype) == (1000, torch.int64)


def test_tied_tensors_stay_tied_and_are_averaged_once(tmp_path: Path) -> None:
    """Correctness 5."""
    states = []
    for value in (1.0, 3.0):
        shared = torch.full((2, 2), value)
        states.append({"embed.weight": shared, "head.weight": shared, "other": torch.full((2, 2), value)})
    ingredients = written(tmp_path, states)
    got = cook(equal(ingredients), ingredients)
    assert got["embed.weight"].data_ptr() == got["head.weight"].data_ptr() != got["other"].data_ptr()
    assert got["head.weight"].tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_tensors_tied_in_one_ingredient_only_are_averaged_apart(tmp_path: Path) -> None:
    shared = torch.ones(2)
    ingredients = written(
        tmp_path, [{"a": shared, "b": shared}, {"a": torch.full((2,), 3.0), "b": torch.full((2,), 5.0)}]
    )
    got = cook(equal(ingredients), ingredients)
    assert (got["a"].tolist(), got["b"].tolist()) == ([2.0, 2.0], [3.0, 3.0])


# ---- what cannot be averaged


def test_names_and_shapes_that_differ_are_refused(tmp_path: Path) -> None:
    for other in ({"b": torch.ones(2)}, {"a": torch.ones(3)}):
        ingredients = written(tmp_path, [{"a": torch.ones(2)}, other])
        with pytest.raises(SoupError, match=r"tensor '[ab]' (is here or in|is torch.float32 .*, expected)"):
            cook(equal(ingredients), ingredients)


@pytest.mark.parametrize("weights", [[], [0.0], [{"": 0.0}], [{"": 1.0, "a": 0.0}]])
def test_weights_of_which_none_is_positive_are_refused(tmp_path: Path, weights: list[Weight]) -> None:
    ingredients = written(tmp_path, [{"a": torch.ones(2)}])
    with pytest.raises(SoupError, match=r"recipe: .*expected one or more positive numbers"):
        cook(dict(zip(ingredients, weights, strict=False)), ingredients)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, {"": -1.0}, {"": 1.0, "a": math.nan}, {"a": math.inf}])
def test_a_weight_that_is_no_number_from_0_up_is_refused_with_its_tensor_and_file(
    tmp_path: Path, weight: Weight
) -> None:
    ingredients = written(tmp_path, [{"a": torch.ones(2)}, {"a": torch.zeros(2)}])
    wrong, right = sorted(ingredients, key=lambda sha: ingredients[sha].path)
    with pytest.raises(SoupError, match=r"0\.bin: tensor 'a' has the weight \S+, expected 0 or a positive number"):
        cook({wrong: weight, right: 1.0}, ingredients)


def test_a_file_that_changed_since_it_was_checked_is_refused(tmp_path: Path) -> None:
    ingredients = written(tmp_path, [{"a": torch.ones(2)}])
    (tmp_path / "0.bin").write_bytes(b"\0" * 9)
    with pytest.raises(SoupError, match=r"0\.bin"):
        cook(equal(ingredients), ingredients)


def test_a_file_that_changes_while_it_is_read_leaves_no_soup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingredients = written(tmp_path, [{f"t{index}": torch.ones(8) for index in range(20)}])
    rounded = soup.average.rounded

    def touch(mean: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        os.utime(tmp_path / "0.bin", ns=(0, 0))
        return rounded(mean, dtype)

    monkeypatch.setattr(soup.average, "rounded", touch)
    others = set(threading.enumerate())  # a progress bar's of an earlier test may still be ending
    with pytest.raises(SoupError, match=r"0\.bin"):
        cook_to_file(equal(ingredients), ingredients, tmp_path / "soup.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["0.bin"]
    assert set(threading.enumerate()) <= others


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    whole = ingredient(tmp_path / "0.bin", {"a": torch.ones(1000)})
    with (tmp_path / "0.bin").open("r+b") as file:
        file.truncate(1000)
    cut = record(tmp_path / "0.bin", dict(whole.tensors))
    with pytest.raises(SoupError, match=r"0\.bin: ends at byte 1000, expected 3000 more"):
        cook({cut.sha256: 1.0}, {cut.sha256: cut})


# ---- straight to a file


def mixed_state(seed: int) -> StateDict:
    generator = torch.manual_seed(seed)
    shared = torch.randn(30, 20, generator=generator)
    return {
        "z.weight": torch.randn(64, 32, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last),
        "embed": shared, "head": shared, "half": torch.randn(999, generator=generator).bfloat16(),
        "scale": torch.tensor(float(seed)), "none": torch.empty(0), "index": torch.arange(5), "t": torch.randn(9, 7).T,
        "bn.num_batches_tracked": torch.tensor(seed), "bn.running_mean": torch.randn(33, generator=generator),
    }  # fmt: skip


@pytest.mark.parametrize("policy", ["same", "float32"])
def test_cooking_to_a_file_writes_the_bytes_of_the_saved_soup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Correctness 25."""
    for module in (soup.average, soup.blocks):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    ingredients = written(tmp_path, [mixed_state(seed) for seed in range(5)])
    state = cook(equal(ingredients), ingredients, dtype=policy)  # type: ignore[arg-type]
    save_state(tmp_path / "saved", state, metadata={"b": "1", "a": "2"})
    cook_to_file(equal(ingredients), ingredients, tmp_path / "cooked", dtype=policy, metadata={"a": "2", "b": "1"})  # type: ignore[arg-type]
    assert (tmp_path / "cooked").read_bytes() == (tmp_path / "saved").read_bytes()


def test_replaced_tensors_are_written_instead_of_averaged_ones(tmp_path: Path) -> None:
    ingredients = written(tmp_path, [mixed_state(seed) for seed in range(3)])
    fresh = {"bn.running_mean": torch.arange(33.0), "z.weight": torch.zeros(64, 32, 3, 3)}
    cook_to_file(equal(ingredients), ingredients, tmp_path / "cooked", replace=fresh)
    save_state(tmp_path / "saved", {**cook(equal(ingredients), ingredients), **fresh})
    assert (tmp_path / "cooked").read_bytes() == (tmp_path / "saved").read_bytes()
    with pytest.raises(ValueError, match=r"bn.running_man"):
        cook_to_file(equal(ingredients), ingredients, tmp_path / "cooked", replace={"bn.running_man": torch.ones(1)})


MEASURE = """
import re, sys
from pathlib import Path
import torch
from soup.average import cook_to_file
from soup.checkpoint import read_checkpoint

def peak_kb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

found = [read_checkpoint(Path(name)) for name in sys.argv[2:]]
before = peak_kb()
cook_to_file({one.sha256: 1.0 for one in found}, {one.sha256: one for one in found}, Path(sys.argv[1]))
print(peak_kb() - before)
"""


def test_a_candidate_of_72_ingredients_takes_the_memory_of_one(tmp_path: Path) -> None:
    """Correctness 28: 72 files of 4 MB; all of them at once would be 288 MB."""
    paths = [tmp_path / f"{index}.safetensors" for index in range(72)]
    for index, path in enumerate(paths):
        save_file({"a": torch.full((10**6,), float(index))}, path)
    in_memory = MEASURE.replace(", Path(sys.argv[1]))", ")").replace("cook_to_file", "cook")
    done = subprocess.run(
        [sys.executable, "-c", in_memory, "", *map(str, paths)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 64 * 1024


def test_file_to_file_takes_no_more_memory_for_larger_models(tmp_path: Path) -> None:
    """Correctness 28, and 64 MB at most where the model has 120 MB."""
    paths = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for index, path in enumerate(paths):
        save_file({"a": torch.full((20, 10**6), float(index)), "b": torch.ones(10**7)}, path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "soup.safetensors"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 64 * 1024
    assert load_file(tmp_path / "soup.safetensors")["a"].eq(0.5).all()
