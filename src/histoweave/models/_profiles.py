"""Mean features of whole sections, and how far a section's lie from those of the training sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp

from histoweave.models._base import Arrays
from histoweave.models._cloud import Ruler

PRIOR_SD, PRIOR_DONORS = 0.2, 4  # log distances of simulated donors vary by 0.05 to 0.15; counts as four donors would

Matrix = np.ndarray | sp.csr_matrix


@dataclass
class Profiles:
    """What the training sections are on average: the noise of single spots, which hides what is strange, cancels.

    Attributes
    ----------
    mean, noise
        Mean features of every section, and the variance of that mean ``(n_sections, d)``.
    levels
        Log distance of each training donor from the nearest section of another.
    ruler
        What differences are measured in.
    """

    mean: np.ndarray
    noise: np.ndarray
    levels: np.ndarray
    ruler: Ruler

    @classmethod
    def fit(cls, X: np.ndarray, section: np.ndarray, part: np.ndarray, ruler: Ruler) -> Self | None:
        """Fit on rows ``(n, d)`` without NaN; ``None`` unless there are sections of two donors.

        Parameters
        ----------
        X
            Features ``(n, d)``.
        section, part
            The section of every row, and its donor (or again the section).
        ruler
            Fitted on the same rows.
        """
        names, first = np.unique(section, return_index=True)
        donor = part[first]
        if len(np.unique(donor)) < 2 or any(len(np.unique(part[section == name])) > 1 for name in names):
            return None  # parts of one section say nothing of the next
        mean, noise = map(np.stack, zip(*(_moments(X[section == name]) for name in names), strict=True))
        found = cls(mean, noise, np.empty(0), ruler)
        nearest = [found._from(mean[i], noise[i], donor != donor[i]) for i in range(len(names))]
        found.levels = np.array([np.mean(np.asarray(nearest)[donor == name]) for name in np.unique(donor)])
        return found

    def distance(self, X: Matrix, present: np.ndarray | None = None) -> float:
        """Return the log distance of a section, given its rows, from the nearest training section.

        Parameters
        ----------
        X
            Features ``(n, d)`` without NaN.
        present
            Mask of the features that are there: roots of shares, which together are less than all.
        """
        mean, noise = _moments(X)
        share = self.ruler.share(present)
        return self._from(mean * np.sqrt(share), noise * share, np.ones(len(self.mean), dtype=bool), present)

    def _from(
        self, mean: np.ndarray, noise: np.ndarray, others: np.ndarray, present: np.ndarray | None = None
    ) -> float:
        known = np.ones(len(mean), dtype=bool) if present is None else present
        weight = 1 / np.square(self.ruler.unit[known])
        squared = np.square(self.mean[others][:, known] - mean[known]) @ weight
        chance = (self.noise[others][:, known] + noise[known]) @ weight
        nearest = np.maximum(squared - chance, 0.1 * squared).min()
        return float(0.5 * np.log(nearest / (self.ruler.square[known] @ weight) + 1e-12))

    def limit(self, rate: float) -> float:
        """Return the log distance that a share ``rate`` of usual sections exceeds, if log distances are normal."""
        from scipy.stats import t

        k = len(self.levels)
        df = k - 1 + PRIOR_DONORS
        variance = ((k - 1) * self.levels.var(ddof=1) + PRIOR_DONORS * PRIOR_SD**2) / df
        return float(self.levels.mean() + t.ppf(1 - rate, df) * np.sqrt(variance * (1 + 1 / k)))

    def arrays(self) -> Arrays:
        """Return the arrays that the class is made of, without the ruler."""
        return {name: getattr(self, name) for name in ("mean", "noise", "levels")}


def _moments(X: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the rows, and the variance of that mean."""
    mean = np.asarray(X.mean(axis=0)).ravel()
    squares = X.multiply(X) if sp.issparse(X) else np.square(X)
    variance = np.asarray(squares.mean(axis=0)).ravel() - mean**2
    return mean, np.maximum(variance, 0) / max(X.shape[0] - 1, 1)
