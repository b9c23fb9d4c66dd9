"""Fit a fusion classifier on stored embeddings and map every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._record import recorded
from histoweave._resolve import section_column, working_copy
from histoweave._validate import listing, require_key
from histoweave.models import FusionClassifier
from histoweave.models._inner_groups import inner_groups, require_donors, tell_labels_seen
from histoweave.models._prepare import masked_labels
from histoweave.models._similar import answer_neighbours
from histoweave.tl._embeddings import labels_seen
from histoweave.tl._write import write_prediction

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

SMOOTHED = ["modalities", "macro_f1", "accuracy", "macro_f1_before", "accuracy_before", "smoothing_strength"]
EMBEDDINGS = {"image": _keys.X_IMAGE, "gene": _keys.X_GENE}


def fusion_classifier(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    method: str = "stack",
    keys: Mapping[str, str] | None = None,
    decision: str = "balanced",
    calibration: str = "temperature",
    smoothing: str | None = None,
    coverage: float = 0.9,
    key_added: str | None = None,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> FusionClassifier:
    """Learn regions from the labelled rows' embeddings and predict every row.

    Parameters
    ----------
    data
        AnnData or SpatialData object with embeddings.
    labels_key
        Labels in ``obs``; missing for unlabelled rows.
    method
        ``"stack"``, ``"concat"``, ``"gated"`` or ``"cross_attention"``, see
        :class:`histoweave.models.FusionClassifier`.
    keys
        Modality to ``obsm`` key. Default: ``image`` and ``gene`` from ``X_image`` and ``X_gene``, or from their
        ``_context`` versions where :func:`histoweave.pp.spatial_context` made them; those that exist.
    decision, calibration
        See :class:`histoweave.models.FusionClassifier`.
    smoothing
        ``"potts"`` or ``"vote"``: let a spot's region follow its neighbours' as far as that helps out of fold;
        ``"similar"``: that of the spots of its section whose embeddings are most like its own.
        ``history`` of the classifier and the record say what it did to the scores, before and after.
    coverage
        Share of rows that should get an answer.
    key_added
        Beginning of the names of the results. Default: ``labels_key``.
    random_state
        Seed.
    library_key, donor_key
        Columns of ``obs`` that name the section and, where there is one, the donor.
    spatial_key
        ``obsm`` key of the coordinates; inner folds use blocks of them where donors and sections are few.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    The fitted :class:`histoweave.models.FusionClassifier`. With ``key = key_added``, writes:

    - ``obs[f"{key}_predicted"]``, categorical; missing where a row has no embedding;
    - ``obs[f"{key}_confidence"]``, the calibrated probability of the predicted region;
    - ``obs[f"{key}_abstain"]``, True where confidence is below the threshold;
    - ``obsm[f"{key}_probability"]``, a DataFrame with the regions as columns;
    - ``obsm[f"{key}_modality_weights"]``, a DataFrame with the modalities as columns, for ``method="gated"``;
    - ``uns["histoweave"][f"{key}_predicted"]``.

    Raises
    ------
    KeyError
        Labels or embeddings are missing.
    ValueError
        No labels, or one region only.

    Notes
    -----
    Predictions of the rows it was fitted on are not a test. Score with :func:`cross_validate`.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(labelled_fraction=0.3)
    >>> encoder = hw.tl.gene_encoder(adata, n_components=20)
    >>> clf = hw.tl.fusion_classifier(adata)
    >>> bool(adata.obs["region_predicted"].notna().all())
    True
    """
    _, table = working_copy(data, table_key)
    labels = masked_labels(table, labels_key)
    require_donors(table, donor_key)
    keys = embedding_keys(table, keys)
    features = {name: np.asarray(table.obsm[key]) for name, key in keys.items()}
    learned = {section for key in keys.values() for section in labels_seen(table, key)}
    tell_labels_seen(learned, section_column(table, library_key)[labels.notna().to_numpy()])
    # how far the embeddings reach is in the records of crops and neighbourhoods
    where = {"library_key": library_key, "spatial_key": spatial_key}
    groups = inner_groups(table, labels.notna().to_numpy(), donor_key=donor_key, **where)
    options = {"decision": decision, "calibration": calibration, "smoothing": smoothing, "coverage": coverage}
    model = FusionClassifier(method, **options, random_state=random_state)
    graph = answer_neighbours(smoothing, table, features, among=labels.notna().to_numpy(), **where)
    model.fit(features, labels.to_numpy(), groups=groups.of_row, positions=groups.positions, graph=graph)
    p, prediction = model._predict(features, graph=answer_neighbours(smoothing, table, features, **where))
    probability = pd.DataFrame(p, index=table.obs_names, columns=model.classes)
    seen = {s for key in keys.values() for s in _sections_seen(table, key)} | set(section_column(table, library_key))
    write_prediction(
        table,
        key_added or labels_key,
        prediction,
        probability,
        "tl.fusion_classifier",
        {"labels_key": labels_key, "method": method, "keys": keys} | options,
        random_state=random_state,
        sections_seen=sorted(seen),
        inner_groups=groups.kind,
        **({"smoothing": model.history[SMOOTHED].to_dict("list")} if SMOOTHED[-1] in model.history else {}),
    )
    if method == "gated":
        weights = model.spot_weights(features).set_index(table.obs_names)
        table.obsm[(key_added or labels_key) + _keys.WEIGHTS] = weights
    return model


def embedding_keys(table: AnnData, keys: Mapping[str, str] | None) -> dict[str, str]:
    """Return the ``obsm`` key of every modality: those named, else those with neighbourhoods, else the bare ones."""
    run = "hw.tl.image_encoder(...)` or `hw.tl.gene_encoder(...)"
    if keys is not None:
        for key in keys.values():
            require_key(table.obsm, key, where="adata.obsm", argument="keys", run=run)
        return dict(keys)
    found = {}
    for name, key in EMBEDDINGS.items():
        there = [k for k in (f"{key}_context", key) if k in table.obsm]
        if there:
            found[name] = there[0]
    if not found:
        msg = (
            f"No embedding in `adata.obsm` (available: {listing(table.obsm)}). Run `{run}` first, or name them with "
            "`keys=`."
        )
        raise KeyError(msg)
    return found


def _sections_seen(table: AnnData, key: str) -> list[str]:
    return [str(s) for s in recorded(table, key.removesuffix("_context")).get("sections_seen", [])]
