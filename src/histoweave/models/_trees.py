"""Forests as flat arrays: fitted by scikit-learn, saved as plain numbers, asked without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from histoweave.models._base import Arrays

ARRAYS = ("roots", "feature", "threshold", "children", "value")


class Trees:
    """The mean over trees of what their leaves hold.

    Parameters
    ----------
    arrays
        ``roots`` ``(trees,)``, and of every node ``feature`` and ``threshold`` ``(nodes,)``, ``children``
        ``(nodes, 2)``, -1 at leaves, and ``value`` ``(nodes, k)``.
    depth
        Of the deepest tree.
    """

    def __init__(self, arrays: Arrays, depth: int) -> None:
        self._arrays, self.depth = {name: arrays[name] for name in ARRAYS}, int(depth)

    @classmethod
    def of(cls, estimators: Sequence[Any], value: np.ndarray) -> Self:
        """Take scikit-learn's fitted trees apart.

        Parameters
        ----------
        estimators
            Decision trees.
        value
            What their nodes hold, tree after tree ``(nodes, k)``.
        """
        trees = [e.tree_ for e in estimators]
        start = np.cumsum([0, *(t.node_count for t in trees)])
        children = [np.stack([t.children_left, t.children_right], axis=1) for t in trees]
        joined = np.concatenate([np.where(c >= 0, c + s, -1) for c, s in zip(children, start, strict=False)])
        arrays = {
            "roots": start[:-1].astype(np.int32),
            "feature": np.concatenate([t.feature for t in trees]).astype(np.int32),
            "threshold": np.concatenate([t.threshold for t in trees]),
            "children": joined.astype(np.int32),
            "value": value.astype(np.float32),
        }
        return cls(arrays, max(t.max_depth for t in trees))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return ``(n, k)`` float64 for features ``(n, d)``."""
        X = X.astype(np.float32)  # what scikit-learn compares thresholds with
        roots, feature, threshold, children, value = self._arrays.values()
        total = np.zeros((len(X), value.shape[1]))
        rows = np.arange(len(X))
        for root in roots:
            node = np.full(len(X), root)
            for _ in range(self.depth):
                right = X[rows, np.maximum(feature[node], 0)] > threshold[node]
                step = children[node, right.astype(np.int8)]
                if (step < 0).all():
                    break
                node = np.where(step < 0, node, step)
            total += value[node]
        return total / len(roots)

    def arrays(self) -> Arrays:
        """Return what to save beside ``depth``."""
        return dict(self._arrays)
