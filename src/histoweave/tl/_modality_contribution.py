"""How much image and genes each add to an answer, spot by spot and region by region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._record import record
from histoweave._resolve import section_column, working_copy
from histoweave._validate import listing, require_labels, require_mask
from histoweave.metrics import classification, per_class
from histoweave.models import FusionClassifier, RegionClassifier
from histoweave.models._base import require_fitted
from histoweave.models.explanation._contribution import answers, logarithm, shapley, spot_contributions
from histoweave.tl._fusion import embedding_keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

OVERALL = "overall"


def modality_contribution(
    data: AnnData | SpatialData,
    model: RegionClassifier | FusionClassifier,
    *,
    labels_key: str | None = None,
    mask_key: str | None = None,
    keys: Mapping[str, str] | None = None,
    key_added: str = _keys.CONTRIBUTION,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Share an answer out among the modalities: Shapley values, exact, from a fitted classifier.

    The classifier answers from every subset of the modalities; without any, the answer is the class shares of
    training. A modality's value is what it adds, averaged over the orders in which modalities could be added [1]_.
    Values of a spot add up to its probability from all modalities less the class share.

    Parameters
    ----------
    data
        AnnData or SpatialData object: whole sections for a :class:`histoweave.models.RegionClassifier`, embeddings for
        a :class:`histoweave.models.FusionClassifier`.
    model
        The fitted classifier.
    labels_key
        Labels in ``obs``: also share out scores on held-out rows.
    mask_key
        Boolean column of ``obs`` that is True for held-out rows. Default: the sections that the classifier has not
        seen. Needed for a ``FusionClassifier``, which knows of no sections.
    keys
        Modality to ``obsm`` key for a ``FusionClassifier``, as for :func:`fusion_classifier`.
    key_added
        Name of the results.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame: ``region`` (or ``"overall"``), ``metric``, ``modality``, ``contribution``, ``full`` (the value
    with all modalities), ``empty`` (without any) and ``n``. ``"probability"`` and ``"log_probability"`` (natural) are
    means over the spots predicted as that region. With ``labels_key`` also ``"recall"`` and ``"f1"`` of each region,
    ``"accuracy"`` and ``"macro_f1"`` overall, on held-out rows; without any modality, the commonest region is
    predicted everywhere.

    With ``key = key_added``, writes ``obsm[key]`` and ``obsm[f"{key}_log"]``, DataFrames of the contributions to the
    probability of the predicted region and to its logarithm, ``obs[f"{key}_class"]`` (that region), ``uns[key]`` (what
    is returned) and the record in ``uns["histoweave"]``. A modality that a spot lacks has 0; a spot without any is NaN.

    Raises
    ------
    ValueError
        There is one modality only, or no held-out labelled row.

    Notes
    -----
    A modality that repeats the other shares its value equally: contributions describe the classifier, not the tissue.

    References
    ----------
    .. [1] Shapley, Contributions to the Theory of Games 2, 1953; Lundberg and Lee, NeurIPS 2017.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(4, n_rows=8, n_cols=8, n_genes=100)
    >>> new = (sections.obs["library_id"] == "section_4").to_numpy()
    >>> clf = hw.models.RegionClassifier().fit(sections[~new].copy())
    >>> found = hw.tl.modality_contribution(sections, clf, labels_key="region")
    >>> found.query("region == 'overall' and metric == 'macro_f1'")["modality"].tolist()
    ['gene', 'image']
    """
    if not isinstance(model, RegionClassifier | FusionClassifier):
        msg = f"`model` must be a `hw.models.RegionClassifier` or `FusionClassifier`, got {type(model).__name__}."
        raise TypeError(msg)
    require_fitted(model, "classes")
    _, table = working_copy(data, table_key)
    here = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
    labels, held_out = _held_out(table, model, labels_key, mask_key, library_key)
    fusion, features = _features(data, table, model, keys, **here)
    features = {name: values for name, values in features.items() if name in fusion.answers_from}
    players = tuple(sorted(features))
    if len(players) < 2:
        msg = (
            f"The table has {listing(players)} only, of what the classifier answers from "
            f"({listing(sorted(fusion.answers_from))}); contributions need two modalities or more."
        )
        raise ValueError(msg)
    probability, decided = answers(fusion, features)
    target = pd.Categorical(decided[players], categories=fusion.classes)
    each = {log: spot_contributions(probability, target.codes.astype(int), players, log=log) for log in (False, True)}
    rows = _spot_rows(each, probability, target, players)
    held_out &= target.codes >= 0
    if labels is not None:
        scores = {s: _scores(labels[held_out], guess[held_out]) for s, guess in decided.items()}
        value = {s: pd.Series(numbers) for s, numbers in scores.items()}
        shares = shapley({s: v.to_numpy() for s, v in value.items()}, players)
        for column, (region, metric) in enumerate(scores[()]):
            n = int(held_out.sum() if region == OVERALL else (labels[held_out] == region).sum())
            about = {"full": value[players].iloc[column], "empty": value[()].iloc[column], "n": n}
            rows += [{"region": region, "metric": metric, "modality": m, "contribution": share} | about
                     for m, share in zip(players, shares[:, column], strict=True)]  # fmt: skip
    columns = ["region", "metric", "modality", "contribution", "full", "empty", "n"]
    result = pd.DataFrame(rows, columns=columns)
    for log, suffix in ((False, ""), (True, _keys.LOG)):
        frame = pd.DataFrame(each[log].astype(np.float32), index=table.obs_names, columns=list(players))
        table.obsm[key_added + suffix] = frame
    table.obs[key_added + _keys.EXPLAINED_CLASS] = target
    table.uns[key_added] = result
    params = {"labels_key": labels_key, "mask_key": mask_key, "keys": keys, "layer": layer}
    record(table, key_added, "tl.modality_contribution", params, sections_seen=getattr(model, "sections_seen", None),
           n_held_out=int(held_out.sum()))  # fmt: skip
    return result


