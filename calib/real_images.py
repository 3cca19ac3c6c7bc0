"""Whether calibration images can be real ones: enough of them, different, not blank, and not noise."""

from __future__ import annotations

import numpy as np

from calib import CalibError
from calib.samples import sample_sha256

LEAST_IMAGES = 32
_LOOKED_AT = 64  # images, evenly spaced, that the noise statistic is taken from
_LEAST_CORRELATION = 0.05
_STANDARD_ERRORS = 4.0


def refuse_unreal(inputs: np.ndarray, *, where: str, minimum: int = LEAST_IMAGES) -> None:
    """Raise where the samples of one input (axis 0) are no basis for ranges; `where` begins the message.

    Refused are NaN and Inf, fewer than `minimum` images (2 at least) that differ from each other and are not constant,
    and noise: see `neighbour_correlations`. Noise counts as such where the mean correlation is not above 0.05, or not
    above 4 of its standard errors. Inputs without spatial axes are not judged for it, and noise that was resized or
    blurred passes.

    Raises CalibError ("input").
    """
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        index = int(np.argwhere(~np.isfinite(inputs))[0][0])
        raise CalibError(f"{where}: image {index} holds NaN or Inf, expected finite values. Check its preprocessing.")
    axes = tuple(range(1, inputs.ndim))
    varied = inputs.max(axis=axes) > inputs.min(axis=axes) if inputs.size else np.zeros(len(inputs), dtype=bool)
    distinct = len({sample_sha256(image) for image in inputs[varied]})
    least = max(2, minimum)
    if distinct < least:
        raise CalibError(
            f"{where}: {distinct} usable calibration images ({len(inputs)} in all, {len(inputs) - int(varied.sum())} "
            f"constant, {int(varied.sum()) - distinct} repeated), expected at least {least}. Add real images."
        )
    correlations = neighbour_correlations(inputs[varied])
    if correlations is not None and not _above_noise(correlations):
        raise CalibError(
            f"{where}: the calibration images are noise, neighbouring pixels correlate by {correlations.mean():.3f} on "
            f"average, expected more than {_LEAST_CORRELATION}. Take real images, as the network will see them."
        )


def neighbour_correlations(inputs: np.ndarray) -> np.ndarray | None:
    """Correlation of neighbouring pixels by image, of up to 64 images; None without an axis that has neighbours.

    For each spatial axis 1 − mean((xᵢ₊₁ − xᵢ)²) / (2 · variance) with the variance about the mean of each line (von
    Neumann, "Distribution of the ratio of the mean square successive difference to the variance", 1941), and the
    greatest of these. About 0 for independent pixels of any distribution, whatever the channels' offsets, and 0.5 to
    0.99 for photographs.
    """
    spatial = range(1, inputs.ndim - 1) if _channels_last(inputs) else range(2, inputs.ndim)
    axes = [axis for axis in spatial if inputs.shape[axis] > 2]
    if not axes:
        return None
    chosen = np.unique(np.linspace(0, len(inputs) - 1, _LOOKED_AT).round().astype(np.int64))
    images = inputs[chosen].astype(np.float64)
    by_axis = np.stack([_correlations(np.moveaxis(images, axis, -1)) for axis in axes])
    return np.asarray(by_axis[int(by_axis.mean(axis=1).argmax())])


def _correlations(images: np.ndarray) -> np.ndarray:
    """By image, along the last axis."""
    axes = tuple(range(1, images.ndim))
    steps = (np.diff(images, axis=-1) ** 2).mean(axis=axes)
    variances = images.var(axis=-1, ddof=1).mean(axis=axes[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variances > 0, 1 - steps / (2 * variances), 0.0)


def _above_noise(correlations: np.ndarray) -> bool:
    mean = float(correlations.mean())
    error = float(correlations.std(ddof=1)) / len(correlations) ** 0.5
    return mean > _LEAST_CORRELATION and mean > _STANDARD_ERRORS * error


def _channels_last(inputs: np.ndarray) -> bool:
    """[n, height, width, channels], as camera frames come, and not [n, channels, height, width]."""
    return inputs.ndim == 4 and inputs.shape[-1] <= 4 < inputs.shape[1]
