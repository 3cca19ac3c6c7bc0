"""Moments in float64 and rounding once, against numpy and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.moments import Moments, distance, moments, pool, rounded_once


def numpy_moments(values: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    wide = np.moveaxis(values.double().numpy(), 1, 0).reshape(values.shape[1], -1)
    return wide.mean(axis=1), wide.var(axis=1) * wide.shape[1]


@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_moments_are_those_of_the_values_in_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + 3).to(dtype)
    before = values.clone()
    found = moments(values)
    mean, squares = numpy_moments(values)
    assert found.count == values.numel() // 3
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(found.squares, squares, rtol=1e-13)
    assert torch.equal(values, before), "the activations go on through the network and must not be changed"


def test_blocks_and_memory_layout_do_not_change_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(9, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.1 + 1000
    whole = moments(values)
    monkeypatch.setattr("calib.moments._CPU_BLOCK", 300)  # one sample at a time
    for layout in (values, values.contiguous(memory_format=torch.channels_last), values.transpose(2, 3)):
        blocked = moments(layout)
        assert blocked.count == whole.count
        np.testing.assert_allclose(blocked.mean, whole.mean, rtol=1e-15)
        np.testing.assert_allclose(blocked.squares, whole.squares, rtol=1e-10)


def test_channels_far_from_zero_keep_their_variance_beside_channels_near_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw sums of squares would lose 14 and 30 bits of the second and third channel; the fourth is constant."""
    monkeypatch.setattr("calib.moments._CPU_BLOCK", 50)  # less than a sample: pieces of one
    values = torch.randn(9, 4, 5, 6, generator=torch.Generator().manual_seed(3))
    values = (
        values * torch.tensor([1.0, 0.1, 1.0, 0.0])[:, None, None] + torch.tensor([0, 1e3, 1e6, 0.1])[:, None, None]
    )
    found = moments(values)
    mean, squares = numpy_moments(values)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(found.squares, squares, rtol=1e-10, atol=1e-20)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40),
    cuts=st.lists(st.integers(1, 39), max_size=5),
    shift=st.sampled_from([0.0, 1e6]),
)
def test_pooled_parts_equal_the_whole(values: list[float], cuts: list[int], shift: float) -> None:
    whole = np.array(values) + shift
    parts = [part for part in np.split(whole, sorted(set(cuts))) if part.size]
    each = [Moments(part.size, part.mean(keepdims=True), part.var(keepdims=True) * part.size) for part in parts]
    pooled = pool(each)
    exact = [Fraction(value) for value in whole.tolist()]
    mean = sum(exact) / len(exact)
    squares = float(sum((value - mean) ** 2 for value in exact))
    assert pooled.count == len(values)
    assert pooled.mean[0] == pytest.approx(float(mean), rel=1e-12, abs=1e-12)
    assert pooled.squares[0] == pytest.approx(squares, rel=1e-9, abs=1e-12 * (1 + shift**2 * 1e-6))


@settings(max_examples=100, deadline=None)
@given(value=st.floats(-6e4, 6e4), kind=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_a_number_is_rounded_to_the_nearest_one_of_the_dtype(value: float, kind: torch.dtype) -> None:
    rounded = rounded_once(np.array([value]), kind)
    away = torch.full_like(rounded, float("inf"))
    neighbours = [torch.nextafter(rounded.float(), away.float()), torch.nextafter(rounded.float(), -away.float())]
    if kind != torch.float32:  # torch has no nextafter of float16: step through the bits instead
        bits = rounded.view(torch.int16)
        neighbours = [(bits + 1).view(kind), (bits - 1).view(kind)]
    error = abs(Fraction(rounded.item()) - Fraction(value))
    for neighbour in neighbours:
        if torch.isfinite(neighbour).all():
            assert error <= abs(Fraction(neighbour.item()) - Fraction(value))


@pytest.mark.parametrize(("kind", "step"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)])
def test_half_types_are_not_rounded_twice(kind: torch.dtype, step: float) -> None:
    """Just above the middle: float32 on the way would fall on the middle, and then to even."""
    middle = 1 + step / 2
    values = np.array(
        [middle + 2.0**-40, middle, -middle - 2.0**-40, middle + step - 2.0**-40, middle + 1.5 * 2.0**-24]
    )
    assert rounded_once(values, kind).tolist() == [1 + step, 1.0, -1 - step, 1 + step, 1 + step]


def test_distance_is_in_units_of_the_spread() -> None:
    whole = Moments(10, np.array([0.0, 0.0]), np.array([40.0, 0.0]))  # variances 4 and 0
    assert distance(Moments(5, np.array([1.0, 0.0]), np.array([20.0, 0.0])), whole) == pytest.approx(0.5)
    assert distance(Moments(5, np.array([0.0, 0.0]), np.array([5.0, 0.0])), whole) == pytest.approx(0.75)
    constant = Moments(10, np.array([3.0]), np.array([0.0]))
    assert distance(constant, constant) == 0.0
