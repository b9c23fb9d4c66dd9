"""Whether an embedding is any good: everything that can be said without training on it, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys, metrics
from histoweave._obs import known_donors
from histoweave._random import child_seeds, rng
from histoweave._resolve import get_table, section_column
from histoweave._settings import track
from histoweave._validate import require_choice, require_labels, require_number, warn
from histoweave.metrics._neighbours import METRICS
from histoweave.models._inner_groups import tissue_blocks
from histoweave.tl._embeddings import embedding, embedding_keys

if TYPE_CHECKING:
    from spatialdata import SpatialData

Row = tuple[str, str, float, float, float]  # aspect, metric, value, floor, ceiling


def embedding_quality(
    data: AnnData | SpatialData,
    *,
    keys: str | Sequence[str] | None = None,
    labels_key: str | None = _keys.REGION,
    k: int = 15,
    metric: str = "cosine",
    max_rows: int | None = 5000,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Diagnose embeddings: the space they use, the regions they separate, the sections they betray.

    Nothing is trained on labels; what a classifier gets out of an embedding is :func:`probe`. Every value stands
    between the one of an embedding that is worth nothing (``floor``) and the best possible (``ceiling``).

    Parameters
    ----------
    data
        AnnData or SpatialData object with embeddings. Not changed.
    keys
        Embeddings in ``obsm``. Default: those of the package that are there, with and without context.
    labels_key
        Labels in ``obs``. Rows without one count for the geometry only. ``None``, or no such column: no score of
        regions, and sections are compared as if all their rows were of one region.
    k
        Neighbours of a row.
    metric
        ``"cosine"`` or ``"euclidean"``, of silhouettes and neighbours.
    max_rows
        Rows to look at, drawn at random where there are more: time grows with their square. ``None`` for all.
    random_state
        Seed.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame, one row per embedding and metric: ``embedding``, ``aspect``, ``metric``, ``value``, ``floor``,
    ``ceiling`` (NaN where there is none), ``n`` (rows with values looked at). Aspects and metrics:

    - ``space``: ``effective_rank``, ``uniformity`` (:func:`histoweave.metrics.effective_rank`,
      :func:`~histoweave.metrics.uniformity`);
    - ``regions``: ``silhouette``, ``calinski_harabasz``, ``knn_purity`` (:func:`~histoweave.metrics.separation`) and
      ``alignment`` of rows of one region (:func:`~histoweave.metrics.alignment`);
    - ``retrieval``: ``recall_at_1``, ``precision_at_10``, ``macro_map_at_r`` (:func:`~histoweave.metrics.retrieval`);
      a row never finds its own donor, with one donor its own section, with one section its own block of tissue;
    - ``sections``, where there are several: ``silhouette_batch``, ``knn_entropy``, ``batch_purity``
      (:func:`~histoweave.metrics.batch_mixing`) and ``linear_leakage``, ``knn_leakage``
      (:func:`~histoweave.metrics.batch_leakage`, blocks of tissue held out together).

    Raises
    ------
    KeyError
        There is no such embedding.
    ValueError
        An embedding is NaN in every row.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> encoder = hw.tl.gene_encoder(sections, n_components=20)
    >>> found = hw.tl.embedding_quality(sections)
    >>> found.columns.tolist()
    ['embedding', 'aspect', 'metric', 'value', 'floor', 'ceiling', 'n']
    """
    require_number(k, argument="k", at_least=1, integer=True)
    require_choice(metric, METRICS, argument="metric")
    if max_rows is not None:
        require_number(max_rows, argument="max_rows", at_least=10, integer=True)
    table = get_table(data, table_key)
    keys = embedding_keys(table, keys)
    labels = _labels(table, labels_key)
    section = section_column(table, library_key)
    blocks = tissue_blocks(section, table.obsm.get(spatial_key))
    apart = _apart(table, section, blocks, donor_key)
    draw, scores = child_seeds(random_state, 2)
    rows = np.arange(table.n_obs)
    if max_rows is not None and table.n_obs > max_rows:
        rows = np.sort(rng(draw).choice(table.n_obs, max_rows, replace=False))
    out = []
    for key in track(keys, "embeddings"):
        X, measured = embedding(table, key, argument="keys")
        here = rows[measured[rows]]
        judge = _Judge(X[here].astype(float), labels[here], section[here], blocks[here], apart[here], k, metric, scores)
        out += [(key, *row, len(here)) for row in judge.scores(key)]
    return pd.DataFrame(out, columns=["embedding", "aspect", "metric", "value", "floor", "ceiling", "n"])


