"""Class scores on another grid, against torch's F.interpolate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from soup.tasks.mask_resampling import bilinear, nearest, placed, resized


@pytest.mark.parametrize(
    ("have", "wanted"),
    [((32, 32), (50, 37)), ((8, 8), (32, 32)), ((7, 9), (5, 20)), ((33, 1), (10, 4)), ((4, 4), (4, 4))],
)
def test_bilinear_is_that_of_torch(have, wanted):
    planes = np.random.default_rng(0).normal(size=(3, *have)) * 5
    expected = interpolate(torch.from_numpy(planes)[None], size=wanted, mode="bilinear", align_corners=False)[0]
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        ours = np.stack([bilinear(plane.astype(dtype), resized(have, wanted)) for plane in planes])
        assert ours.dtype == dtype
        assert np.abs(ours - expected.numpy()).max() < tolerance


def test_nearest_is_torchs_nearest_exact():
    ids = np.arange(35).reshape(5, 7)
    for wanted in ((5, 7), (11, 3), (2, 20)):
        expected = interpolate(torch.from_numpy(ids)[None, None].double(), size=wanted, mode="nearest-exact")[0, 0]
        assert np.array_equal(nearest(ids, resized((5, 7), wanted)), expected.numpy())


def test_a_letterbox_is_undone_as_trainers_do_it():
    """Cut the padding off, then resize to the image: the padding's scores have no part in it."""
    scores = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 4, 32, 48)))
    scores[..., :6, :] = scores[..., 26:, :] = np.nan
    size, placement = (33, 79), (48 / 79, 20 / 33, 0.0, 6.0)
    expected = interpolate(scores[..., 6:26, :], size=size, mode="bilinear", align_corners=False)[0]
    grid = placed(size, placement, (32, 48))
    ours = np.stack([bilinear(plane, grid) for plane in scores[0].numpy()])
    assert np.abs(ours - expected.numpy()).max() < 1e-12
    assert grid[0].inside.all()
