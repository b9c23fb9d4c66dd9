"""Where spots, tissue and regions lie: everything about a simulated section but its pixels and counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

PITCH_UM = 100.0
RIM_UM = 90.0  # tissue beyond the outermost spots, so that a spot's own crop is all tissue
GRID_UM = 8.0  # smooth maps are drawn at this resolution and interpolated


@dataclass(frozen=True)
class Frame:
    """Size of the image and of the coarse grid on which smooth maps of the section are drawn.

    Attributes
    ----------
    shape
        Height and width of the image in pixels.
    grid
        The same of the coarse grid, which covers the image exactly.
    um_per_px
        Size of a pixel.
    """

    shape: tuple[int, int]
    grid: tuple[int, int]
    um_per_px: float

    def noise(self, rng: np.random.Generator, feature_um: float) -> np.ndarray:
        """Draw a smooth field of about unit variance with features of this size, on the coarse grid."""
        return smooth_noise(rng, self.grid, feature_um / GRID_UM)

    def at(self, field: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Interpolate a coarse map at pixel positions."""
        rows, cols = ((p + 0.5) * g / n - 0.5 for p, g, n in zip((y, x), self.grid, self.shape, strict=True))
        return map_coordinates(field, [rows, cols], order=1, mode="nearest")

    def band(self, field: np.ndarray, rows: slice) -> np.ndarray:
        """Interpolate a coarse map at every pixel of a band of rows."""
        scale = self.grid[0] / self.shape[0]
        box = (0, rows.start * scale, self.grid[1], rows.stop * scale)
        size = (self.shape[1], rows.stop - rows.start)
        return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BILINEAR, box=box))


@dataclass(frozen=True)
class Layout:
    """Spots and maps of one section.

    Attributes
    ----------
    frame
        Size of the image.
    array_row, array_col
        Integer array positions of the spots on tissue, ``(n_spots,)``.
    xy
        Their full-resolution pixel positions, ``(n_spots, 2)``.
    fields
        A coarse map for each region; a point belongs to the region whose map is highest there.
    depth_um
        Coarse map, positive inside the tissue and negative outside, about the distance to its edge.
    """

    frame: Frame
    array_row: np.ndarray
    array_col: np.ndarray
    xy: np.ndarray
    fields: list[np.ndarray]
    depth_um: np.ndarray

    def region_at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Region of pixel positions, ``0 .. n_regions - 1``."""
        return np.argmax([self.frame.at(field, y, x) for field in self.fields], axis=0)

    def region_band(self, rows: slice) -> np.ndarray:
        """Region of every pixel of a band of rows."""
        best = self.frame.band(self.fields[0], rows)
        region = np.zeros(best.shape, dtype=np.uint8)
        for k, field in enumerate(self.fields[1:], start=1):
            value = self.frame.band(field, rows)
            region[value > best] = k
            best = np.maximum(best, value)
        return region


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Draw a smooth random field of about unit variance with features of about ``cell`` grid points.

    White noise on a coarse lattice, interpolated by cubic splines: linear in the area at any ``cell``.
    """
    coarse = [math.ceil(n / cell) + 4 for n in shape]
    noise = Image.fromarray(rng.standard_normal(coarse).astype(np.float32))
    left, top = rng.uniform(1, 2, size=2)  # the lattice must not start at the same corner each time
    box = (left, top, left + shape[1] / cell, top + shape[0] / cell)
    field = np.asarray(noise.resize(shape[::-1], Image.Resampling.BICUBIC, box=box))
    return field / np.float32(0.81)  # sd of a cubically interpolated unit lattice


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
    width_um, height_um = um.max(axis=0) + RIM_UM + margin_um
    frame = Frame(
        (math.ceil(height_um / um_per_px), math.ceil(width_um / um_per_px)),
        (math.ceil(height_um / GRID_UM), math.ceil(width_um / GRID_UM)),
        um_per_px,
    )
    xy = um / um_per_px
    y, x = xy[:, 1], xy[:, 0]

    border = _border(rng, frame, RIM_UM + margin_um)
    depth = border + (0.8 * RIM_UM - frame.at(border, y, x).min())
    keep = np.ones(len(um), dtype=bool)
    if tissue_fraction < 1:
        size = min(width_um, height_um)
        dome = border + 0.1 * size * frame.noise(rng, size / 3)
        height = frame.at(dome, y, x)
        n_off = len(um) - round(tissue_fraction * len(um))
        keep[np.argsort(height, kind="stable")[:n_off]] = False
        depth = np.minimum(depth, dome + (0.5 * PITCH_UM - height[keep].min()))

    draw = _layers if layout == "layers" else _blobs
    fields = draw(rng, frame, y[keep], x[keep], n_regions)
    return Layout(
        frame,
        row[keep],
        col[keep],
        xy[keep],
        [f.astype(np.float32) for f in fields],
        depth.astype(np.float32),
    )


def _border(rng: np.random.Generator, frame: Frame, edge_um: float) -> np.ndarray:
    """Height map in um: distance to the array's border, positive within, made slightly ragged."""
    y, x = ((np.abs(np.arange(n, dtype=np.float32) - (n - 1) / 2) - n / 2) * GRID_UM + edge_um for n in frame.grid)
    x, y = x[None], y[:, None]
    beyond = np.hypot(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0)
    return 12 * frame.noise(rng, 150) - beyond


def _blobs(rng: np.random.Generator, frame: Frame, y: np.ndarray, x: np.ndarray, n_regions: int) -> list[np.ndarray]:
    """Draw a smooth field for each region, shifted until all have about equal shares of the spots."""
    feature_um = 0.6 * GRID_UM * math.sqrt(math.prod(frame.grid) / n_regions)
    fields = [frame.noise(rng, feature_um) + 0.05 * frame.noise(rng, 24) for _ in range(n_regions)]
    at_spots = np.column_stack([frame.at(f, y, x) for f in fields])
    shift = np.zeros(n_regions)
    for step in np.geomspace(2.0, 0.05, 80):
        share = np.bincount((at_spots + shift).argmax(axis=1), minlength=n_regions) / len(at_spots)
        shift += step * (1 / n_regions - share)
    return [field + s for field, s in zip(fields, shift, strict=True)]


def _layers(rng: np.random.Generator, frame: Frame, y: np.ndarray, x: np.ndarray, n_regions: int) -> list[np.ndarray]:
    """Draw wavy bands in a random direction, about equal in spots; band ``k`` lies beside ``k - 1``.

    The field of band ``k`` rises ``k`` times as fast as the position across the bands, and meets that of band
    ``k - 1`` at their border, so that the highest field names the band.
    """
    angle, longest = rng.uniform(0, 2 * math.pi), max(frame.grid)
    rows, cols = (np.arange(n, dtype=np.float32) / longest for n in frame.grid)
    across = math.cos(angle) * cols[None] + math.sin(angle) * rows[:, None]
    across = across + 0.07 * frame.noise(rng, 0.4 * longest * GRID_UM) + 0.002 * frame.noise(rng, 24)
    borders = np.quantile(frame.at(across, y, x), np.linspace(0, 1, n_regions + 1)[1:-1])
    return [k * across - borders[:k].sum() for k in range(n_regions)]
