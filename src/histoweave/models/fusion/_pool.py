"""A log-linear opinion pool: how much each head is trusted, fitted on predictions out of fold."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

FLOOR = 1e-4  # a head is never taken to be surer than this: trees on few labels say 0 too easily


class LogPool:
    """Combine probabilities: ``p_k`` proportional to ``exp(b_k + sum_m w_m log p_mk)`` with ``w >= 0``.

    The weights sum the evidence of heads that may repeat each other and calibrate it in one step (for one
    head, ``w`` is an inverse temperature); the biases undo the class balancing of the heads. Fitted by
    penalised likelihood on predictions out of fold, so that overfitted heads earn little weight.

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

    def fit(self, probabilities: np.ndarray, y: np.ndarray) -> LogPool:
        """Fit on ``(n_heads, n, k)`` probabilities out of fold and class numbers ``(n,)``."""
        # a class without rows here (one donor has all of it) is left out: these rows cannot tell its bias
        known, y = np.unique(y, return_inverse=True)
        logs = np.log(np.clip(probabilities[:, :, known], FLOOR, None))
        m, n, k = logs.shape
        start = np.concatenate([np.full(m, 1.0 / m), np.zeros(k)])
        rows = np.arange(n)

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            logits = np.tensordot(theta[:m], logs, axes=1) + theta[m:]
            logits -= logits.max(axis=1, keepdims=True)
            p = np.exp(logits)
            p /= p.sum(axis=1, keepdims=True)
            residual = p.copy()
            residual[rows, y] -= 1
            away = theta - start
            gradient = np.concatenate([np.einsum("nk,mnk->m", residual, logs), residual.sum(axis=0)])
            value = -np.log(p[rows, y] + 1e-300).sum() + self.penalty * (away @ away) / 2
            return value, gradient + self.penalty * away

        bounds = [(0, None)] * m + [(None, None)] * k
        theta = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
        self.weights, self.bias = theta[:m], np.zeros(probabilities.shape[2])
        self.bias[known] = theta[m:]
        return self

    def combine(self, probabilities: np.ndarray) -> np.ndarray:
        """Return pooled probabilities ``(n, k)`` of ``(n_heads, n, k)``."""
        logs = np.log(np.clip(probabilities, FLOOR, None))
        logits = np.tensordot(self.weights, logs, axes=1) + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        return p / p.sum(axis=1, keepdims=True)

    @classmethod
    def equal(cls, n_heads: int, n_classes: int) -> LogPool:
        """Return the pool of equal trust, for labels too few to hold any out."""
        pool = cls()
        pool.weights, pool.bias = np.full(n_heads, 1.0 / n_heads), np.zeros(n_classes)
        return pool
