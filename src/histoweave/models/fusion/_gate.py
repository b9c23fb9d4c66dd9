"""A gate: how much each modality is trusted, spot by spot, fitted on predictions out of fold."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from histoweave.models._base import Arrays
from histoweave.models.fusion._pool import LogPool, logarithms


class Gate:
    """Combine modalities with weights that differ from spot to spot and sum to 1.

    Each modality pools its heads and gets a score ``a_m = c_m + u_m . f_m``, linear in ``f_m``: the class
    probabilities it states and how far they are from even. The weights are the softmax of the scores over the
    modalities, and the answer is ``p_k`` proportional to ``exp(sum_m g_m log p_mk)``. A modality
    with an even answer dilutes the others' evidence, so that the likelihood moves the weight to the one that knows.

    Parameters
    ----------
    owner
        Modality of every head ``(n_heads,)``, numbered from 0.
    penalty
        Strength of the pull towards equal weights, in observations.

    References
    ----------
    Jacobs, Jordan, Nowlan & Hinton (1991), Neural Computation 3; Arevalo et al. (2017), gated multimodal units.
    """

    def __init__(self, owner: np.ndarray, penalty: float = 0.25) -> None:
        self.owner, self.penalty = owner, penalty
        self.n_modalities = int(owner.max()) + 1

    def fit(self, probabilities: np.ndarray, y: np.ndarray, row_weights: np.ndarray) -> Gate:
        """Fit on ``(n_heads, n, k)`` probabilities out of fold, class numbers ``(n,)`` and weights of rows ``(n,)``."""
        pools = [LogPool().fit(probabilities[self.owner == m], y, row_weights, biased=False)
                 for m in range(self.n_modalities)]  # fmt: skip
        self.head_weights = np.concatenate([pool.weights for pool in pools])
        logs = self._logs(probabilities)
        inputs = _inputs(logs)
        n_modalities, n, width = inputs.shape
        rows = np.arange(n)

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            u = theta.reshape(n_modalities, width)
            scores = np.einsum("mnf,mf->mn", inputs, u)
            g = softmax(scores, axis=0)
            log_p = log_softmax(np.einsum("mn,mnk->nk", g, logs), axis=1)
            residual = np.exp(log_p)
            residual[rows, y] -= 1
            pull = np.einsum("nk,mnk->mn", residual, logs)
            pull = g * (pull - (g * pull).sum(axis=0)) * row_weights
            value = -(row_weights * log_p[rows, y]).sum() + self.penalty * (theta @ theta) / 2
            return value, (np.einsum("mn,mnf->mf", pull, inputs) + self.penalty * u).ravel()

        theta = minimize(loss, np.zeros(n_modalities * width), jac=True, method="L-BFGS-B").x
        self.u = theta.reshape(n_modalities, width)
        self.mean = self.spot_weights(probabilities).mean(axis=0)
        return self

    def _logs(self, probabilities: np.ndarray) -> np.ndarray:
        """Log-probabilities of each modality ``(n_modalities, n, k)``, its heads pooled."""
        weighted = self.head_weights[:, None, None] * logarithms(probabilities)
        sums = [weighted[self.owner == m].sum(axis=0) for m in range(self.n_modalities)]
        return log_softmax(np.stack(sums), axis=2)

    def spot_weights(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the weight of every modality at every row ``(n, n_modalities)``."""
        scores = np.einsum("mnf,mf->mn", _inputs(self._logs(probabilities)), self.u)
        return softmax(scores, axis=0).T

    def combine(self, probabilities: np.ndarray) -> np.ndarray:
        """Return combined probabilities ``(n, k)`` of ``(n_heads, n, k)``."""
        g = self.spot_weights(probabilities)
        return softmax(np.einsum("nm,mnk->nk", g, self._logs(probabilities)), axis=1)

    def arrays(self) -> Arrays:
        """Return what `from_arrays` needs."""
        return {"owner": self.owner, "head_weights": self.head_weights, "u": self.u, "mean": self.mean}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Gate:
        """Rebuild from `arrays`."""
        gate = cls(arrays["owner"])
        gate.head_weights, gate.u, gate.mean = (arrays[name] for name in ("head_weights", "u", "mean"))
        return gate


def _inputs(logs: np.ndarray) -> np.ndarray:
    """What scores are linear in ``(n_modalities, n, k + 2)``: probabilities less even ones, evenness, and 1."""
    p, k = np.exp(logs), logs.shape[2]
    certainty = 1 + (p * logs).sum(axis=2, keepdims=True) / np.log(k)
    return np.concatenate([p - 1 / k, certainty, np.ones_like(certainty)], axis=2)
