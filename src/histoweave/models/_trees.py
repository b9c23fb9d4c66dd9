"""Forests as flat arrays: grown by scikit-learn, saved as plain numbers, asked without it."""

from __future__ import annotations

from typing import Self

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
    def grow(
        cls,
        X: np.ndarray,
        target: np.ndarray,
        n_trees: int,
        *,
        min_leaf: int,
        seed: int,
        max_features: float | str = 1.0,
        row_weights: np.ndarray | None = None,
    ) -> Self:
        """Fit extremely randomised trees (Geurts et al., 2006, Machine Learning 63:3).

        They are those of scikit-learn's ``ExtraTreesRegressor``, from its single trees: its forest checks the data
        again for every tree, which takes longer than to grow one on few rows.

        Parameters
        ----------
        X
            Features ``(n, d)`` without NaN.
        target
            What leaves hold the mean of ``(n, k)``. For indicators of classes, squared error is Gini's impurity.
        n_trees
            Number of trees.
        min_leaf
            Fewest rows in a leaf.
        seed
            Seed.
        max_features
            Features to try at a node, as in scikit-learn.
        row_weights
            Of each row ``(n,)``.

        Raises
        ------
        ValueError
            A feature or target is not finite, or too large for single precision.
        """
        from sklearn import config_context
        from sklearn.tree import ExtraTreeRegressor

        with np.errstate(over="ignore"):
            X, target, generator = X.astype(np.float32), target.astype(np.float64), np.random.RandomState(seed)
        if not (np.isfinite(X).all() and np.isfinite(target).all()):  # checked once: the trees do not any more
            msg = "Trees need finite features, of at most 3e38. Recompute or standardise the embedding."
            raise ValueError(msg)
        options = {"min_samples_leaf": min_leaf, "max_features": max_features}
        with config_context(assume_finite=True, skip_parameter_validation=True):
            trees = [
                ExtraTreeRegressor(random_state=generator.randint(np.iinfo(np.int32).max), **options)
                .fit(X, target, sample_weight=row_weights, check_input=False)
                .tree_
                for _ in range(n_trees)
            ]
        start = np.cumsum([0, *(t.node_count for t in trees)])
        children = [np.stack([t.children_left, t.children_right], axis=1) for t in trees]
        joined = np.concatenate([np.where(c >= 0, c + s, -1) for c, s in zip(children, start, strict=False)])
        arrays = {
            "roots": start[:-1].astype(np.int32),
            "feature": np.concatenate([t.feature for t in trees]).astype(np.int32),
            "threshold": np.concatenate([t.threshold for t in trees]),
            "children": joined.astype(np.int32),
            "value": np.concatenate([t.value[:, :, 0] for t in trees]).astype(np.float32),
        }
        return cls(arrays, max(t.max_depth for t in trees))

    def widened(self, columns: np.ndarray, width: int) -> Self:
        """Return trees whose leaves hold these columns among ``width``, 0 in the others."""
        value = np.zeros((len(self._arrays["value"]), width), dtype=np.float32)
        value[:, columns] = self._arrays["value"]
        return type(self)(self._arrays | {"value": value}, self.depth)

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
