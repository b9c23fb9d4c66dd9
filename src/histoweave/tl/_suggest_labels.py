"""Label these spots next: where the map is unsure and no label is like the tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histoweave import _keys
from histoweave._calibration import nearest_distance
from histoweave._random import rng
from histoweave._record import record
from histoweave._resolve import section_column, sections, working_copy
from histoweave._validate import (
    label_name,
    require_choice,
    require_key,
    require_labels,
    require_mask,
    require_matrix,
    require_number,
    warn,
)
from histoweave.models import RegionClassifier, _domains, _suggestions
from histoweave.pp._context import context_features, own_values
from histoweave.pp._folds import coordinates, require_finite
from histoweave.pp._graph import ring_graphs
from histoweave.tl._domains import EMBEDDINGS, representations
from histoweave.tl._label_subsets import MODES, grow

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

N_COMPONENTS = 15
FLOOR = 0.25  # weight of a row whose region is sure: what is predicted of tissue unlike any label may be sure and wrong


def suggest_labels(
    data: AnnData | SpatialData,
    *,
    n: int = 10,
    kind: str = "spots",
    labels_key: str = _keys.REGION,
    model: RegionClassifier | None = None,
    use: str | Sequence[str] = EMBEDDINGS,
    probability_key: str | None = None,
    mask_key: str | None = None,
    min_distance: float = 2.0,
    patch_size: int = 7,
    key_added: str = _keys.SUGGESTED,
    random_state: int = 0,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Suggest the spots or patches whose labels would help most, the most useful first.

    Two things make a label useful: the map is unsure there, and tissue like it has no label yet. Embeddings are
    standardised within each section and averaged over each spot and its neighbours. Spots are then taken one by one,
    each the one that most lowers the distance of all spots to their nearest label, a spot counting the more the less
    sure its region is. A kind of tissue without any label is far from all of them, so it comes early however sure the
    map is.

    Parameters
    ----------
    data
        AnnData or SpatialData object with embeddings, or with what ``model`` needs.
    n
        Number of spots or patches.
    kind
        ``"spots"``, or ``"patches"`` of neighbouring unlabelled spots that are predicted to be of one region.
    labels_key
        Labels in ``obs``: these spots are not suggested again. Without the column, or without any label, spots are
        chosen for diversity alone.
    model
        A fitted :class:`histoweave.models.RegionClassifier`: embeds and predicts ``data``. Without it, what is stored
        in the table is used.
    use
        Without a model: representations in ``obsm``. Left at its default, those of ``X_image`` and ``X_gene`` that
        exist.
    probability_key
        Without a model: predicted probabilities in ``obsm``. Default: ``f"{labels_key}_probability"`` where it exists.
        Where there is none, all spots count the same.
    mask_key
        Boolean column of ``obs``: only its true rows are suggested, such as those of one section. All take part in the
        choice.
    min_distance
        Least distance between suggestions (the rims of patches), in units of the distance between spots.
    patch_size
        Most spots of a patch.
    key_added
        Name of the result in ``obs``.
    random_state
        Seed; matters with more than 4,000 spots, of which that many are then sampled to sum distances over.
    layer
        With a model: layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the coordinates. Without them neighbours and distances between suggestions play no part.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A DataFrame, one row a suggested spot, named as in the table: ``section``, ``x``, ``y``, ``rank`` (from 1; the spots
    of a patch share one, its centre first), ``predicted`` (likeliest region), ``uncertainty`` (1 minus the margin
    between the two likeliest regions, mean over the neighbourhood; missing without predictions), ``novelty`` (distance
    to the nearest label: the share of unlabelled spots nearer to theirs; missing without labels) and ``reason``. Writes

    - ``obs[key_added]``: the rank, float; missing elsewhere;
    - ``uns["histoweave"][key_added]``: the arguments and the ``criterion``, ``"uncertainty and diversity"`` or
      ``"diversity"``.

    Raises
    ------
    KeyError
        No embedding, or probabilities of that name.
    ValueError
        No unlabelled spot with an embedding, or ``kind="patches"`` without coordinates.

    Notes
    -----
    On sections that played no part in the design, simulated and real, suggested spots taught more than random ones, the
    more so the fewer labels there were. That was diversity, and it depended on averaging over neighbours; uncertainty
    added nothing measurable to it, and alone was no better than random (``benchmarks/quality/suggest_labels.py``).

    Without ``min_distance``, choosing one by one lowers the distances by at least 63 % of what the best choice does
    (Nemhauser, Wolsey & Fisher 1978, Mathematical Programming 14:265). Facility location for labels to ask for: Wei,
    Iyer & Bilmes (2015), ICML.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(labelled_fraction=0.05)
    >>> encoder = hw.tl.gene_encoder(adata, n_components=20)
    >>> clf = hw.tl.fusion_classifier(adata)
    >>> hw.tl.suggest_labels(adata, n=3)["rank"].tolist()
    [1, 2, 3]
    """
    require_choice(kind, MODES, argument="kind")
    require_number(n, argument="n", at_least=1, integer=True)
    require_number(patch_size, argument="patch_size", at_least=1, integer=True)
    require_number(min_distance, argument="min_distance", at_least=0)
    _, table = working_copy(data, table_key)
    labelled = _labelled(table, labels_key)
    where = {"library_key": library_key, "spatial_key": spatial_key}
    if model is None:
        values, probability = representations(table, use)[1], _stored(table, labels_key, probability_key)
    else:
        values, probability = _predicted(data, model, layer=layer, table_key=table_key, **where)
    if kind == "patches":
        require_key(table.obsm, spatial_key, where="adata.obsm", argument="spatial_key", run="hw.io.read_visium(...)")
    there = ~np.all([np.isnan(value).any(axis=1) for value in values], axis=0)
    part, known, free = table[there], labelled[there], (require_mask(table, mask_key) & ~labelled)[there]
    if not free.any():
        among = f" of `mask_key={mask_key!r}`" if mask_key else ""
        msg = f"There is no spot to suggest: every spot{among} with an embedding has a label."
        raise ValueError(msg)
    p = None if probability is None or not known.any() else probability[there]
    if p is None:
        why = f"there is no `adata.obsm['{labels_key}{_keys.PROBABILITY}']`; pass `model=` to predict"
        warn(f"Suggestions are for diversity alone: {why if known.any() else 'no spot has a label yet'}.")

    rings = ring_graphs(part, n_rings=1, **where) if spatial_key in part.obsm else []
    X = _around([value[there] for value in values], sections(part, library_key), rings)
    unsure = None if p is None else _uncertainty(p, rings)
    place = _Place(part, rings, min_distance, **where)
    region = np.zeros(len(X)) if p is None else p.fillna(0).to_numpy().argmax(axis=1)

    def take(row: int, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group = np.array([row]) if kind == "spots" else place.patch(row, free & (region == region[row]), patch_size)
        return group, place.near(group)

    weight = np.ones(len(X)) if unsure is None else FLOOR + unsure
    groups = _suggestions.choose(X, weight, known, free, n, take, rng(random_state))
    if len(groups) < n:
        warn(
            f"Only {len(groups)} of {n} {kind} are suggested: all other unlabelled spots lie within "
            f"`min_distance={min_distance:g}` of them."
        )
    reasons = _reasons(X, known, p, unsure).set_index(part.obs_names)
    frame = place.table(part.obs_names, groups).join(reasons)
    table.obs[key_added] = frame["rank"].reindex(table.obs_names).astype(float)
    params = {"n": n, "kind": kind, "labels_key": labels_key, "min_distance": min_distance, "patch_size": patch_size}
    criterion = "diversity" if p is None else "uncertainty and diversity"
    record(table, key_added, "tl.suggest_labels", params, random_state=random_state, criterion=criterion)
    return frame


def _around(
    values: Sequence[np.ndarray], rows_of: Mapping[str, np.ndarray], rings: Sequence[sp.csr_matrix]
) -> np.ndarray:
    """Return principal components of what every spot and its neighbours are like, of all representations."""
    blocks = [_domains.smooth_components(v.astype(np.float32), rows_of, rings, N_COMPONENTS) for v in values]
    return _domains.filled(blocks).astype(np.float32)


def _uncertainty(p: pd.DataFrame, rings: Sequence[sp.csr_matrix]) -> np.ndarray:
    """Return 1 minus the margin between the two likeliest regions, the mean of spot and neighbours."""
    own = _suggestions.uncertainty(p.to_numpy())[:, None]
    return context_features(own, rings).mean(axis=1)


class _Place:
    """Where spots lie, and which are near to others of their section."""

    def __init__(
        self, part: AnnData, rings: Sequence[sp.csr_matrix], least: float, *, library_key: str, spatial_key: str
    ) -> None:
        self.section, self.xy = section_column(part, library_key), coordinates(part, spatial_key)
        self.neighbours = rings[0] if rings else None
        if self.xy is not None:
            require_finite(self.xy)
            rows_of = sections(part, library_key)
            self.limit = {name: least * nearest_distance(self.xy[rows]) for name, rows in rows_of.items()}

    def patch(self, row: int, eligible: np.ndarray, size: int) -> np.ndarray:
        """Return the row and eligible ones around it that hang together."""
        rows = np.flatnonzero(eligible & (self.section == self.section[row]))
        return rows[grow(self.neighbours[rows][:, rows], np.flatnonzero(rows == row))[:size]]

    def near(self, group: np.ndarray) -> np.ndarray:
        """Return a mask of what lies nearer to a group than suggestions may."""
        name = self.section[group[0]]
        near = self.section == name
        if self.xy is None:
            return near & False
        gap = np.linalg.norm(self.xy[near][:, None] - self.xy[group], axis=2).min(axis=1)
        near[near] = gap < self.limit[name] * (1 - 1e-6)
        return near

    def table(self, names: pd.Index, groups: Sequence[np.ndarray]) -> pd.DataFrame:
        """Return section, position and rank of the rows of all groups."""
        rows = np.concatenate(groups)
        xy = np.full((len(rows), 2), np.nan) if self.xy is None else self.xy[rows]
        rank = np.repeat(np.arange(len(groups)) + 1, [len(group) for group in groups])
        return pd.DataFrame({"section": self.section[rows], "x": xy[:, 0], "y": xy[:, 1], "rank": rank}, names[rows])


def _reasons(X: np.ndarray, known: np.ndarray, p: pd.DataFrame | None, unsure: np.ndarray | None) -> pd.DataFrame:
    """Return what speaks for every row: predicted region, uncertainty, novelty, the stronger of them in words."""
    n = len(X)
    out = pd.DataFrame({"predicted": None, "uncertainty": np.nan, "novelty": np.nan}, index=range(n))
    out["reason"] = "stands for much tissue, none of which has a label"
    if not known.any():
        return out
    out["novelty"] = _share_below(_suggestions.distances(X, np.flatnonzero(known)).min(axis=1), ~known)
    out["reason"] = "unlike the labelled spots"
    if p is None:
        return out
    first, second = np.asarray(p.columns, dtype=object)[np.argsort(-p.fillna(0).to_numpy(), axis=1)[:, :2]].T
    predicted = p.notna().all(axis=1).to_numpy()
    out["predicted"], out["uncertainty"] = np.where(predicted, first, None), unsure
    between = predicted & (_share_below(unsure, ~known) > out["novelty"])
    pairs = zip(first[between], second[between], strict=True)
    out.loc[between, "reason"] = [f"between {a!r} and {b!r}" for a, b in pairs]
    return out


def _share_below(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the share of some rows whose values are smaller."""
    return np.searchsorted(np.sort(values[among]), values) / among.sum()


def _labelled(table: AnnData, labels_key: str) -> np.ndarray:
    if labels_key not in table.obs or not table.obs[labels_key].dropna().map(label_name).astype(bool).any():
        return np.zeros(table.n_obs, dtype=bool)
    return require_labels(table, labels_key, min_classes=1).notna().to_numpy()


def _stored(table: AnnData, labels_key: str, key: str | None) -> pd.DataFrame | None:
    """Return stored probabilities, checked."""
    if key is None and labels_key + _keys.PROBABILITY not in table.obsm:
        return None
    key = key or labels_key + _keys.PROBABILITY
    require_key(table.obsm, key, where="adata.obsm", argument="probability_key", run="hw.tl.fusion_classifier(...)")
    if not isinstance(table.obsm[key], pd.DataFrame):
        msg = (
            f"`adata.obsm[{key!r}]` must be a DataFrame whose columns are the classes, got "
            f"{type(table.obsm[key]).__name__}."
        )
        raise TypeError(msg)
    if require_matrix(table.obsm[key], table.n_obs, name=f"`adata.obsm[{key!r}]`").shape[1] < 2:
        msg = f"`adata.obsm[{key!r}]` has one class; uncertainty needs two or more."
        raise ValueError(msg)
    return table.obsm[key]


def _predicted(
    data: AnnData | SpatialData, model: RegionClassifier, **keys: Any
) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Return the embeddings that a model makes, and what it predicts."""
    if not isinstance(model, RegionClassifier):
        msg = f"`model` must be a `hw.models.RegionClassifier`, got {type(model).__name__}."
        raise TypeError(msg)
    light, features = model._encode(data, None, **keys)
    p = model._fusion._predict(features, graph=model._neighbours(light, features))[0]
    own = [own_values(values, model.rings_used) for values in features.values()]
    return own, pd.DataFrame(p, index=light.obs_names, columns=model.classes)
