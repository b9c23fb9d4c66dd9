"""Probabilistic principal components that also project rows of which some features are missing."""

from __future__ import annotations

from typing import Self

import numpy as np

from histoweave._validate import warn
from histoweave.models._base import Arrays

MAX_FIT_ROWS = 50_000  # components of a sample this large have settled; more rows only cost memory

AS_IT_IS = 1e12  # variance of what is kept whatever the noise


class LinearMap:
    """Posterior mean of the latent position under probabilistic PCA (Tipping & Bishop, 1999, JRSS B 61).

    With features missing, the position is estimated from those that are there, instead of taking the
    missing ones to be at their mean.
    """

    def __init__(self, mean: np.ndarray, components: np.ndarray, variance: np.ndarray, noise: float) -> None:
        self.mean, self.components, self.variance, self.noise = mean, components, variance, float(noise)

    @classmethod
    def principal(cls, X: np.ndarray, n_components: int, random_state: int) -> Self:
        """Learn ``n_components`` (fewer where rows or features are fewer) from the rows that are not NaN."""
        from sklearn.decomposition import PCA

        X = X[~np.isnan(X).any(axis=1)]
        if len(X) > MAX_FIT_ROWS:
            X = X[np.sort(np.random.default_rng(random_state).choice(len(X), MAX_FIT_ROWS, replace=False))]
        most = min(X.shape) - 1
        if most < 1:
            msg = f"Principal components need at least 2 rows and 2 features, got {X.shape}."
            raise ValueError(msg)
        if n_components > most:
            warn(
                f"`n_components={n_components}` is more than {X.shape[0]} rows and {X.shape[1]} features allow; "
                f"{most} are used."
            )
        pca = PCA(min(n_components, most), svd_solver="auto", random_state=random_state).fit(X)
        # components that explain nothing have no direction: a floor keeps their scores at 0, not at noise
        return cls(
            pca.mean_,
            pca.components_,
            np.maximum(pca.explained_variance_, 1e-8),
            max(pca.noise_variance_, 1e-8),
        )

    def beside(self, n_features: int) -> Self:
        """Return the same map followed by ``n_features`` features of mean 0 that it leaves as they are."""
        n, d = self.components.shape
        components = np.zeros((n + n_features, d + n_features))
        components[:n, :d], components[n:, d:] = self.components, np.eye(n_features)
        variance = np.concatenate([self.variance, np.full(n_features, AS_IT_IS)])
        return type(self)(np.concatenate([self.mean, np.zeros(n_features)]), components, variance, self.noise)

    def weights(self, present: np.ndarray | None = None) -> np.ndarray:
        """Return the projection ``(n_components, d)`` from the features in the mask ``present``, 0 at the others."""
        present = np.ones(len(self.mean), dtype=bool) if present is None else present
        W = self.components[:, present]
        # noise relative to what each component explains beyond it, as in the posterior of the latent position
        ridge = self.noise / np.maximum(self.variance - self.noise, 1e-3 * self.noise)
        out = np.zeros_like(self.components)
        out[:, present] = np.linalg.solve(W @ W.T + np.diag(ridge), W)
        return out

    def apply(self, X: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
        """Project ``(n, d)`` to ``(n, n_components)`` float32, from the features in the mask ``present`` ``(d,)``."""
        present = np.ones(len(self.mean), dtype=bool) if present is None else present
        weights = self.weights(present)[:, present]
        return ((X[:, present] - self.mean[present]) @ weights.T).astype(np.float32)

    def arrays(self) -> Arrays:
        """Return the arrays that `from_arrays` takes."""
        noise = np.array([self.noise])
        return {"mean": self.mean, "components": self.components, "variance": self.variance, "noise": noise}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `arrays`."""
        return cls(arrays["mean"], arrays["components"], arrays["variance"], arrays["noise"][0])
