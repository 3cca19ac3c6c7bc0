"""How ingredients lie to each other: one pass over their files, then distances and angles of any of their soups."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soup import Progress, SoupError, silent
from soup.average import plan
from soup.blocks import Opened, Planned, in_blocks, read_block
from soup.checkpoint import Checkpoint
from soup.rounding import REALS, reals
from soup.weights import Weights, weight_of

_ROUNDING = 1e-13  # of what is added up: less than this part is a difference of equals
_ELEMENTS = 1 << 14  # of one ingredient in a block: of 24 in float64 they are 3 MB, about what a cache holds


@dataclass(frozen=True, slots=True)
class Geometry:
    """Inner products of the ingredients' differences from the first one, tensor by tensor, all in float64.

    Where two soups lie much closer to each other than to the first ingredient, their distance is good to 1e-8 of the
    latter. NaN among the weights gives NaN.
    """

    ingredients: tuple[str, ...]  # SHA-256, sorted; the first is the reference
    tensors: tuple[str, ...]  # sorted; of tied ones only the first name
    sizes: np.ndarray  # int64[tensors]: elements
    gram: np.ndarray  # float64[tensors, K, K]: Σ (x_i - x_0)·(x_j - x_0)
    norms: np.ndarray  # float64[tensors]: Σ x_0², the reference's own square
    tied: Mapping[str, str]  # other names of measured tensors → the name in `tensors`

    def distance(self, a: Weights, b: Weights) -> float:
        """Euclidean distance between two soups, over all tensors. Raises SoupError for weights that make no soup."""
        steps = (self._shares(a) - self._shares(b))[:, None, :]
        return math.sqrt(_products(self.gram, steps).sum())

    def cosine(self, a: str, b: str, *, origin: Weights, tensor: str | None = None) -> float:
        """Of the angle at the soup `origin` between two ingredients, in one tensor or over all; NaN if one is there."""
        offsets = self.offsets(origin)
        one, other = self.ingredients.index(a), self.ingredients.index(b)
        if tensor is not None:
            return _cosine_of(offsets[self.tensors.index(self.tied.get(tensor, tensor))], one, other)
        return _cosine_of(offsets.sum(axis=0), one, other)

    def offsets(self, origin: Weights) -> np.ndarray:
        """float64[tensors, K, K]: inner products of the ingredients' differences from a soup."""
        return _products(self.gram, np.eye(len(self.ingredients)) - self._shares(origin)[:, None, :])

    def plane(self, points: Sequence[Weights]) -> np.ndarray:
        """float64[points, 2]: soups in the plane that keeps most of their squared distances, their mean at the origin.

        Classical multidimensional scaling (Torgerson 1952), which is the PCA of the points. On each axis the first
        point that lies clearly off zero is on the positive side; an axis without extent is zero.
        """
        shares = np.stack([self._shares(point) for point in points], axis=1)
        inner = _products(self.gram, shares - shares.mean(axis=1, keepdims=True)).sum(axis=0)
        place = np.zeros((len(points), 2))
        if not np.isfinite(inner).all():
            return np.full_like(place, np.nan)
        values, vectors = np.linalg.eigh((inner + inner.T) / 2)
        for axis, (value, vector) in enumerate(zip(values[:-3:-1], vectors.T[:-3:-1], strict=True)):
            if value > _ROUNDING * values[-1]:
                first = vector[np.argmax(np.abs(vector) > 1e-3 * np.abs(vector).max())]
                place[:, axis] = vector * math.copysign(math.sqrt(value), first)
        return place

    def _shares(self, weights: Weights) -> np.ndarray:
        """float64[tensors, K]: each ingredient's share of each tensor, rows that sum to one."""
        if unknown := weights.keys() - set(self.ingredients):
            raise ValueError(f"not among the measured ingredients: {sorted(unknown)}")
        given = [(index, weights[sha]) for index, sha in enumerate(self.ingredients) if sha in weights]
        shares: np.ndarray = np.zeros((len(self.tensors), len(self.ingredients)))
        for row, tensor in zip(shares, self.tensors, strict=True):
            for index, weight in given:
                row[index] = weight_of(weight, tensor)
            if not row.any():
                raise SoupError(f"recipe: tensor {tensor!r} has no positive weight, expected one or more.")
        shares /= shares.sum(axis=1, keepdims=True)
        return shares


