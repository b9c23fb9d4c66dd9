"""Coarse maps over pictures: spread to the pictures' size, the same way wherever they are drawn or checked."""

from __future__ import annotations

import numpy as np


def spread(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate maps ``(n, h, w)`` bilinearly to ``(n, *shape)``; cells are areas, edges keep the outer value."""
    if maps.shape[1:] == tuple(shape):
        return maps
    down, across = (_weights(a, b).astype(maps.dtype) for a, b in zip(maps.shape[1:], shape, strict=True))
    return down @ maps @ across.T


def _weights(n_in: int, n_out: int) -> np.ndarray:
    place = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    return np.clip(1 - np.abs(place[:, None] - np.arange(n_in)), 0, None)