def _labels(table: AnnData, labels_key: str | None) -> np.ndarray:
    if labels_key is None or (labels_key == _keys.REGION and labels_key not in table.obs):
        return np.full(table.n_obs, None, dtype=object)
    return require_labels(table, labels_key, min_classes=1).to_numpy()


def _apart(table: AnnData, section: np.ndarray, blocks: np.ndarray, donor_key: str) -> np.ndarray:
    """What a query may not find: its donor, else its section, else its block, the widest of which there are two."""
    donor = known_donors(table.obs, section, donor_key)
    if donor is not None and len(set(donor)) > 1:
        return donor
    return section if len(set(section)) > 1 else blocks


class _Judge:
    """The scores of one embedding."""

    def __init__(
        self, X: np.ndarray, labels: np.ndarray, section: np.ndarray, blocks: np.ndarray, apart: np.ndarray, k: int,
        metric: str, seed: int,
    ) -> None:  # fmt: skip
        self.X, self.section, self.blocks, self.apart = X, section, blocks, apart
        self.known = pd.notna(labels)
        self.labels = labels if self.known.any() else None
        self.options = {"k": k, "metric": metric}
        self.seed = seed

    def scores(self, key: str) -> Iterator[Row]:
        """Yield every score that the rows allow; says which they do not."""
        if len(self.X) < 3:
            warn(f"`adata.obsm[{key!r}]` has {len(self.X)} rows with values; at least 3 are needed, it is left out.")
            return
        yield from self._space()
        parts = [self._sections] if len(set(self.section)) > 1 else []
        if self.labels is not None:
            parts = [self._regions, self._retrieval, *parts]
        for part in parts:
            try:
                yield from part()
            except ValueError as error:  # one class, nothing to find in another group: said, and not scored
                warn(f"`adata.obsm[{key!r}]`: {part.__name__.strip('_')} are not scored. {error}")

    def _space(self) -> Iterator[Row]:
        most = min(self.X.shape[1], len(self.X) - 1)
        yield "space", "effective_rank", metrics.effective_rank(self.X), 1.0, float(most)
        yield "space", "uniformity", metrics.uniformity(self.X), 0.0, -4.0

    def _regions(self) -> Iterator[Row]:
        X, labels = self.X[self.known], self.labels[self.known]
        found = metrics.separation(X, labels, **self.options)
        yield "regions", "silhouette", found["silhouette"], 0.0, 1.0
        yield "regions", "calinski_harabasz", found["calinski_harabasz"], 1.0, np.nan
        yield "regions", "knn_purity", found["knn_purity"], found["knn_purity_chance"], 1.0
        groups = self.apart[self.known]
        pooled = metrics.alignment(X, np.zeros(len(X)), groups=groups)
        yield "regions", "alignment", metrics.alignment(X, labels, groups=groups), pooled, 0.0

    def _retrieval(self) -> Iterator[Row]:
        X, labels, groups = self.X[self.known], self.labels[self.known], self.apart[self.known]
        found = metrics.retrieval(X, labels, groups=groups, k=(1, 10), metric=self.options["metric"])
        for name in ("recall_at_1", "precision_at_10", "macro_map_at_r"):
            yield "retrieval", name, found[name], found[f"{name}_chance"], 1.0

    def _sections(self) -> Iterator[Row]:
        call = {"labels": self.labels, "random_state": self.seed} | self.options
        found = metrics.batch_mixing(self.X, self.section, **call)
        yield "sections", "silhouette_batch", found["silhouette_batch"], 0.0, 1.0
        yield "sections", "knn_entropy", found["knn_entropy"], 0.0, found["knn_entropy_mixed"]
        yield "sections", "batch_purity", found["batch_purity"], 1.0, found["batch_purity_mixed"]
        found = metrics.batch_leakage(self.X, self.section, groups=self.blocks, **call)
        yield "sections", "linear_leakage", found["linear"], 1.0, 0.0
        yield "sections", "knn_leakage", found["knn"], 1.0, 0.0
