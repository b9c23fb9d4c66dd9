"""Interpolation of maps against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from histoweave._maps import spread

SIZES = [((2, 2), (16, 16)), ((7, 5), (64, 48)), ((4, 6), (4, 6)), ((1, 1), (3, 2))]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_spread_is_bilinear_interpolation_of_areas(small, large):
    maps = np.random.default_rng(0).normal(size=(3, *small))
    expected = F.interpolate(torch.from_numpy(maps)[None], large, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(spread(maps, large), expected[0], atol=1e-12)
