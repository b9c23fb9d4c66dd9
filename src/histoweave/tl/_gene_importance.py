"""Which genes a classifier's regions rest on, beside differential expression."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._record import record
from histoweave._resolve import sections, working_copy
from histoweave._validate import require_labels, require_number, warn
from histoweave.models.gene_autoencoder._attribution import agreement, region_importance

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from histoweave.models import GeneClassifier

POOLED = "all"
TOLERANCE = 0.05  # share of a logit that contributions may leave unaccounted for
COLUMNS = ["section", "region", "gene", "importance", "rank", "stability", "de_score", "de_rank"]


def gene_importance(
    data: AnnData | SpatialData,
    *,
    model: GeneClassifier | Sequence[GeneClassifier],
    labels_key: str | None = None,
    per_section: bool = False,
    n_steps: int = 32,
    max_spots: int | None = 300,
    layer: str | None = None,
    key_added: str = "gene_importance",
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Attribute the regions that a gene classifier predicts to genes.

    The logit of a spot's region is followed from a baseline, every gene at its mean, to the spot's own expression,
    and each gene is given its share of the rise (integrated gradients [1]_). Shares add up to the rise. They are
    averaged over the region's spots.

    Parameters
    ----------
    data
        AnnData or SpatialData object with raw counts: whole sections.
    model
        A fitted :class:`histoweave.models.GeneClassifier`, or several with the same classes and genes, fitted with
        other seeds: their importances are averaged, and the result says how far they agree.
    labels_key
        Labels in ``obs`` that say which spots belong to a region. Default: the regions that the first model
        predicts.
    per_section
        Also return each section alone.
    n_steps
        Points on the path at which gradients are taken.
    max_spots
        Most spots a region and section, drawn at random; ``None`` for all.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    key_added
        Name of the result in ``uns``.
    random_state
        Seed of the draw of spots.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A DataFrame, one row a section (``"all"`` pooled), region and gene that the table has, best first: ``importance``
    (positive: the gene's level here speaks for the region), ``rank`` from 1, ``stability`` (mean rank correlation
    of the genes' importances between the models; NaN with one), ``de_score`` (t statistic of the log-normalised gene in
    the region against the rest, Scanpy's ``rank_genes_groups``; NaN where a region has fewer than two spots, or is
    alone) and ``de_rank`` (from 1, by the size of the score: a gene's absence can speak for a region as well).
    Writes it to ``uns[key_added]``, with its record in ``uns["histoweave"]``.

    Raises
    ------
    ValueError
        No spot belongs to a region that the model knows, or the models differ in classes or genes.

    Notes
    -----
    The baseline is 0 in the values the network sees: each gene at the mean of the spot's section, or at that of
    training where the section is small or the encoder does not centre; over the training spots both have mean 0.
    What a gene adds through the neighbourhood's mean is counted with the gene. Logits are taken relative to their
    mean over the classes. For principal components the shares are exact: weight times centred value.

    References
    ----------
    .. [1] Sundararajan, Taly and Yan, ICML 2017.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> clf = hw.models.GeneClassifier(hw.models.GenePCA(20).fit(adata)).fit(adata)
    >>> top = hw.tl.gene_importance(adata, model=clf).query("region == 'region_1'").head(10)
    >>> bool((adata.var.loc[top["gene"], "marker_of"] == "programme_1").mean() > 0.5)
    True
    """
    models = list(model) if isinstance(model, Sequence) else [model]
    _require_alike(models)
    require_number(n_steps, argument="n_steps", at_least=1, integer=True)
    if max_spots is not None:
        require_number(max_spots, argument="max_spots", at_least=1, integer=True)
    _, table = working_copy(data, table_key)
    keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key}
    views = [m.views(table, **keys) for m in models]
    if labels_key is None:
        region = models[0].predict(table, **keys)["predicted"]
    else:
        region = require_labels(table, labels_key, min_classes=1)
    region = region.where(views[0].usable).to_numpy(dtype=object)
    rows_of = sections(table, library_key)
    spots = _spots(region, models[0].classes, rows_of, max_spots, random_state)
    if not spots:
        msg = f"No spot belongs to a region that the model knows ({', '.join(models[0].classes)}). Check `labels_key`."
        raise ValueError(msg)
    found = [region_importance(m, v, spots, n_steps) for m, v in zip(models, views, strict=True)]
    error = max(missed for _, missed in found)
    if error > TOLERANCE:
        warn(f"Contributions leave {error:.0%} of the logits unaccounted for. Raise `n_steps`, now {n_steps}.")
    expression = models[0].encoder._aligned(table, layer, library_key, quiet=True)
    values = expression.log(expression.median_depth())
    groups = {POOLED: np.arange(table.n_obs)} | (rows_of if per_section else {})
    frames = []
    for name, rows in groups.items():
        scores = _differential(values[rows], region[rows], expression.genes)
        scores[~expression.present] = np.nan  # of what the table lacks nothing is known
        frames += _frames(name, [f for f, _ in found], spots, rows_of, scores, models[0])
    result = pd.concat(frames, ignore_index=True)[COLUMNS]
    table.uns[key_added] = result
    params = {"labels_key": labels_key, "n_steps": n_steps, "max_spots": max_spots, "layer": layer}
    record(
        table, key_added, "tl.gene_importance", params, random_state=random_state,
        sections_seen=models[0].sections_seen, packages=("torch", "captum"), n_models=len(models), unaccounted=error,
    )  # fmt: skip
    return result


