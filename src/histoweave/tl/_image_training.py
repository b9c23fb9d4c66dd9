"""Is training an encoder worth it? From scratch, frozen and fine-tuned, on the same folds and the same few labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._resolve import get_table
from histoweave._settings import track
from histoweave._validate import require_choice, require_number, warn
from histoweave.models import ImageEncoder
from histoweave.models._prepare import masked_labels
from histoweave.models.image_encoder._pretexts import WITHOUT_NETWORK
from histoweave.pp._split import Fold, leakage
from histoweave.tl._image_arms import WITH_CONTEXT, ImageArms
from histoweave.tl._labelled_folds import chosen_folds

if TYPE_CHECKING:
    from spatialdata import SpatialData

ARMS = ("scratch", "linear", "context", "combined", "fine_tune")
NETWORK_ONLY = ("combined", "fine_tune")


def compare_image_training(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    methods: Sequence[str] = ("statistics", "simclr"),
    arms: Sequence[str] = ARMS,
    fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    crops_key: str | Sequence[str] = _keys.CROPS,
    backbone: str = "resnet18",
    encoder_options: Mapping[str, Any] | None = None,
    classifier_options: Mapping[str, Any] | None = None,
    n_rings: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    fold_key: str = _keys.FOLD,
    folds: Sequence[str] | None = None,
    allow_leakage: bool = False,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Score ways to train an image classifier on held-out folds, with all labels and with few.

    In every fold an encoder is fitted for each method and seed, without labels, and serves all arms and fractions.
    It sees every section but those of the test fold and of their donors; sections of no fold are additional
    pictures. Where folds are blocks of one section it sees that section whole (``transductive``).

    Parameters
    ----------
    data
        AnnData or SpatialData object with crops, and folds from :func:`histoweave.pp.split`; not changed.
    labels_key
        Labels in ``obs``; missing for unlabelled rows.
    methods
        Encoders, see :class:`histoweave.models.ImageEncoder`.
    arms
        ``"scratch"``: a network trained from random weights on the labels alone. For each method ``"linear"``,
        logistic regression on the frozen embedding; ``"context"``, the same with the neighbours' mean embeddings
        beside it; and where the method has a network ``"combined"``, that with the statistics of the crops beside
        the network's features, and ``"fine_tune"``, all layers trained.
    fractions
        Shares of the training labels to learn from, at least one a class. Smaller subsets lie within larger ones.
    seeds
        Each draws its own subsets and trains its own encoders and classifiers.
    crops_key
        Crops in ``obsm``, one or several scales.
    backbone
        Network of all arms.
    encoder_options, classifier_options
        More arguments of :class:`histoweave.models.ImageEncoder` and :class:`histoweave.models.ImageClassifier`.
    n_rings
        Rings of neighbours of ``"context"``.
    cache_dir
        Folder that keeps encoders and scores: an interrupted comparison goes on where it was, and another one
        uses what is the same.
    fold_key
        Column of ``obs`` with the folds.
    folds
        Names of the folds to test on; all by default.
    allow_leakage
        Score folds that leak all the same; the result says so (``leakage``).
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame, one row a fit: ``fold``, ``seed``, ``arm``, ``method`` (empty from scratch), ``fraction``,
    ``n_train`` (labelled rows), ``transductive``, ``n_not_predicted`` (test rows without crops), the scores of
    :func:`histoweave.metrics.classification`, and ``leakage``. Test rows of a class without training rows are errors.

    Raises
    ------
    KeyError
        Folds, labels or crops are missing.
    ValueError
        The folds leak, and ``allow_leakage`` is off; or no fold has labels to train and to test on.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> hw.pp.crops(sections)
    >>> hw.pp.split(sections, by="donor", n_folds=3)
    >>> scores = hw.tl.compare_image_training(sections, methods=["statistics"], arms=["linear"], folds=["0"])
    >>> scores[["fold", "arm", "method"]].values.tolist()
    [['0', 'linear', 'statistics']]
    """
    for arm in arms:
        require_choice(arm, ARMS, argument="arms")
    for fraction in fractions:
        require_number(fraction, argument="fractions", above=0, at_most=1)
    table = get_table(data, table_key)
    labels = masked_labels(table, labels_key)
    where = {"fold_key": fold_key, "library_key": library_key, "spatial_key": spatial_key}
    reason = leakage(table, donor_key=donor_key, n_rings=n_rings if set(WITH_CONTEXT) & set(arms) else 0, **where)
    if reason and not allow_leakage:
        msg = f"The folds leak: {reason} To score them all the same, pass `allow_leakage=True`."
        raise ValueError(msg)
    encoder_options = {"crops_keys": crops_key, "backbone": backbone} | dict(encoder_options or {})
    for method in methods:  # wrong arguments are told now, not after the first fits
        encoder = ImageEncoder(**encoder_options | {"method": method})
        if encoder.training.probe or "labels" in encoder.needs:
            msg = f"`methods={method!r}` would see labels that its arms do not; leave out it and `probe`."
            raise ValueError(msg)
    fitted = ImageArms(
        table, labels, encoder_options=encoder_options, classifier_options=dict(classifier_options or {}),
        n_rings=n_rings, cache_dir=cache_dir, donor_key=donor_key, library_key=library_key, spatial_key=spatial_key,
    )  # fmt: skip
    chosen = [fold for fold in chosen_folds(table, folds, **where) if _usable(fold, labels)]
    if not chosen:
        msg = "No fold has labelled rows to train on (2 regions or more) and to test on. Run `hw.pp.split(...)` again."
        raise ValueError(msg)
    plan = list(product(chosen, seeds, _pairs(methods, arms)))
    rows = []
    for fold, seed, (arm, method) in track(plan, "arms", unit="arm"):
        rows += [fitted.row(fold, int(seed), arm, method, float(fraction)) for fraction in fractions]
    return pd.DataFrame(rows).assign(leakage=reason or "")


def _pairs(methods: Sequence[str], arms: Sequence[str]) -> list[tuple[str, str]]:
    """Return ``(arm, method)``, those of one method together."""
    pairs = [("scratch", "")] if "scratch" in arms else []
    learned = [arm for arm in arms if arm != "scratch"]
    return pairs + [
        (arm, method)
        for method in methods
        for arm in learned
        if arm not in NETWORK_ONLY or method not in WITHOUT_NETWORK
    ]


def _usable(fold: Fold, labels: pd.Series) -> bool:
    """Tell whether a fold can be scored; warns where it cannot."""
    n_regions, n_test = labels[fold.train].nunique(), int(labels[fold.test].notna().sum())
    if n_regions < 2 or not n_test:
        warn(f"Fold {fold.name!r} is left out: {n_regions} regions to train on, {n_test} labelled rows to test on.")
    return n_regions > 1 and n_test > 0
