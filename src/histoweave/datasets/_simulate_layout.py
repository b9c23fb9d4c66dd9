"""Where spots, tissue and regions lie: everything about a simulated section but its pixels and counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

PITCH_UM = 100.0
RIM_UM = 90.0  # tissue beyond the outermost spots, so that a spot's own crop is all tissue
GRID_UM = 8.0  # smooth fields are drawn at this resolution and interpolated


@dataclass(frozen=True)
class Layout:
    """Spots and maps of one section.

    Attributes
    ----------
    array_row, array_col
        Integer array positions of the spots on tissue, ``(n_spots,)``.
    xy
        Their full-resolution pixel positions, ``(n_spots, 2)``.
    region
        Their region, ``0 .. n_regions - 1``.
    region_map
        Region of every pixel, ``(height, width)`` uint8; what the image is painted from.
    depth_um
        Smooth map, positive inside the tissue and negative outside, about the distance to its edge.
    """

    array_row: np.ndarray
    array_col: np.ndarray
    xy: np.ndarray
    region: np.ndarray
    region_map: np.ndarray
    depth_um: np.ndarray


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Return a smooth random field of unit variance with features of about ``cell`` pixels.

    White noise on a coarse lattice, interpolated by cubic splines: linear in the area at any ``cell``.
    """
    coarse = [math.ceil(n / cell) + 4 for n in shape]
    noise = Image.fromarray(rng.standard_normal(coarse).astype(np.float32))
    left, top = rng.uniform(1, 2, size=2)  # the lattice must not start at the same corner each time
    box = (left, top, left + shape[1] / cell, top + shape[0] / cell)
    field = np.asarray(noise.resize(shape[::-1], Image.Resampling.BICUBIC, box=box))
    return field / np.float32(0.72)  # sd of a cubically interpolated unit lattice


def array_positions(n_rows: int, n_cols: int, grid: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``array_row``, ``array_col`` and the positions in um, the first spot at ``(0, 0)``."""
    row, col = (a.ravel() for a in np.mgrid[:n_rows, :n_cols])
    if grid == "square":
        return row, col, np.column_stack([col, row]) * PITCH_UM
    col = 2 * col + row % 2  # Space Ranger: even rows hold even columns, odd rows odd ones
    return row, col, np.column_stack([col / 2, row * math.sqrt(3) / 2]) * PITCH_UM


def draw_layout(
    rng: np.random.Generator,
    *,
    n_rows: int,
    n_cols: int,
    n_regions: int,
    um_per_px: float,
    array_grid: str,
    layout: str,
    tissue_fraction: float,
    margin_um: float,
) -> Layout:
    """Draw the tissue outline and the regions of one section, regions about equal in spots."""
    row, col, um = array_positions(n_rows, n_cols, array_grid)
    um = um + RIM_UM + margin_um
    extent = um.max(axis=0) + RIM_UM + margin_um
    width, height = (math.ceil(e / um_per_px) for e in extent)
    grid = (math.ceil(height * um_per_px / GRID_UM), math.ceil(width * um_per_px / GRID_UM))
    xy = um / um_per_px
    pixel = tuple(np.rint(xy[:, ::-1]).astype(int).T)

    border = _upsample(_border(rng, grid, RIM_UM + margin_um), (height, width))
    depth = border + 0.8 * RIM_UM - border[pixel].min()
    keep = np.ones(len(um), dtype=bool)
    if tissue_fraction < 1:
        dome = border + _upsample(0.1 * min(extent) * smooth_noise(rng, grid, min(grid) / 3), (height, width))
        n_off = len(um) - round(tissue_fraction * len(um))
        keep[np.argsort(dome[pixel], kind="stable")[:n_off]] = False
        depth = np.minimum(depth, dome + 0.5 * PITCH_UM - dome[pixel][keep].min())
    spots = tuple(p[keep] for p in pixel)

    draw = _layers if layout == "layers" else _blobs
    region_map = draw(rng, grid, (height, width), spots, n_regions)
    return Layout(row[keep], col[keep], xy[keep], region_map[spots].astype(int), region_map, depth)


def _upsample(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    resized = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32)).resize(
        shape[::-1], Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


def _border(rng: np.random.Generator, grid: tuple[int, int], edge_um: float) -> np.ndarray:
    """Height map in um: distance to the array's border, positive within, made slightly ragged."""
    y, x = ((np.abs(np.arange(n, dtype=np.float32) - (n - 1) / 2) - n / 2) * GRID_UM + edge_um for n in grid)
    x, y = x[None], y[:, None]
    beyond = np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0)
    return 12 * smooth_noise(rng, grid, 150 / GRID_UM) - beyond


def _blobs(
    rng: np.random.Generator,
    grid: tuple[int, int],
    shape: tuple[int, int],
    spots: tuple[np.ndarray, np.ndarray],
    n_regions: int,
) -> np.ndarray:
    """Give each pixel to the highest of ``n_regions`` smooth fields, shifted until shares are equal."""
    cell = 0.6 * math.sqrt(grid[0] * grid[1] / n_regions)
    fields = [smooth_noise(rng, grid, cell) + 0.05 * smooth_noise(rng, grid, 3) for _ in range(n_regions)]
    at_spots = np.column_stack([_upsample(f, shape)[spots] for f in fields])
    shift = np.zeros(n_regions)
    for step in np.geomspace(2.0, 0.05, 80):
        share = np.bincount((at_spots + shift).argmax(axis=1), minlength=n_regions) / len(at_spots)
        shift += step * (1 / n_regions - share)
    region_map = np.zeros(shape, dtype=np.uint8)
    best = np.full(shape, -np.inf, dtype=np.float32)
    for k, field in enumerate(fields):
        value = _upsample(field, shape) + np.float32(shift[k])
        region_map[value > best] = k
        np.maximum(best, value, out=best)
    return region_map


def _layers(
    rng: np.random.Generator,
    grid: tuple[int, int],
    shape: tuple[int, int],
    spots: tuple[np.ndarray, np.ndarray],
    n_regions: int,
) -> np.ndarray:
    """Wavy parallel bands in a random direction, about equal in spots; band ``k`` lies beside ``k - 1``."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = (np.arange(n, dtype=np.float32) / max(grid) for n in grid)
    depth = math.cos(angle) * x[None] + math.sin(angle) * y[:, None]
    depth = depth + 0.07 * smooth_noise(rng, grid, 0.4 * max(grid)) + 0.002 * smooth_noise(rng, grid, 3)
    full = _upsample(depth, shape)
    cuts = np.quantile(full[spots], np.linspace(0, 1, n_regions + 1)[1:-1])
    return np.digitize(full, cuts).astype(np.uint8)