def _require_alike(models: list[GeneClassifier]) -> None:
    if not models:
        msg = "`model` is empty; give one fitted GeneClassifier or more."
        raise ValueError(msg)
    for m in models:
        if getattr(m, "classes", None) is None or not hasattr(m, "views"):
            msg = f"`model` must be a fitted GeneClassifier, got {type(m).__name__}. Run `fit(data, ...)` first."
            raise ValueError(msg)
        if m.classes != models[0].classes or m.genes != models[0].genes:
            msg = "The models differ in their classes or genes; fit them on the same labels and genes, in other seeds."
            raise ValueError(msg)


def _spots(
    region: np.ndarray, classes: Sequence[str], rows_of: dict[str, np.ndarray], most: int | None, seed: int
) -> dict[tuple[str, str], np.ndarray]:  # fmt: skip
    """Row numbers to attribute, by section and region."""
    rng, out = np.random.default_rng(seed), {}
    for section, rows in rows_of.items():
        for name in classes:
            part = rows[region[rows] == name]
            if most is not None and len(part) > most:
                part = np.sort(rng.choice(part, most, replace=False))
            if len(part):
                out[section, name] = part
    return out


def _frames(
    group: str,
    found: list[dict[tuple[str, str], np.ndarray]],
    spots: dict[tuple[str, str], np.ndarray],
    rows_of: dict[str, np.ndarray],
    scores: pd.DataFrame,
    model: GeneClassifier,
) -> list[pd.DataFrame]:
    """Rank the genes of every region in one section, or pooled over sections by their number of spots."""
    out = []
    for name in model.classes:
        members = [key for key in spots if key[1] == name and group in (POOLED, key[0])]
        if not members:
            continue
        sizes = [len(spots[key]) for key in members]
        each = [np.average([f[key] for key in members], axis=0, weights=sizes) for f in found]
        frame = pd.DataFrame({"gene": model.genes, "importance": np.mean(each, axis=0)})
        frame = frame.assign(section=group, region=name, stability=agreement(each))
        frame["de_score"] = scores[name].to_numpy() if name in scores else np.nan
        frame = frame[frame["importance"].notna()].sort_values("importance", ascending=False, kind="stable")
        frame["rank"] = np.arange(1, len(frame) + 1)
        out.append(frame.assign(de_rank=frame["de_score"].abs().rank(ascending=False)))
    return out


def _differential(values: np.ndarray, region: np.ndarray, genes: Sequence[str]) -> pd.DataFrame:
    """Return the t statistic of every gene in every region against the others, genes by regions."""
    import scanpy as sc

    known = np.flatnonzero(pd.notna(region))
    sizes = pd.Series(region[known]).value_counts()
    groups = sorted(sizes[sizes >= 2].index)
    if len(sizes) < 2 or not groups:
        return pd.DataFrame(index=list(genes))
    scratch = AnnData(values[known], obs=pd.DataFrame({"region": pd.Categorical(region[known])}).set_axis(
        known.astype(str)), var=pd.DataFrame(index=list(genes)))  # fmt: skip
    scratch.uns["log1p"] = {"base": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes without variance, and pandas' remarks on Scanpy's frames
        sc.tl.rank_genes_groups(scratch, "region", groups=groups, method="t-test", use_raw=False)
    names = scratch.uns["rank_genes_groups"]["names"]
    scores = scratch.uns["rank_genes_groups"]["scores"]
    return pd.DataFrame({g: pd.Series(scores[g], index=names[g]).reindex(list(genes)) for g in groups})