def _features(
    data: Any, table: AnnData, model: RegionClassifier | FusionClassifier, keys: Mapping[str, str] | None, **here: Any
) -> tuple[FusionClassifier, dict[str, np.ndarray]]:
    """Return the classifier of features, and the features of every modality that the table has."""
    if isinstance(model, RegionClassifier):
        if keys is not None:
            msg = "`keys` is for a `FusionClassifier`; a `RegionClassifier` makes its features itself."
            raise ValueError(msg)
        return model._fusion, model._encode(data, None, **here)[1]
    found = embedding_keys(table, keys)
    return model, {name: np.asarray(table.obsm[key]) for name, key in found.items() if name in model.modalities}


def _held_out(
    table: AnnData, model: Any, labels_key: str | None, mask_key: str | None, library_key: str
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the labels, ``None`` where no scores are asked for, and which rows were held out and are labelled."""
    nowhere = np.zeros(table.n_obs, dtype=bool)
    if labels_key is None:
        if mask_key is not None:
            msg = "`mask_key` names held-out rows to score; name their labels with `labels_key=`."
            raise ValueError(msg)
        return None, nowhere
    labels = require_labels(table, labels_key, min_classes=1).to_numpy(dtype=object)
    if mask_key is not None:
        held_out = require_mask(table, mask_key)
    else:
        seen = getattr(model, "sections_seen", None)
        held_out = nowhere if seen is None else ~np.isin(section_column(table, library_key).astype(str), seen)
    held_out = held_out & pd.notna(labels)
    if not held_out.any():
        msg = (
            f"No row labelled in `adata.obs[{labels_key!r}]` is known to be held out. Name the rows whose labels the "
            "classifier has not seen with `mask_key=` (a boolean column), or leave `labels_key` out."
        )
        raise ValueError(msg)
    return labels, held_out


def _spot_rows(
    each: Mapping[bool, np.ndarray], probability: Mapping[Any, np.ndarray], target: pd.Categorical, players: tuple
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the mean contributions over the spots predicted as each region, and over all."""
    rows, number = [], np.arange(len(target))
    for region in (*target.categories, OVERALL):
        chosen = target.codes >= 0 if region == OVERALL else np.asarray(target == region)
        if not chosen.any():
            continue
        for log, metric in ((False, "probability"), (True, "log_probability")):
            full, empty = (probability[s][number, target.codes][chosen] for s in (players, ()))
            full, empty = (logarithm(v) if log else v for v in (full, empty))
            about = {"full": full.mean(), "empty": empty.mean(), "n": int(chosen.sum())}
            means = each[log][chosen].mean(axis=0)
            rows += [{"region": region, "metric": metric, "modality": m, "contribution": c} | about
                     for m, c in zip(players, means, strict=True)]  # fmt: skip
    return rows


def _scores(truth: np.ndarray, guess: np.ndarray) -> dict[tuple[str, str], float]:
    """Return the scores overall and of every region with held-out rows."""
    classes = sorted({*truth, *guess})
    overall, regions = classification(truth, guess, classes=classes), per_class(truth, guess, classes=classes)
    found = {(OVERALL, name): float(overall[name]) for name in ("accuracy", "macro_f1")}
    return found | {
        (region, name): float(regions.loc[region, name]) for region in sorted(set(truth)) for name in ("recall", "f1")
    }
