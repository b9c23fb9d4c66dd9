"""Principal components of log-normalised counts, centred per section: the floor for learned gene encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._resolve import get_table, sections
from histoweave._validate import require_number, warn
from histoweave.models._base import Arrays, Model, prefixed, require_fitted, subset
from histoweave.models._pca import LinearMap
from histoweave.models._sections import SectionScaler
from histoweave.pp._expression import expression, normalise_log, raw_counts

if TYPE_CHECKING:
    from spatialdata import SpatialData


class GenePCA(Model):
    """Embed counts by principal components of log-normalised variable genes, centred within each section.

    Parameters
    ----------
    n_components
        Components to keep.
    n_top_genes
        Variable genes to choose in ``fit``, where the table does not mark them (``var["highly_variable"]``).
    target_sum
        Depth every row is brought to before the logarithm. Default: the median depth in ``fit``; at much more
        than that, the logarithm turns the noise of single counts into large differences.
    min_share
        Least share of the model's genes that a new table must have.
    random_state
        Seed.

    Attributes
    ----------
    genes
        Names of the genes used.

    Notes
    -----
    Centring within each section removes what differs between sections as a whole (chemistry, depth). Genes
    that a new table lacks are left out of its projection by the posterior mean of probabilistic PCA (Tipping
    & Bishop, 1999); they are not filled with zeros. Rows without counts are NaN.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.models.GenePCA(n_components=10).fit(adata).embed(adata).shape
    (400, 10)
    """

    def __init__(
        self,
        n_components: int = 50,
        *,
        n_top_genes: int = 2000,
        target_sum: float | None = None,
        min_share: float = 0.3,
        random_state: int = 0,
    ) -> None:
        require_number(n_components, argument="n_components", at_least=1, integer=True)
        require_number(n_top_genes, argument="n_top_genes", at_least=2, integer=True)
        if target_sum is not None:
            require_number(target_sum, argument="target_sum", above=0)
        require_number(min_share, argument="min_share", above=0, at_most=1)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        self.n_components, self.n_top_genes = int(n_components), int(n_top_genes)
        self.target_sum, self.min_share = target_sum, float(min_share)
        self.random_state = int(random_state)
        self.genes: list[str] | None = None

    def fit(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> Self:
        """Choose genes and learn components from a table of raw counts.

        Parameters
        ----------
        data
            AnnData or SpatialData object.
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
            The values are not raw counts, or no gene varies.
        """
        self.fit_embed(data, layer=layer, library_key=library_key, table_key=table_key)
        return self

    def fit_embed(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Fit and return the embedding of the same table, normalising its counts once.

        Parameters
        ----------
        data, layer, library_key, table_key
            As for :meth:`fit`.

        Returns
        -------
        The embedding ``(n_obs, n_components)`` float32; rows without counts are NaN.
        """
        table = get_table(data, table_key)
        counts, _ = raw_counts(table, layer)
        rows_of = sections(table, library_key)
        depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        if (depth > 0).sum() < 2:
            msg = f"At least 2 rows with counts are needed, found {(depth > 0).sum()} of {table.n_obs}."
            raise ValueError(msg)
        self._target = float(self.target_sum or np.median(depth[depth > 0]))
        if "highly_variable" in table.var:
            chosen = table.var["highly_variable"].to_numpy(dtype=bool)
        else:
            obs = table.obs[[library_key]] if library_key in table.obs else None
            bare = AnnData(counts, obs=obs, var=table.var[[]])
            expression(bare, n_top_genes=self.n_top_genes, library_key=library_key)
            chosen = bare.var["highly_variable"].to_numpy(dtype=bool)
        self.genes = table.var_names[chosen].astype(str).tolist()
        values = self._log(counts, np.flatnonzero(chosen))
        self._scaler = SectionScaler(scale=False).fit(values)
        centred = self._scaler.transform(values, rows_of)
        self._map = LinearMap.principal(centred, self.n_components, self.random_state)
        self.sections_seen = list(rows_of)
        return self._map.apply(centred)

    def overlap(self, data: AnnData | SpatialData, *, table_key: str = _keys.TABLE) -> float:
        """Return the share of the model's genes that a table has.

        Parameters
        ----------
        data, table_key
            As for :meth:`fit`.
        """
        require_fitted(self, "genes")
        return float(np.isin(self.genes, get_table(data, table_key).var_names).mean())

    def embed(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Return the embedding ``(n_obs, n_components)`` float32; rows without counts are NaN.

        Parameters
        ----------
        data, layer, library_key, table_key
            As for :meth:`fit`.

        Raises
        ------
        ValueError
            The table has less than ``min_share`` of the genes, or its values are not raw counts.
        """
        share = self.overlap(data, table_key=table_key)
        table = get_table(data, table_key)
        counts, _ = raw_counts(table, layer)
        at = table.var_names.get_indexer(self.genes)
        present = at >= 0
        if share < self.min_share:
            msg = (
                f"The table has {present.sum()} of the model's {len(self.genes)} genes ({share:.0%}, at least "
                f"{self.min_share:.0%} are needed). Model: {self.genes[:3]}...; table: "
                f"{table.var_names[:3].tolist()}... Are gene names of the same kind?"
            )
            raise ValueError(msg)
        if share < 1:
            warn(
                f"{(~present).sum()} of the model's {len(self.genes)} genes are not in the table; the embedding is "
                "estimated from the others."
            )
        values = np.zeros((table.n_obs, len(self.genes)), dtype=np.float32)
        values[:, present] = self._log(counts, at[present])
        centred = self._scaler.transform(values, sections(table, library_key))
        return self._map.apply(centred, present)

    def _log(self, counts: sp.csr_matrix, columns: np.ndarray) -> np.ndarray:
        """Dense log-normalised values of some genes, NaN for rows without counts; depth is over all genes."""
        values = normalise_log(counts, self._target)[:, columns].toarray()
        values[np.diff(counts.indptr) == 0] = np.nan
        return values

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "genes")
        names = (
            "n_components",
            "n_top_genes",
            "target_sum",
            "min_share",
            "random_state",
            "genes",
            "sections_seen",
        )
        arrays = {"scaler.mean": self._scaler.mean, "scaler.sd": self._scaler.sd, "target": np.array([self._target])}
        return {name: getattr(self, name) for name in names}, arrays | prefixed("map", self._map.arrays())

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        names = ("n_components", "n_top_genes", "target_sum", "min_share", "random_state")
        model = cls(**{name: config[name] for name in names})
        model.genes, model.sections_seen = config["genes"], config["sections_seen"]
        model._scaler = SectionScaler(scale=False)
        model._scaler.mean, model._scaler.sd = arrays["scaler.mean"], arrays["scaler.sd"]
        model._target = float(arrays["target"][0])
        model._map = LinearMap.from_arrays(subset("map", arrays))
        return model

    def _card(self) -> list[str]:
        return [
            f"- genes: {len(self.genes)}, {self._map.components.shape[0]} principal components",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
