"""Why a checkpoint may miss its trainer's figure: val.yaml with one thing changed, and what that explains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from exporters.runtimes import Arrays
from soup.preprocess import Backend, Color, Interpolation, Letterbox, Preprocess, Size
from soup.tasks.classification import predictions

_SHRUNK = 0.875  # crop over resize in ImageNet's customs: 224 of 256
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MNIST = ((0.1307,), (0.3081,))
_FILTERS: tuple[Interpolation, ...] = ("bilinear", "bicubic", "area", "nearest")
_MOST_IMAGES = 1000  # that val's own mean and std are taken from

Verdict = Literal["explains", "nearer", "no", "untried"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """One change to `preprocess`, as val.yaml would say it, and what follows if it explains the figure."""

    change: str
    conclusion: str
    preprocess: Preprocess
    pixels: Literal["same", "swapped", "anew"]  # val's decoded images serve, or with red and blue swapped, or not


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the checkpoint scored with one thing changed: None where that is no number, or was not tried (`note`)."""

    change: str
    conclusion: str
    value: float | None
    verdict: Verdict
    note: str | None = None


def suspects(given: Preprocess, images: np.ndarray) -> tuple[Suspect, ...]:
    """The changes worth a try; `images` are val's, uint8 [n, height, width, channels], after `given`'s geometry."""
    found: dict[Preprocess, Suspect] = {}
    for one in (*_colors(given), *_normalisations(given, images), *_resampling(given), *_geometries(given)):
        found.setdefault(one.preprocess, one)
    found.pop(given, None)
    return tuple(found.values())


def verdict_of(value: float, *, measured: float, expected: float, tolerance: float) -> Verdict:
    """`explains` within the tolerance, `nearer` where half of the gap or more is gone, else `no`; so too for NaN."""
    if within(value, expected, tolerance):
        return "explains"
    return "nearer" if abs(value - expected) <= abs(measured - expected) / 2 else "no"


def within(value: float, expected: float, tolerance: float) -> bool:
    """False for NaN; 0.886 and 0.883 are 0.003 apart here, as they are on paper."""
    return round(abs(value - expected), 9) <= tolerance


def ranked(attempts: Sequence[Attempt], *, expected: float) -> tuple[Attempt, ...]:
    """Nearest to the expected figure first, those without a value last; else as they came."""
    return tuple(sorted(attempts, key=lambda one: math.inf if one.value is None else abs(one.value - expected)))


