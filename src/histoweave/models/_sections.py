"""Per-section standardisation: stain, depth and chemistry differ by section, and labels are not needed to see it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from histoweave._validate import warn

#: Below this many measured spots a section's own mean and spread are too noisy to standardise with.
MIN_SPOTS = 20
LIMIT = 6.0  # standardised values beyond this are artefacts; cutting them keeps them from ruling a linear head


class SectionScaler:
    """Standardise features per section; sections too small for that use the training sections' pooled statistics.

    Parameters
    ----------
    scale
        Divide by the standard deviation as well.
    """

    def __init__(self, *, scale: bool = True) -> None:
        self.scale = scale
        self.mean: np.ndarray | None = None
        self.sd: np.ndarray | None = None

    def fit(self, X: np.ndarray) -> SectionScaler:
        """Keep pooled mean and SD ``(d,)`` of the rows that are not NaN."""
        measured = X[~np.isnan(X).any(axis=1)]
        self.mean = measured.mean(axis=0)
        self.sd = spread(measured)
        return self

    def transform(self, X: np.ndarray, rows_of: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return ``X`` ``(n, d)`` standardised within each section of ``rows_of``; NaN rows stay NaN."""
        out = np.full(X.shape, np.nan, dtype=np.float32)
        small = []
        for name, rows in rows_of.items():
            n_measured = (~np.isnan(X[rows]).any(axis=1)).sum()
            if 0 < n_measured < MIN_SPOTS:
                small.append(name)
            out[rows] = self.as_in(X[rows], X[rows])
        if small:
            warn(
                f"Sections with fewer than {MIN_SPOTS} measured spots ({', '.join(small)}) were standardised with the "
                "training sections' mean and spread instead of their own."
            )
        return out

    def as_in(self, X: np.ndarray, section: np.ndarray) -> np.ndarray:
        """Return rows ``(n, d)`` standardised as those of one section, whose own rows ``section`` are ``(m, d)``."""
        measured = section[~np.isnan(section).any(axis=1)]
        mean, sd = self.mean, self.sd
        if len(measured) >= MIN_SPOTS:
            mean, sd = measured.mean(axis=0), spread(measured)
        return np.clip((X - mean) / sd, -LIMIT, LIMIT) if self.scale else X - mean


def spread(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation of every feature, 1 where it hardly varies."""
    sd = values.std(axis=0)
    return np.where(sd > 1e-6, sd, 1.0)  # a constant feature carries nothing: it becomes 0, not infinity
