"""From what crops look like to what is expressed there: an image embedding that expression has guided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._validate import require_key, require_matrix, warn
from histoweave.models._base import Arrays, prefixed, subset
from histoweave.models._inner_groups import tissue_blocks
from histoweave.models._sections import SectionScaler
from histoweave.models._trees import Trees

N_TREES, MIN_LEAF = 300, 3
MIN_ROWS = 40  # with both: below this the trees learn the rows by heart
N_FOLDS = 4


class ExpressionGuide:
    """Extremely randomised trees (Geurts et al., 2006) from standardised features to components of expression.

    Expression is centred within each section, predictions are standardised within each, so that what differs between
    sections, depth and stain first of all, is neither learned nor passed on.

    Attributes
    ----------
    history
        For every component the correlation of predicted and measured expression in tissue that was held out: whole
        sections where two or more have expression, else blocks of tissue.
    """

    def __init__(self) -> None:
        self._scaler = SectionScaler()

    def fit(self, X: np.ndarray, genes: np.ndarray, rows_of: Mapping[str, np.ndarray], xy: Any, seed: int) -> Self:
        """Fit on the rows that have both.

        Parameters
        ----------
        X
            Features ``(n, d)``, standardised within sections; NaN rows have no crops.
        genes
            Components of expression ``(n, k)``; NaN rows have none.
        rows_of
            Rows of each section.
        xy
            Coordinates ``(n, 2)`` or ``None``.
        seed
            Of the trees.
        """
        both = ~np.isnan(X).any(axis=1) & ~np.isnan(genes).any(axis=1)
        if both.sum() < MIN_ROWS:
            msg = f"Only {both.sum()} rows have crops and expression; at least {MIN_ROWS} are needed to learn one from "
            msg += "the other."
            raise ValueError(msg)
        section = np.empty(len(X), dtype=object)
        target = np.full(genes.shape, np.nan)
        for name, rows in rows_of.items():
            section[rows] = name
            own = rows[both[rows]]
            target[own] = genes[own] - genes[own].mean(axis=0) if len(own) else 0.0
        of_row = section[both] if len(set(section[both])) > 1 else tissue_blocks(section, xy)[both]
        own_seed, *seeds = child_seeds(seed, 1 + N_FOLDS)
        self.history = _held_out(X[both], target[both], of_row.astype(str), seeds)
        self._trees = Trees.grow(X[both], target[both], N_TREES, min_leaf=MIN_LEAF, seed=own_seed)
        self._scaler.fit(self._predict(X))
        return self

    def _predict(self, X: np.ndarray) -> np.ndarray:
        out = np.full((len(X), self._trees.arrays()["value"].shape[1]), np.nan, dtype=np.float32)
        rows = ~np.isnan(X).any(axis=1)
        out[rows] = self._trees.predict(X[rows])
        return out

    def apply(self, X: np.ndarray, rows_of: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return predicted components ``(n, k)`` float32, standardised within each section; NaN rows stay NaN.

        Parameters
        ----------
        X, rows_of
            As for :meth:`fit`.
        """
        return self._scaler.transform(self._predict(X), rows_of)

    def as_in(self, X: np.ndarray, section: np.ndarray) -> np.ndarray:
        """Return predicted components of rows ``(n, d)`` as if they were of one section, which has these ``(m, d)``.

        Parameters
        ----------
        X, section
            Features, standardised within the section.
        """
        return self._scaler.as_in(self._predict(X), self._predict(section)).astype(np.float32)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        arrays = {"mean": self._scaler.mean, "sd": self._scaler.sd} | prefixed("trees", self._trees.arrays())
        return {"depth": self._trees.depth}, arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        """Rebuild from `state`."""
        guide = cls()
        guide._scaler.mean, guide._scaler.sd = arrays["mean"], arrays["sd"]
        guide._trees = Trees(subset("trees", arrays), config["depth"])
        return guide


def fit_guide(
    X: np.ndarray, table: AnnData, rows_of: Mapping[str, np.ndarray], *, genes_key: str, random_state: int
) -> ExpressionGuide:
    """Return a guide fitted on a table's ``obsm[genes_key]``; tells where it found nothing to learn.

    Parameters
    ----------
    X, rows_of
        As for :meth:`ExpressionGuide.fit`.
    table
        With expression, in some rows at least.
    genes_key, random_state
        As for :class:`histoweave.models.ImageTraining` and :class:`histoweave.models.ImageEncoder`.
    """
    require_key(table.obsm, genes_key, where="adata.obsm", argument="genes_key", run="hw.tl.gene_encoder(...)")
    genes = require_matrix(table.obsm[genes_key], table.n_obs, name=f"`adata.obsm[{genes_key!r}]`").astype(float)
    xy = table.obsm.get(_keys.SPATIAL)
    guide = ExpressionGuide().fit(X, genes, rows_of, xy, random_state)
    best = guide.history["correlation"].max()
    if not best > 0.2:
        warn(
            f"Expression can hardly be told from these crops: on tissue that was held out no component is predicted "
            f"with a correlation above {best:.2f}. Use `method='statistics'`, or check `hw.pp.check_alignment(...)`."
        )
    return guide


def _held_out(X: np.ndarray, target: np.ndarray, group: np.ndarray, seeds: list[int]) -> pd.DataFrame:
    """Return the correlation per component, groups being held out in a few folds with a third of the trees."""
    names = np.unique(group)
    fold = np.arange(len(names)) % min(len(names), N_FOLDS)
    fold = fold[np.searchsorted(names, group)]
    predicted = np.full(target.shape, np.nan)
    for number in np.unique(fold) if len(names) > 1 else []:
        rows = fold == number
        trees = Trees.grow(X[~rows], target[~rows], N_TREES // 3, min_leaf=MIN_LEAF, seed=seeds[number])
        predicted[rows] = trees.predict(X[rows])
    a, b = predicted - predicted.mean(axis=0), target - target.mean(axis=0)
    spread = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    correlation = np.divide((a * b).sum(axis=0), spread, out=np.full(len(spread), np.nan), where=spread > 0)
    share = np.square(target).sum(axis=0) / max(np.square(target).sum(), 1e-12)
    return pd.DataFrame({"component": np.arange(target.shape[1]), "variance_share": share, "correlation": correlation})