def measure_geometry(
    ingredients: Mapping[str, Checkpoint], names: Collection[str], *, progress: Progress | None = None
) -> Geometry:
    """Read the tensors of these names once, a block of every ingredient at a time; of tied ones the first name.

    `names` are the parameters': integers among them are left out, BatchNorm's statistics are for the caller to leave
    out. Only a tensor that a file stores transposed is held whole, once for each ingredient. The sums depend on the
    set alone. Raises SoupError as `cook` does, ValueError for a name that no ingredient has.
    """
    planned = plan(dict.fromkeys(ingredients, 1.0), ingredients)
    if unknown := set(names) - {tensor.name for tensor in planned}:
        raise ValueError(f"no ingredient has the tensors to be measured: {sorted(unknown)}")
    wanted, tied = _distinct(planned, names)
    order, tell = sorted(ingredients), progress or silent
    gram = np.zeros((len(wanted), len(order), len(order)))
    norms = np.zeros(len(wanted))
    with contextlib.closing(in_blocks(wanted, [ingredients[sha] for sha in order], _measure_block)) as blocks:
        for index, tensor in enumerate(wanted):
            for products, norm in itertools.islice(blocks, len(tensor.starts)):
                gram[index] += products
                norms[index] += norm
            tell("measuring distances", index + 1, len(wanted))
    sizes = np.array([math.prod(tensor.shape) for tensor in wanted], np.int64)
    return Geometry(tuple(order), tuple(tensor.name for tensor in wanted), sizes, gram, norms, tied)


def _cosine_of(inner: np.ndarray, one: int, other: int) -> float:
    """Of two vectors whose inner products are float64[K, K]; NaN where one of them is zero."""
    length = math.sqrt(inner[one, one]) * math.sqrt(inner[other, other])
    return float(np.clip(inner[one, other] / length, -1, 1)) if length else math.nan


def _distinct(planned: Sequence[Planned], names: Collection[str]) -> tuple[list[Planned], dict[str, str]]:
    """The tensors to measure, in smaller blocks than the soup's, and the other names of the same storage."""
    chosen = set(names)
    found: dict[object, Planned] = {}
    for tensor in planned:
        if tensor.name in chosen and tensor.dtype in REALS:
            found.setdefault(tensor.parts, tensor)
    first = {parts: tensor.name for parts, tensor in found.items()}
    tied = {one.name: first[one.parts] for one in planned if one.parts in first and one.name != first[one.parts]}
    return [_in_small_blocks(tensor) for tensor in found.values()], tied


def _in_small_blocks(tensor: Planned) -> Planned:
    if tensor.rows <= tensor.rows_per_block and not tensor.flat:  # as a whole, perhaps because it has to be
        return tensor
    width = math.prod(tensor.shape) // max(1, tensor.rows)
    rows = max(1, min(tensor.rows_per_block, _ELEMENTS // max(1, width)))
    return dataclasses.replace(tensor, rows_per_block=rows)


def _measure_block(tensor: Planned, start: int, opened: Opened) -> tuple[np.ndarray, float]:
    """(float64[K, K] of the differences from the first, the first's square) of one block."""
    buffer = np.empty(tensor.block_bytes, np.uint8)
    rows: np.ndarray = np.empty(0)
    for index, part in enumerate(tensor.parts):
        values = reals(read_block(tensor, start, part, opened, buffer), part.dtype)
        if index == 0:
            rows = np.empty((len(tensor.parts), len(values)))
        rows[index] = values
    with np.errstate(invalid="ignore", over="ignore"):  # NaN comes out as NaN
        norm = float(np.einsum("n,n->", rows[0], rows[0]))
        # Before the product: fine-tuned weights share most of their digits; a difference of squares would lose them.
        rows[1:] -= rows[0]
        rows[0] = 0
        gram = np.zeros((len(rows), len(rows)))
        for index, row in enumerate(rows):  # not by BLAS, whose sums, and so whose bits, depend on its threads
            gram[index, index:] = gram[index:, index] = np.einsum("jn,n->j", rows[index:], row)
    return gram, norm


def _products(gram: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """float64[tensors, n, n] of steps float64[tensors, n, K], whose rows sum to zero; of no length, exactly zero."""
    inner = np.einsum("tnj,tmj->tnm", np.einsum("tnk,tkj->tnj", steps, gram), steps)
    squares = np.diagonal(inner, axis1=1, axis2=2)
    # Two equal ingredients far from the first one: their sums agree but for rounding, whose angle would be chance.
    added = np.einsum("tnk,tk->tn", np.abs(steps), np.sqrt(np.diagonal(gram, axis1=1, axis2=2))) ** 2
    real = ~(squares <= _ROUNDING * added)
    return np.where(real[:, :, None] & real[:, None, :], inner, 0.0)
