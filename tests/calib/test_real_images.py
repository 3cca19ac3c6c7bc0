from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from calib import CalibError
from calib.real_images import neighbour_correlations, refuse_unreal


def digits(count: int = 64) -> np.ndarray:
    """[n, 1, 8, 8], 0 to 255."""
    return np.asarray(load_digits().images[:count, None] * 16, np.float32)


def photographs(count: int = 40) -> np.ndarray:
    """Crops of two photographs, [n, 3, 64, 64]."""
    random = np.random.default_rng(0)
    crops = []
    for index in range(count):
        image = load_sample_images().images[index % 2]
        top, left = random.integers(0, 427 - 64), random.integers(0, 640 - 64)
        crops.append(image[top : top + 64, left : left + 64])
    return np.stack(crops).transpose(0, 3, 1, 2)


def noise(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "uniform":
        return random.random(shape).astype(np.float32)
    if kind == "bytes":
        return random.integers(0, 256, shape).astype(np.uint8)
    return random.normal(size=shape).astype(np.float32)


def test_real_images_pass_in_every_layout_and_dtype() -> None:
    refuse_unreal(digits(), where="calib")
    refuse_unreal(photographs(), where="calib")
    refuse_unreal(photographs().transpose(0, 2, 3, 1), where="calib")
    scaled = (photographs() / 255 - np.array([0.485, 0.456, 0.406])[:, None, None]) / 0.229
    refuse_unreal(scaled.astype(np.float32), where="calib")
    assert (neighbour_correlations(photographs()) > 0.5).mean() > 0.9


@pytest.mark.parametrize("sigma", [50, 100, 150])
@pytest.mark.parametrize("count", [32, 200])
def test_heavily_noised_digits_pass(sigma: float, count: int) -> None:
    noisy = digits(count) + np.random.default_rng(1).normal(0, sigma, (count, 1, 8, 8)).astype(np.float32)
    refuse_unreal(np.clip(noisy, 0, 255).astype(np.uint8), where="calib")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["uniform", "normal", "bytes"])
@pytest.mark.parametrize("shape", [(32, 1, 8, 8), (40, 3, 32, 32), (40, 32, 32, 3)])
def test_noise_is_refused(kind: str, shape: tuple[int, ...], seed: int) -> None:
    with pytest.raises(CalibError, match=r"^calib: the calibration images are noise, neighbouring pixels") as caught:
        refuse_unreal(noise(kind, shape, seed), where="calib")
    assert caught.value.kind == "input"


def test_noise_in_channels_of_different_brightness_is_still_noise() -> None:
    """As normalisation with a mean for each channel leaves it."""
    shifted = noise("normal", (40, 3, 16, 16)) + np.array([0, 50, -90], np.float32)[:, None, None]
    for images in (shifted, shifted.transpose(0, 2, 3, 1)):
        with pytest.raises(CalibError, match="are noise"):
            refuse_unreal(images, where="calib")


def autoregressive(correlation: float) -> np.ndarray:
    random, lines = np.random.default_rng(3), np.zeros((64, 1, 4, 2000))
    steps = random.normal(size=lines.shape)
    for place in range(1, 2000):
        lines[..., place] = correlation * lines[..., place - 1] + steps[..., place]
    return lines


def test_the_statistic_is_the_correlation_that_an_autoregressive_line_was_made_with() -> None:
    correlations = neighbour_correlations(autoregressive(0.7))
    assert correlations is not None
    assert correlations.mean() == pytest.approx(0.7, abs=0.01)


def test_many_pixels_do_not_make_a_trace_of_correlation_a_photograph() -> None:
    """It is significant, and still nothing that a camera gives."""
    with pytest.raises(CalibError, match=r"correlate by 0\.0[23]"):
        refuse_unreal(autoregressive(0.03), where="calib")
    refuse_unreal(autoregressive(0.1), where="calib")


def test_vectors_have_no_neighbours_and_are_not_judged() -> None:
    refuse_unreal(noise("normal", (40, 20)), where="calib")


@pytest.mark.parametrize("minimum", [32, 10])
def test_too_few_images_are_told_with_their_number(minimum: int) -> None:
    with pytest.raises(CalibError, match=rf"^calib: {minimum - 1} usable calibration images .* at least {minimum}\."):
        refuse_unreal(digits(minimum - 1), where="calib", minimum=minimum)
    refuse_unreal(digits(minimum), where="calib", minimum=minimum)


def test_one_image_is_never_enough() -> None:
    with pytest.raises(CalibError, match="1 usable calibration images"):
        refuse_unreal(digits(1), where="calib", minimum=1)
    with pytest.raises(CalibError, match="0 usable calibration images"):
        refuse_unreal(digits(0), where="calib", minimum=0)


def test_the_same_image_again_and_blank_ones_do_not_count() -> None:
    repeated = np.concatenate([digits(30), digits(10), np.full((5, 1, 8, 8), 3, np.float32)])
    with pytest.raises(CalibError, match=r"30 usable calibration images \(45 in all, 5 constant, 10 repeated\)"):
        refuse_unreal(repeated, where="calib")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_name_their_image(bad: float) -> None:
    images = digits()
    images[7, 0, 1, 1] = bad
    with pytest.raises(CalibError, match="image 7 holds NaN or Inf"):
        refuse_unreal(images, where="calib")
