"""How many labels a classifier needs: the same folds, with ever more of the training labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._settings import track
from histoweave._validate import HistoweaveWarning, listing, require_choice, require_number
from histoweave.models import MultiLabelClassifier, RegionClassifier
from histoweave.pp._graph import ring_graphs
from histoweave.tl._fold_runner import ARMS, FoldRunner
from histoweave.tl._label_subsets import MODES, nested_subset

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def label_efficiency(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    model: RegionClassifier | MultiLabelClassifier | None = None,
    fractions: Sequence[float] = FRACTIONS,
    mode: str | Sequence[str] = "spots",
    seeds: Sequence[int] = (0, 1, 2),
    fold_key: str = _keys.FOLD,
    folds: Sequence[str] | None = None,
    arms: Sequence[str] = ("fused", "image", "gene"),
    nulls: bool = True,
    allow_leakage: bool = False,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Score a region classifier on held-out folds with ever more of the training labels.

    In every fold all rows are embedded once, labelled or not; only the classifier on top is fitted anew, on a share
    of each class of the fold's training labels, one spot at least. Smaller subsets lie within larger ones, and all
    arms and nulls see the same. Test rows are always the same. With all labels the scores are those of
    :func:`cross_validate`.

    Parameters
    ----------
    data
        AnnData or SpatialData object with folds from :func:`histoweave.pp.split`; not changed.
    labels_key
        Labels in ``obs``, or findings in ``obsm``; what is not labelled is neither trained on nor scored.
    model
        A :class:`histoweave.models.RegionClassifier` whose arguments to use; it is not fitted itself. Or a
        :class:`histoweave.models.MultiLabelClassifier`: then every finding is asked for by itself, on the same
        embeddings.
    fractions
        Shares of the training labels, above 0 and up to 1.
    mode
        ``"spots"``: anywhere in the tissue, which is the easy case. ``"patches"``: as a pathologist draws them, in
        each section one patch of each class that grows compactly over neighbouring spots; where the tissue of the
        class ends, another is begun. Or both, one after the other.
    seeds
        Each draws its own subsets. The model keeps its own seed, so a fit with all labels is made once and its scores
        stand in every seed's row.
    fold_key
        Column of ``obs`` with the folds.
    folds
        Names of the folds to test on; all by default.
    arms
        ``"fused"``, ``"image"``, ``"gene"``: what to predict from. Those the data allow are scored.
    nulls
        Add what needs no tissue, as :func:`cross_validate` does, from the same labels.
    allow_leakage
        Score folds that leak all the same; the result says so (``leakage``).
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame, one row per fold, mode, seed, fraction and arm: these, ``kind`` (``"model"`` or ``"null"``),
    ``n_train`` (labelled spots), ``n_smallest_class`` (of them, in the class that has fewest), ``transductive``,
    ``unseen_classes``, the scores of :func:`histoweave.metrics.classification`, and ``leakage``. Draw it with
    :func:`histoweave.pl.label_efficiency`. Of findings, one row a ``finding`` as well, with the scores of
    :func:`histoweave.metrics.multilabel`; draw one finding at a time.

    Raises
    ------
    KeyError
        Folds or labels are missing, or coordinates for ``mode="patches"``.
    ValueError
        The folds leak, and ``allow_leakage`` is off; a fraction is out of range; no arm can be scored.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> hw.pp.split(sections, by="donor", n_folds=3)
    >>> model = hw.models.RegionClassifier(image=None)
    >>> scores = hw.tl.label_efficiency(sections, model=model, fractions=[0.1, 1], seeds=[0], nulls=False)
    >>> scores.groupby("fraction")["n_train"].mean().to_dict()
    {0.1: 20.0, 1.0: 200.0}
    """
    for arm in arms:
        require_choice(arm, tuple(ARMS), argument="arms")
    for fraction in fractions:
        require_number(fraction, argument="fractions", above=0, at_most=1)
    modes = [mode] if isinstance(mode, str) else list(mode)
    for name in modes:
        require_choice(name, MODES, argument="mode")
    for argument, values in (("fractions", fractions), ("mode", modes), ("seeds", seeds)):
        if not len(values):
            msg = f"`{argument}` is empty; name one or more."
            raise ValueError(msg)
    runner = FoldRunner(
        data, model or RegionClassifier(), labels_key=labels_key, layer=layer, library_key=library_key,
        donor_key=donor_key, spatial_key=spatial_key, table_key=table_key,
    )  # fmt: skip
    chosen, leak = runner.folds(folds, fold_key=fold_key, allow_leakage=allow_leakage)
    possible = [arm for arm in arms if runner.has(*ARMS[arm])]
    if not possible:
        msg = f"None of the arms {listing(arms)} can be scored: the table lacks the image or the counts they need."
        raise ValueError(msg)
    neighbours = ring_graphs(runner.light, n_rings=1)[0] if "patches" in modes else None
    plan = list(product(modes, map(int, seeds), sorted(map(float, fractions))))
    rows = []
    for number, fold in enumerate(track(chosen, "folds", unit="fold")):
        found, fitted = runner.embed(fold), {}
        for (kind, seed, fraction), asked in track(list(product(plan, runner.questions(fold))), "subsets", unit="fit"):
            labels = nested_subset(
                asked.labels.where(fold.train),
                fraction,
                np.random.default_rng([seed, *fold.name.encode()]),
                neighbours=neighbours if kind == "patches" else None,
                section=runner.section,
            )
            part = replace(fold, train=labels.notna().to_numpy())
            same = asked.finding, part.train.tobytes()  # all labels are the same rows in every draw
            if same not in fitted:
                with warnings.catch_warnings():  # few labels are the point
                    warnings.filterwarnings("ignore", message="Too few labels to hold", category=HistoweaveWarning)
                    clf = asked.fit(found, labels)
                fitted[same] = {arm: asked.predict(clf, found, fold.test, ARMS[arm]) for arm in possible}
            answers = dict(fitted[same])
            if nulls:
                answers |= asked.nulls(part, child_seeds(seed, len(chosen))[number])
            about = asked.about(part) | {"mode": kind, "seed": seed, "fraction": fraction}
            about["n_smallest_class"] = int(labels.value_counts().min())
            for arm, (p, prediction) in answers.items():
                named = about | {"arm": arm, "kind": "model" if arm in ARMS else "null"}
                rows.append(named | asked.score(fold.test, p, prediction["predicted"]))
    return pd.DataFrame(rows).assign(leakage=leak)