def advice(checkpoint: str, attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """A sentence for each change that explains the figure, else for the nearest one that closes half of the gap."""
    explain = [one for one in attempts if one.verdict == "explains"]
    if explain:
        return tuple(f"{checkpoint} scores {one.value:.4f} with {one.change}: {one.conclusion}." for one in explain)
    nearer = [one for one in attempts if one.verdict == "nearer"]
    if nearer:
        best = nearer[0]
        return (
            f"{checkpoint} comes nearer, to {best.value:.4f}, with {best.change}: {best.conclusion}; "
            "with that corrected, run soup check again.",
        )
    return (
        "none of these changes explains the figure. Is it this checkpoint's, and on data.val? "
        "Compare model_args and the trainer's own evaluation with val.yaml.",
    )


def renumbered(outputs: Arrays, labels: np.ndarray) -> np.ndarray | None:
    """The labels as the model may number them: each class of val → the class that it is most often taken for.

    None where that is no other numbering: every class is itself, or two of them are taken for one.
    """
    predicted = predictions(outputs)
    classes, places = np.unique(labels, return_inverse=True)
    taken_for = np.array([np.bincount(predicted[labels == one] + 1).argmax() - 1 for one in classes])
    if min(taken_for) < 0 or len(np.unique(taken_for)) < len(classes) or np.array_equal(taken_for, classes):
        return None
    return taken_for[places]


def _colors(given: Preprocess) -> Iterator[Suspect]:
    if given.color != "gray":
        other: Color = "bgr" if given.color == "rgb" else "rgb"
        yield Suspect(f"color: {other}", _not_the_trainers("colour order"), replace(given, color=other), "swapped")


def _normalisations(given: Preprocess, images: np.ndarray) -> Iterator[Suspect]:
    name, (mean, std) = ("MNIST's", _MNIST) if given.color == "gray" else ("ImageNet's", _IMAGENET)
    order = -1 if given.color == "bgr" else 1
    kinds = {
        name: (mean[::order], std[::order]),
        f"{name} in RGB order": (mean, std),
        "pixels from -1 to 1": ((0.5,), (0.5,)),
        "pixels from 0 to 1": ((0.0,), (1.0,)),
        "pixels from 0 to 255": ((0.0,), (1 / 255,)),
        f"pixels from 0 to 255 less {name} mean": (mean[::order], (1 / 255,)),
        "data.val's own": _own(images),
    }
    conclusion = _not_the_trainers("mean and std", verb="are")
    for what, (one, other) in kinds.items():
        if not _equal(one, given.mean) or not _equal(other, given.std):
            change = f"mean: {_listed(one)}, std: {_listed(other)} ({what})"
            yield Suspect(change, conclusion, replace(given, mean=one, std=other), "same")


def _own(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel, in 0..1, over images spread evenly; a flat channel keeps its scale."""
    pixels = (image / 255 for image in images[:: max(1, len(images) // _MOST_IMAGES)])
    mean, square = np.mean([(one.mean(axis=(0, 1)), (one * one).mean(axis=(0, 1))) for one in pixels], axis=0)
    std = np.sqrt(np.maximum(square - mean * mean, 0)).round(4).tolist()
    return tuple(mean.round(4).tolist()), tuple(one or 1.0 for one in std)


def _equal(one: Sequence[float], other: Sequence[float]) -> bool:
    return bool(np.abs(np.subtract(one, other)).max() < 5e-4)


def _resampling(given: Preprocess) -> Iterator[Suspect]:
    """The backend reads files too, so it may matter where nothing is resized."""
    backend: Backend = "cv2" if given.backend == "pil" else "pil"
    conclusion = _not_the_trainers("resize backend")
    yield Suspect(f"backend: {backend}", conclusion, replace(given, backend=backend), "anew")
    for one in _FILTERS if given.resize or given.letterbox else ():
        conclusion = _not_the_trainers("interpolation")
        yield Suspect(f"interpolation: {one}", conclusion, replace(given, interpolation=one), "anew")


def _geometries(given: Preprocess) -> Iterator[Suspect]:
    """Other ways to the same size, which the model may need."""
    size = given.crop or (given.resize if isinstance(given.resize, tuple) else None)
    if given.letterbox is not None:
        yield from _letterboxes(given, given.letterbox)
    elif size is not None and given.resize is not None:
        side, conclusion = min(_pair(size)), _not_the_trainers("resize and crop", verb="are")
        for resize, crop in ((side, size), (round(side / _SHRUNK), size), (_pair(size), None)):
            change = f"resize: {_told(resize)}, crop: {_told(crop)}"
            yield Suspect(change, conclusion, replace(given, resize=resize, crop=crop), "anew")


def _letterboxes(given: Preprocess, box: Letterbox) -> Iterator[Suspect]:
    conclusion, size = _not_the_trainers("letterbox"), _pair(box.size)
    for other in (replace(box, centered=not box.centered), *(replace(box, pad=pad) for pad in (0, 114, 128))):
        change = f"letterbox: {{pad: {other.pad}, centered: {str(other.centered).lower()}}}"
        yield Suspect(change, conclusion, replace(given, letterbox=other), "anew")
    stretched = replace(given, letterbox=None, resize=size)
    yield Suspect(f"resize: {_told(size)} instead of letterbox", conclusion, stretched, "anew")


def _not_the_trainers(what: str, *, verb: str = "is") -> str:
    return f"val.yaml's {what} {verb} probably not the trainer's"


def _listed(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _told(size: Size | None) -> str:
    return "null" if size is None else str(size) if isinstance(size, int) else f"[{size[0]}, {size[1]}]"
