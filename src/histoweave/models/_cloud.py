"""Where training rows lie among principal components, and what their features are measured in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from histoweave.models._base import Arrays, prefixed, subset
from histoweave.models._pca import LinearMap

N_COMPONENTS = 10


@dataclass
class Ruler:
    """What differences of features are measured in.

    Attributes
    ----------
    unit
        Of each feature ``(d,)``: its standard deviation, or 1 where all have the same units.
    square
        Mean square of each feature among the training rows ``(d,)``.
    """

    unit: np.ndarray
    square: np.ndarray

    def share(self, present: np.ndarray | None) -> float:
        """Return what the features of a mask hold of all squares: roots of shares of these alone are as much larger."""
        return 1.0 if present is None else float(self.square[present].sum() / self.square.sum())


@dataclass
class Cloud:
    """Where training rows lie: principal components, how far off them, and the covariance of both."""

    mean: np.ndarray
    ruler: Ruler
    map: LinearMap
    centre: np.ndarray
    precision: np.ndarray

    @classmethod
    def fit(cls, X: np.ndarray, *, scale: bool, random_state: int) -> Self:
        """Fit on rows ``(n, d)`` without NaN; ``scale`` where features have different units."""
        from sklearn.covariance import LedoitWolf

        mean, sd = X.mean(axis=0), X.std(axis=0)
        sd = np.where(sd > 1e-6, sd, 1.0) if scale else np.ones_like(sd)
        values = (X - mean) / sd
        found = LinearMap.principal(values, min(N_COMPONENTS, min(values.shape) - 1), random_state)
        cloud = cls(mean, Ruler(sd, np.square(X).mean(axis=0)), found, np.empty(0), np.empty(0))
        Z = cloud._coordinates(X, None)
        spread = np.maximum(Z.std(axis=0), 1e-6)
        cloud.centre = Z.mean(axis=0)
        # in like units, because it shrinks to a ball
        shrunk = LedoitWolf(assume_centered=True).fit((Z - cloud.centre) / spread)
        cloud.precision = shrunk.precision_ / np.outer(spread, spread)
        return cloud

    def _coordinates(self, X: np.ndarray, present: np.ndarray | None) -> np.ndarray:
        """Return the components, and the logarithm of what they leave over ``(n, n_components + 1)``."""
        values = (X * np.sqrt(self.ruler.share(present)) - self.mean) / self.ruler.unit
        T = self.map.apply(values, present)
        rest = values - self.map.mean - T @ self.map.components
        rest = rest if present is None else rest[:, present]
        return np.column_stack([T, 0.5 * np.log((rest**2).mean(axis=1) + 1e-12)])

    def distance(self, X: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Return the logarithm of the Mahalanobis distance, root mean square over the directions, ``(n,)``."""
        Z = self._coordinates(X, present) - self.centre
        squared = np.einsum("ij,jk,ik->i", Z, self.precision, Z) / len(self.centre)
        return 0.5 * np.log(np.maximum(squared, 1e-12))

    def arrays(self) -> Arrays:
        """Return the arrays that the class is made of."""
        own = {name: getattr(self, name) for name in ("mean", "centre", "precision")}
        return own | prefixed("ruler", vars(self.ruler)) | prefixed("map", self.map.arrays())

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `arrays`."""
        own = {name: arrays[name] for name in ("mean", "centre", "precision")}
        return cls(**own, ruler=Ruler(**subset("ruler", arrays)), map=LinearMap.from_arrays(subset("map", arrays)))
