"""From pooled evidence to probabilities that can be believed, without changing which class ranks first."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from histoweave.models._base import Arrays
from histoweave.models.fusion._pool import LogPool

KINDS = ("temperature", "isotonic")
KEPT_SLOPE = 1e-3  # share of the identity in the isotonic map: it keeps ties from hiding which class is ahead


class Calibrator:
    """Turn class-balanced probabilities into probabilities for a section with the labelled rows' composition.

    Parameters
    ----------
    kind
        ``"temperature"``: one inverse temperature and a bias per class (Guo et al., 2017). ``"isotonic"``: after
        it, one non-decreasing map for the probabilities of all classes, which are then rescaled to sum to 1, so
        that the ranking of the classes stays (Zhang et al., 2020); it assumes less and needs more rows.

    References
    ----------
    Guo et al. (2017), ICML; Zhang, Kailkhura & Han (2020), Mix-n-Match, ICML.
    """

    def __init__(self, kind: str = "temperature") -> None:
        self.kind = kind
        self.knots = np.array([[0.0, 1.0], [0.0, 1.0]])

    def fit(self, p: np.ndarray, y: np.ndarray, row_weights: np.ndarray) -> Self:
        """Fit on balanced probabilities ``(n, k)`` out of fold, class numbers ``(n,)`` and weights of rows ``(n,)``."""
        self.scale = LogPool().fit(p[None], y, row_weights)
        if self.kind == "isotonic":
            from sklearn.isotonic import IsotonicRegression

            q = self.scale.combine(p[None])
            hit = np.zeros(q.shape)
            hit[np.arange(len(y)), y] = 1.0
            curve = IsotonicRegression(y_min=0.0, y_max=1.0).fit(
                q.ravel(), hit.ravel(), np.repeat(row_weights, q.shape[1])
            )
            self.knots = np.stack([curve.X_thresholds_, curve.y_thresholds_]).astype(np.float64)
        return self

    @classmethod
    def identity(cls, n_classes: int) -> Calibrator:
        """Return a calibrator that changes nothing."""
        calibrator = cls()
        calibrator.scale = LogPool.equal(1, n_classes)
        return calibrator

    def apply(self, p: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities ``(n, k)``."""
        q = self.scale.combine(p[None])
        if self.kind == "isotonic":
            q = (1 - KEPT_SLOPE) * np.interp(q, *self.knots) + KEPT_SLOPE * q
            q /= q.sum(axis=1, keepdims=True)
        return q

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        return {"kind": self.kind}, self.scale.arrays() | {"knots": self.knots}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> Calibrator:
        """Rebuild from `state`."""
        calibrator = cls(config["kind"])
        calibrator.scale, calibrator.knots = LogPool.from_arrays(arrays), arrays["knots"]
        return calibrator
