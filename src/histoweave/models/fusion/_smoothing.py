"""Smoothing: how far a spot's region follows from those around it, or like it, learned from labelled spots."""

from __future__ import annotations

from typing import Self

import numpy as np
import scipy.sparse as sp

from histoweave.metrics import classification

KINDS = ("potts", "vote", "similar")
#: Strengths to choose from; 0 changes nothing.
STRENGTHS = {"potts": (0.0, 0.5, 1.0, 2.0, 4.0), "vote": (0.0, 0.25, 0.5, 0.75, 1.0), "similar": (0.0, 0.25, 0.5, 0.75)}
N_STEPS, TOLERANCE, DAMPING = 100, 1e-5, 0.5


class Smoother:
    """Move probabilities towards those of the neighbours.

    ``"potts"`` multiplies what a spot's own features say by ``exp(strength * share)``, ``share`` being the share of
    the region among its neighbours, themselves smoothed in the same way: the mean field of a Potts model with the
    energy of an edge divided by the number of edges of the spot. ``"vote"`` and ``"similar"`` put ``strength`` of the
    mean of the neighbours in the place of a spot's own. A spot without neighbours stays as it is.

    Parameters
    ----------
    kind
        ``"potts"``, ``"vote"`` or ``"similar"``; they ask for other neighbours, see `answer_neighbours`.
    strength
        Chosen by `fit`, 0 before.
    """

    def __init__(self, kind: str, strength: float = 0.0) -> None:
        self.kind, self.strength = kind, float(strength)

    def fit(self, p: np.ndarray, y: np.ndarray, graph: sp.csr_matrix) -> Self:
        """Choose the strength with the best macro-F1, of equals the weakest.

        Parameters
        ----------
        p
            Probabilities out of fold ``(n, k)``.
        y
            Class numbers ``(n,)``.
        graph
            Neighbours ``(n, n)`` whose probabilities come from a model that had not seen the spot itself.
        """
        scores = {s: _macro_f1(y, Smoother(self.kind, s).apply(p, graph)) for s in STRENGTHS[self.kind]}
        self.strength = max(scores, key=lambda s: (round(scores[s], 9), -s))
        return self

    def apply(self, p: np.ndarray, graph: sp.csr_matrix) -> np.ndarray:
        """Return smoothed probabilities ``(n, k)`` of ``(n, k)`` for neighbours ``(n, n)``."""
        if not self.strength:
            return p
        degree = np.asarray(graph.sum(axis=1)).ravel().astype(float)
        mean = sp.diags_array(1 / np.maximum(degree, 1)) @ graph.astype(float)
        if self.kind != "potts":
            weight = self.strength * (degree > 0)[:, None]
            return (1 - weight) * p + weight * (mean @ p)
        own, found = np.log(np.clip(p, 1e-12, None)), p
        for _ in range(N_STEPS):
            logits = own + self.strength * (mean @ found)
            step = np.exp(logits - logits.max(axis=1, keepdims=True))
            step /= step.sum(axis=1, keepdims=True)
            change = np.abs(step - found).max()
            found = (1 - DAMPING) * found + DAMPING * step  # whole steps can swing between two states
            if change < TOLERANCE:
                break
        return found


def _macro_f1(y: np.ndarray, p: np.ndarray) -> float:
    classes = [str(i) for i in range(p.shape[1])]
    return classification(y.astype(str), p.argmax(axis=1).astype(str), classes=classes)["macro_f1"]


def within(graph: sp.csr_matrix, fold: np.ndarray) -> sp.csr_matrix:
    """Return the edges that join rows of one fold."""
    edges = sp.coo_array(graph)
    keep = fold[edges.row] == fold[edges.col]
    shape = graph.shape
    return sp.csr_array((edges.data[keep].astype(bool), (edges.row[keep], edges.col[keep])), shape=shape)
