"""Classifiers on one block of features, saved as plain arrays so that loading one executes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np

from histoweave.models._base import Arrays
from histoweave.models._sections import spread
from histoweave.models._trees import Trees

N_LIGHT = 50  # trees out of fold, enough to weigh heads and to calibrate by


class Head(ABC):
    """A classifier on one block of features."""

    @abstractmethod
    def fit(self, X: np.ndarray, y: np.ndarray, n_classes: int, seed: int) -> Self:
        """Fit on features ``(n, d)`` and class numbers ``(n,)``."""

    @abstractmethod
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities ``(n, n_classes)``; a class without training rows has probability 0."""

    def light(self) -> Head:
        """Return what stands in for it on inner folds, where it is fitted many times: here itself."""
        return self


class LinearHead(Head):
    """Class-balanced multinomial logistic regression on standardised features.

    Parameters
    ----------
    C
        Inverse regularisation strength, as in scikit-learn.
    """

    kind = "linear"

    def __init__(self, C: float = 0.03) -> None:
        self.C = C

    def fit(self, X: np.ndarray, y: np.ndarray, n_classes: int, seed: int) -> LinearHead:
        """Fit on features ``(n, d)`` and class numbers ``(n,)``."""
        from sklearn.linear_model import LogisticRegression

        X = X.astype(np.float64)  # what is saved, so that a loaded head gives the same numbers to the last bit
        self.mean, self.sd = X.mean(axis=0), spread(X)
        model = LogisticRegression(C=self.C, class_weight="balanced", max_iter=1000, random_state=seed)
        model.fit((X - self.mean) / self.sd, y)
        # two classes give one row of coefficients: the log-odds of the second
        coef, intercept = model.coef_, model.intercept_
        if len(model.classes_) == 2:
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        self.coef = np.zeros((n_classes, X.shape[1]))
        self.intercept = np.full(n_classes, -np.inf)
        self.coef[model.classes_], self.intercept[model.classes_] = coef, intercept
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities ``(n, n_classes)``; a class without training rows has probability 0."""
        logits = ((X - self.mean) / self.sd) @ self.coef.T + self.intercept
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        return p / p.sum(axis=1, keepdims=True)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        names = ("mean", "sd", "coef", "intercept")
        return {"kind": self.kind, "C": self.C}, {n: np.asarray(getattr(self, n), dtype=np.float64) for n in names}

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> LinearHead:
        """Rebuild from `state`."""
        head = cls(C=config["C"])
        head.mean, head.sd, head.coef, head.intercept = (arrays[n] for n in ("mean", "sd", "coef", "intercept"))
        return head


class ForestHead(Head):
    """Class-balanced extremely randomised trees (Geurts et al., 2006), stored as flat node arrays.

    Parameters
    ----------
    n_trees
        Number of trees.
    min_leaf
        Fewest training rows in a leaf.
    """

    kind = "forest"

    def __init__(self, n_trees: int = 200, min_leaf: int = 2) -> None:
        self.n_trees, self.min_leaf = n_trees, min_leaf

    def light(self) -> ForestHead:
        """Return a smaller forest, which says on inner folds how far to trust this one in less time."""
        return ForestHead(min(self.n_trees, N_LIGHT), self.min_leaf)

    def fit(self, X: np.ndarray, y: np.ndarray, n_classes: int, seed: int) -> ForestHead:
        """Fit on features ``(n, d)`` and class numbers ``(n,)``."""
        known, codes = np.unique(y, return_inverse=True)
        weight = 1 / np.bincount(codes)[codes]
        options = {"min_leaf": self.min_leaf, "seed": seed, "max_features": "sqrt"}
        trees = Trees.grow(X, np.eye(len(known))[codes], self.n_trees, row_weights=weight, **options)
        self._trees = trees.widened(known, n_classes)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities ``(n, n_classes)``: the mean over trees of the leaf's class shares."""
        return self._trees.predict(X)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        config = {"kind": self.kind, "n_trees": self.n_trees, "min_leaf": self.min_leaf, "depth": self._trees.depth}
        return config, self._trees.arrays()

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> ForestHead:
        """Rebuild from `state`."""
        head = cls(config["n_trees"], config["min_leaf"])
        head._trees = Trees(arrays, config["depth"])
        return head


HEADS = {head.kind: head for head in (LinearHead, ForestHead)}
