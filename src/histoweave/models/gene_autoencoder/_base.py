"""The contract of gene encoders: fitted on counts, they embed any table that shares enough genes."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._resolve import get_table
from histoweave._validate import listing, require_number, warn
from histoweave.models._base import Arrays, Model, require_fitted
from histoweave.models.gene_autoencoder._data import Expression, canonical_order, variable_genes
from histoweave.models.gene_autoencoder._genes import GeneAlignment, align, other_names

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

BOUNDS = {
    name: {"at_least": 1, "integer": True}
    for name in (
        "n_components", "n_latent", "n_hidden", "n_layers", "n_programmes", "batch_size", "max_epochs", "patience",
        "num_nodes",
    )
} | {
    "n_top_genes": {"at_least": 2, "integer": True},
    "random_state": {"at_least": 0, "integer": True},
    "min_share": {"above": 0, "at_most": 1},
    "mask_rate": {"above": 0, "below": 1},
    "dropout": {"at_least": 0, "below": 1},
    "validation_fraction": {"at_least": 0, "below": 0.9},
    "target_sum": {"above": 0},
    "learning_rate": {"above": 0},
    "weight_decay": {"at_least": 0},
    "correction_weight": {"above": 0},
}  # fmt: skip
OPTIONAL = ("target_sum", "max_epochs", "patience", "n_programmes")  # may be None


class GeneEncoder(Model):
    """What every gene encoder shares: arguments, choice and alignment of genes, ``fit``, ``embed``, saving.

    A subclass says how it learns (`_learn`) and embeds (`_embed`) aligned expression and what it keeps (`_arrays`,
    `_restore`).
    """

    _without: ClassVar[str]  # what becomes of genes that a table lacks: the end of the warning

    genes: list[str] | None = None
    sections_seen: list[str]
    history: pd.DataFrame | None = None
    min_share: float
    n_top_genes: int

    @classmethod
    def _arguments(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def _set_arguments(self, given: Mapping[str, Any]) -> None:
        """Check the numbers among the constructor's arguments and keep all."""
        for name in self._arguments():
            value = given[name]
            if name in BOUNDS and not (value is None and name in OPTIONAL):
                require_number(value, argument=name, **BOUNDS[name])
            setattr(self, name, value)

    def fit(
        self,
        data: AnnData | SpatialData,
        *,
        labels_key: str = _keys.REGION,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> Self:
        """Choose genes and learn from a table of raw counts.

        Parameters
        ----------
        data
            AnnData or SpatialData object. A matrix that is backed by a file or a Dask array is read a few thousand
            rows at a time; the chosen genes are kept in temporary files.
        labels_key
            Labels in ``obs`` for ``method="scanvi"``, missing for unlabelled rows. No other encoder looks at labels.
        layer
            Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
        library_key
            Column of ``obs`` that names the section.
        table_key
            Table of a SpatialData object.

        Returns
        -------
        The fitted encoder.

        Raises
        ------
        ValueError
            The values are not raw counts, gene names repeat, no gene varies, or fewer than 2 rows have counts.
        """
        self.genes = None  # not fitted again until all is done
        table = get_table(data, table_key)
        genes = variable_genes(table, layer, self.n_top_genes, library_key)
        expression = Expression(table, genes, layer, library_key, rows=canonical_order(table, library_key))
        n_usable = int(expression.usable.sum())
        if n_usable < 2:
            msg = f"At least 2 rows with counts are needed, found {n_usable} of {table.n_obs}."
            raise ValueError(msg)
        self._learn(expression, table, labels_key)
        self.sections_seen = list(expression.rows_of)
        self._other_names = other_names(table.var.loc[genes])
        self.genes = genes
        return self

    def fit_embed(
        self,
        data: AnnData | SpatialData,
        *,
        labels_key: str = _keys.REGION,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Fit and return the embedding of the same table.

        Parameters
        ----------
        data, labels_key, layer, library_key, table_key
            As for :meth:`fit`.

        Returns
        -------
        The embedding ``(n_obs, n_dimensions)`` float32; rows without counts are NaN.
        """
        keys = {"layer": layer, "library_key": library_key, "table_key": table_key}
        return self.fit(data, labels_key=labels_key, **keys).embed(data, **keys)

    def embed(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Return the embedding ``(n_obs, n_dimensions)`` float32; rows without counts are NaN.

        Parameters
        ----------
        data, layer, library_key, table_key
            As for :meth:`fit`.

        Raises
        ------
        ValueError
            The table has less than ``min_share`` of the genes, or its values are not raw counts.
        """
        return self._embed(self._aligned(get_table(data, table_key), layer, library_key))

    def overlap(self, data: AnnData | SpatialData, *, table_key: str = _keys.TABLE) -> float:
        """Return the share of the model's genes that a table has, see :meth:`alignment`.

        Parameters
        ----------
        data, table_key
            As for :meth:`fit`.
        """
        return self.alignment(data, table_key=table_key).share

    def alignment(self, data: AnnData | SpatialData, *, table_key: str = _keys.TABLE) -> GeneAlignment:
        """Return which of the model's genes a table has, under which names, and which it lacks.

        Genes are found by name; else by identifier or symbol in columns of ``var`` such as ``"gene_ids"`` or
        ``"gene_name"``, of the table or of that in ``fit``; else without the version of an Ensembl identifier
        (``"ENSG00000141510.18"``); else without regard to case. Nothing is guessed where several could be meant.

        Parameters
        ----------
        data, table_key
            As for :meth:`fit`.

        Returns
        -------
        A report: ``print`` it for the counts; ``present``, ``missing``, ``renamed``, ``share``, and ``table``,
        a DataFrame with a row for each gene.

        Raises
        ------
        ValueError
            Gene names of the table repeat.
        """
        require_fitted(self, "genes")
        return align(self.genes, self._other_names, get_table(data, table_key).var)

    def _aligned(self, table: AnnData, layer: str | None, library_key: str, *, quiet: bool = False) -> Expression:
        """Align a table with the model's genes; too few are an error, some missing a warning."""
        found = self.alignment(table)
        if found.share < self.min_share:
            msg = (
                f"The table has {len(found.present)} of the model's {len(self.genes)} genes ({found.share:.0%}, at "
                f"least {self.min_share:.0%} are needed). Model: {self.genes[:3]}...; table: "
                f"{table.var_names[:3].tolist()}... Are gene names of the same kind? See `encoder.alignment(data)`."
            )
            raise ValueError(msg)
        if found.missing and not quiet:
            n, total = len(found.missing), len(self.genes)
            warn(f"{n} of the model's {total} genes are not in the table{self._without}")
        if found.renamed and not quiet:
            pairs = [f"{ours} as {theirs}" for ours, theirs in found.renamed.items()]
            warn(f"Genes were found under other names ({listing(pairs, 3)}), see `encoder.alignment(data)`.")
        return Expression(table, self.genes, layer, library_key, at=found._columns)

    @property
    def labels_seen(self) -> list[str]:
        """Sections whose labels were learned from; on their rows classifiers look too good."""
        return []

    @abstractmethod
    def _learn(self, expression: Expression, table: AnnData, labels_key: str) -> None:
        """Learn from the chosen genes; their rows are those of ``table`` in canonical order."""

    @abstractmethod
    def _embed(self, expression: Expression) -> np.ndarray:
        """Return the embedding of aligned expression; rows without counts are NaN."""

    @abstractmethod
    def _arrays(self) -> tuple[dict[str, Any], Arrays]:
        """Return what was learned: ``(values that JSON can hold, arrays)``."""

    @abstractmethod
    def _restore(self, config: dict[str, Any], arrays: Arrays) -> None:
        """Take back what `_arrays` returned."""

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "genes")
        learned, arrays = self._arrays()
        config = {name: getattr(self, name) for name in (*self._arguments(), "genes", "sections_seen")}
        config["other_names"] = self._other_names
        if self.history is not None:
            config["history"] = self.history.to_dict("records")
        return config | learned, arrays

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        model = cls(**{name: config[name] for name in cls._arguments()})
        model.sections_seen = config["sections_seen"]
        if "history" in config:
            model.history = pd.DataFrame(config["history"])
        model.genes, model._other_names = config["genes"], config["other_names"]
        model._restore(config, arrays)
        return model
