"""A log-linear opinion pool: how much each head is trusted, fitted on predictions out of fold."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from histoweave.models._base import Arrays

FLOOR = 1e-4  # a head is never taken to be surer than this: trees on few labels say 0 too easily
#: The weights of a pool sum to this at least: evidence too weak to be believed still ranks the classes.
LEAST_TRUST = 0.05


class LogPool:
    """Combine probabilities: ``p_k`` proportional to ``exp(b_k + sum_m w_m log p_mk)`` with ``w >= 0``.

    The weights sum the evidence of heads that may repeat each other (for one head, ``w`` is an inverse
    temperature). Fitted by penalised likelihood on predictions out of fold, so that overfitted heads earn little
    weight.

    Parameters
    ----------
    penalty
        Strength of the pull towards equal weights that sum to 1 and zero biases, in observations.

    References
    ----------
    Genest & Zidek (1986), Statistical Science 1(1); Guo et al. (2017), ICML, for temperature scaling.
    """

    def __init__(self, penalty: float = 4.0) -> None:
        self.penalty = penalty

    def fit(
        self, probabilities: np.ndarray, y: np.ndarray, row_weights: np.ndarray | None = None, *, biased: bool = True
    ) -> LogPool:
        """Fit on ``(n_heads, n, k)`` probabilities out of fold, class numbers ``(n,)`` and weights of rows ``(n,)``.

        Without ``biased``, all biases are 0.
        """
        # a class without rows here (one donor has all of it) is left out: these rows cannot tell its bias
        known, y = np.unique(y, return_inverse=True)
        logs = logarithms(probabilities[:, :, known])
        m, n, k = logs.shape
        start = np.concatenate([np.full(m, 1.0 / m), np.zeros(k)])
        rows = np.arange(n)
        counts = np.ones(n) if row_weights is None else row_weights

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            log_p = log_softmax(np.tensordot(theta[:m], logs, axes=1) + theta[m:], axis=1)
            residual = np.exp(log_p)
            residual[rows, y] -= 1
            residual *= counts[:, None]
            away = theta - start
            gradient = np.concatenate([np.einsum("nk,mnk->m", residual, logs), residual.sum(axis=0)])
            value = -(counts * log_p[rows, y]).sum() + self.penalty * (away @ away) / 2
            return value, gradient + self.penalty * away

        bounds = [(0, None)] * m + [(None, None) if biased else (0, 0)] * k
        theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
        self.weights, self.bias = _at_least(theta[:m]), np.zeros(probabilities.shape[2])
        self.bias[known] = theta[m:]
        return self

    def combine(self, probabilities: np.ndarray) -> np.ndarray:
        """Return pooled probabilities ``(n, k)`` of ``(n_heads, n, k)``."""
        return softmax(np.tensordot(self.weights, logarithms(probabilities), axes=1) + self.bias, axis=1)

    def arrays(self) -> Arrays:
        """Return what `from_arrays` needs."""
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> LogPool:
        """Rebuild from `arrays`."""
        pool = cls()
        pool.weights, pool.bias = arrays["weights"], arrays["bias"]
        return pool

    @classmethod
    def equal(cls, n_heads: int, n_classes: int) -> LogPool:
        """Return the pool of equal trust, for labels too few to hold any out."""
        pool = cls()
        pool.weights, pool.bias = np.full(n_heads, 1.0 / n_heads), np.zeros(n_classes)
        return pool


def logarithms(probabilities: np.ndarray) -> np.ndarray:
    """Return the logarithms of probabilities, none below that of ``FLOOR``."""
    return np.log(np.clip(probabilities, FLOOR, None))


def _at_least(weights: np.ndarray) -> np.ndarray:
    """Raise weights whose sum is below ``LEAST_TRUST``, keeping their ratios; equal ones where all are 0."""
    total = weights.sum()
    if total >= LEAST_TRUST:
        return weights
    return weights * (LEAST_TRUST / total) if total > 1e-6 else np.full(len(weights), LEAST_TRUST / len(weights))
