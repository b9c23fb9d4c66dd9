"""Do spots lie on the tissue, and would they lie better turned, mirrored or scaled? Arrays only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

MAX_SPOTS = 4000
MAX_TISSUE = 4000
#: The eight ways to lay x and y: swap them or not, then count x, y from the other side or not.
ORIENTATIONS = tuple((swap, fx, fy) for swap in (False, True) for fx in (False, True) for fy in (False, True))


@dataclass(frozen=True)
class Fit:
    """How spots and tissue match: share of spots on tissue, share of tissue under spots."""

    on_tissue: float
    covered: float

    @property
    def score(self) -> float:
        """Return the harmonic mean: neither a cluster of spots nor a wide spread looks good."""
        both = self.on_tissue + self.covered
        return 2 * self.on_tissue * self.covered / both if both else 0.0


@dataclass
class TissueMap:
    """Where a thumbnail shows tissue, asked in full-resolution pixels.

    Parameters
    ----------
    mask
        Tissue on the thumbnail, ``(height, width)``.
    size
        Width and height of the image in full-resolution pixels.
    """

    mask: np.ndarray
    size: tuple[float, float]
    _points: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rows, columns = np.nonzero(self.mask)
        keep = np.random.default_rng(0).permutation(len(rows))[:MAX_TISSUE]
        points = np.stack([columns[keep], rows[keep]], axis=1) + 0.5
        self._points = points * np.asarray(self.size) / self.mask.shape[::-1]

    def at(self, xy: np.ndarray) -> np.ndarray:
        """Tell for each point whether it lies on tissue; outside the image it does not."""
        cell = np.floor(xy * np.asarray(self.mask.shape[::-1]) / self.size).astype(np.int64)
        inside = ((cell >= 0) & (cell < self.mask.shape[::-1])).all(axis=1)
        found = np.zeros(len(xy), bool)
        found[inside] = self.mask[cell[inside, 1], cell[inside, 0]]
        return found

    def fit(self, xy: np.ndarray) -> Fit:
        """Return how points match the tissue; each covers the ground up to its neighbours."""
        from scipy.spatial import cKDTree

        tree = cKDTree(xy)
        reach = 0.75 * np.median(tree.query(xy, k=2)[0][:, 1]) if len(xy) > 1 else 0.0
        if reach == 0:
            return Fit(float(self.at(xy).mean()), 0.0)
        near = np.isfinite(tree.query(self._points, distance_upper_bound=reach)[0])
        return Fit(float(self.at(xy).mean()), float(near.mean()))

    def extent(self) -> np.ndarray:
        """Return how far the tissue reaches from the origin (x, y), stray specks left out."""
        return np.percentile(self._points, 98, axis=0)


def sample(xy: np.ndarray) -> np.ndarray:
    """Return at most ``MAX_SPOTS`` of the points, always the same ones."""
    return xy[np.sort(np.random.default_rng(0).permutation(len(xy))[:MAX_SPOTS])]


def oriented(xy: np.ndarray, orientation: tuple[bool, bool, bool], size: tuple[float, float]) -> np.ndarray:
    """Return the points laid another way on an image of a size (width, height)."""
    swap, flip_x, flip_y = orientation
    xy = xy[:, ::-1] if swap else xy
    return np.where((flip_x, flip_y), np.asarray(size) - xy, xy)


def mirrors(orientation: tuple[bool, bool, bool]) -> bool:
    """Tell whether an orientation turns a left hand into a right hand."""
    return sum(orientation) % 2 == 1


def best_orientation(
    tissue: TissueMap | None,
    xy: np.ndarray,
    size: tuple[float, float],
    allowed: Iterable[tuple[bool, bool, bool]],
    steps: np.ndarray | None,
) -> tuple[tuple[bool, bool, bool], Fit]:
    """Return the orientation that matches best among ``allowed`` and its fit.

    Fits within 0.02 count as equal; among them the one wins that brings the array's columns along x and its
    rows along y (``steps``, the pixel vectors of a column and of a row, shape ``(2, 2)``), then the one with
    the fewest changes.
    """
    fits = {o: tissue.fit(oriented(xy, o, size)) if tissue else Fit(0.0, 0.0) for o in allowed}
    top = max(f.score for f in fits.values())
    close = [o for o, f in fits.items() if f.score >= top - 0.02]

    def preference(orientation: tuple[bool, bool, bool]) -> tuple[float, int]:
        aligned = 0.0 if steps is None else _alignment(steps, orientation)
        return (-round(aligned, 2), sum(orientation))

    choice = min(close, key=preference)
    return choice, fits[choice]


def _alignment(steps: np.ndarray, orientation: tuple[bool, bool, bool]) -> float:
    turned = oriented(steps, orientation, (0.0, 0.0))
    lengths = np.linalg.norm(turned, axis=1)
    return float(turned[0, 0] / lengths[0] + turned[1, 1] / lengths[1])
