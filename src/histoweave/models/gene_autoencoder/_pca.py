"""Principal components of log-normalised counts, centred per section: the floor for learned gene encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave.models._base import Arrays, prefixed, subset
from histoweave.models._pca import LinearMap
from histoweave.models._sections import SectionScaler
from histoweave.models.gene_autoencoder._base import GeneEncoder
from histoweave.models.gene_autoencoder._data import Expression

if TYPE_CHECKING:
    from anndata import AnnData


class GenePCA(GeneEncoder):
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
    sections_seen
        Sections whose counts were seen in ``fit``.

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

    _without = "; the embedding is estimated from the others."

    def __init__(
        self,
        n_components: int = 50,
        *,
        n_top_genes: int = 2000,
        target_sum: float | None = None,
        min_share: float = 0.3,
        random_state: int = 0,
    ) -> None:
        self._set_arguments(locals())

    def _learn(self, expression: Expression, table: AnnData, labels_key: str) -> None:
        self._target = float(self.target_sum or expression.median_depth())
        values = self._log(expression)
        self._scaler = SectionScaler(scale=False).fit(values)
        centred = self._scaler.transform(values, expression.rows_of)
        self._map = LinearMap.principal(centred, self.n_components, self.random_state)

    def _embed(self, expression: Expression) -> np.ndarray:
        centred = self._scaler.transform(self._log(expression), expression.rows_of)
        return self._map.apply(centred, expression.present)

    def _log(self, expression: Expression) -> np.ndarray:
        """Dense log-normalised values, NaN for rows without counts."""
        values = expression.log(self._target).toarray()
        values[~expression.usable] = np.nan
        return values

    def _arrays(self) -> tuple[dict[str, Any], Arrays]:
        arrays = {"scaler.mean": self._scaler.mean, "scaler.sd": self._scaler.sd, "target": np.array([self._target])}
        return {}, arrays | prefixed("map", self._map.arrays())

    def _restore(self, config: dict[str, Any], arrays: Arrays) -> None:
        self._scaler = SectionScaler(scale=False)
        self._scaler.mean, self._scaler.sd = arrays["scaler.mean"], arrays["scaler.sd"]
        self._target = float(arrays["target"][0])
        self._map = LinearMap.from_arrays(subset("map", arrays))

    def _card(self) -> list[str]:
        return [
            f"- genes: {len(self.genes)}, {self._map.components.shape[0]} principal components",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
