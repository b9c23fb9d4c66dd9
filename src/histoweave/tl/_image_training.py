"""Is training an encoder worth it? From scratch, frozen and fine-tuned, on the same folds and the same few labels."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._files import atomic_path
from histoweave._record import versions
from histoweave._resolve import get_table, section_column
from histoweave._settings import track
from histoweave._validate import HistoweaveWarning, require_choice, require_number, warn
from histoweave.loaders import require_crops
from histoweave.metrics import classification
from histoweave.models import ImageClassifier, ImageEncoder
from histoweave.models._prepare import masked_labels
from histoweave.models.image_encoder._model import FEATURES
from histoweave.models.image_encoder._pretexts import PRETEXTS, WITHOUT_NETWORK
from histoweave.pp._split import Fold, leakage
from histoweave.tl._label_subsets import nested_subset
from histoweave.tl._labelled_folds import chosen_folds

if TYPE_CHECKING:
    from spatialdata import SpatialData

ARMS = ("scratch", "linear", "context", "combined", "fine_tune")
WITH_CONTEXT = ("context", "combined")
NETWORK_ONLY = ("combined", "fine_tune")
LABELS = "_histoweave_labels"  # obs column of a fit's labels


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
    runner = _Runner(
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
        rows += [runner.row(fold, int(seed), arm, method, float(fraction)) for fraction in fractions]
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


class _Runner:
    """Fit and score; the last encoder is kept in memory, all encoders and scores in a folder where there is one."""

    def __init__(
        self,
        table: AnnData,
        labels: pd.Series,
        *,
        encoder_options: dict[str, Any],
        classifier_options: dict[str, Any],
        n_rings: int,
        donor_key: str,
        cache_dir: str | os.PathLike[str] | None,
        **keys: str,
    ) -> None:
        self.table, self.labels, self.keys, self.donor_key = table, labels, keys, donor_key
        self.encoder_options, self.classifier_options, self.n_rings = encoder_options, classifier_options, n_rings
        self.section = section_column(table, keys["library_key"])
        self.classes = sorted(labels.dropna().unique())
        self.crops_keys = ImageEncoder(**encoder_options).crops_keys
        for key in self.crops_keys:
            require_crops(table, key)
        self.folder = None if cache_dir is None else Path(cache_dir)
        self._digests: dict[str, str] = {}
        self._held: tuple[Any, ImageEncoder, np.ndarray] | None = None
        self._statistics: np.ndarray | None = None

    def row(self, fold: Fold, seed: int, arm: str, method: str, fraction: float) -> dict[str, Any]:
        """Return the scores of one fit."""
        labels = nested_subset(self.labels.where(fold.train), fraction, np.random.default_rng([seed, 3]))
        about = {"fold": fold.name, "seed": seed, "arm": arm, "method": method, "fraction": fraction}
        about |= {"n_train": int(labels.notna().sum()), "transductive": fold.transductive}
        if self.folder is None:
            return about | self._scores(fold, seed, arm, method, labels)
        parts = [fold.train | fold.test, *([self._seen(fold)] if method else [])]
        of = [about, self.encoder_options, self.classifier_options, self.n_rings if arm in WITH_CONTEXT else 0]
        of += [labels.tolist(), self.labels.where(fold.test).tolist(), *map(self._pixels, parts)]
        path = self.folder / f"scores-{_fingerprint(*of)}.json"
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(self._scores(fold, seed, arm, method, labels)))
        return about | json.loads(path.read_text())

    def _scores(self, fold: Fold, seed: int, arm: str, method: str, labels: pd.Series) -> dict[str, Any]:
        strategy = "linear" if arm in WITH_CONTEXT else arm
        options = {"random_state": seed, **self.classifier_options, "strategy": strategy}
        blocks = {key: self.table.obsm[key] for key in self.crops_keys}
        if arm == "scratch":
            same = {k: v for k, v in self.encoder_options.items() if k in ("backbone", "device", "precision")}
            model = ImageClassifier(crops_keys=self.crops_keys, **same | options)
        else:
            encoder, features = (self._combined if arm == "combined" else self._encoder)(fold, seed, method)
            blocks = blocks if arm == "fine_tune" else {FEATURES: features}
            model = ImageClassifier(encoder, n_rings=self.n_rings if arm in WITH_CONTEXT else 0, **options)
        with warnings.catch_warnings():  # few labels are the point
            warnings.filterwarnings("ignore", message="Regions with fewer than 5", category=HistoweaveWarning)
            train = self._part(np.isin(self.section, self.section[labels.notna()]), blocks, labels)
            model.fit(train, labels_key=LABELS, donor_key=self.donor_key, **self.keys)
        test = self._part(np.isin(self.section, self.section[fold.test]), blocks, self.labels.where(fold.test))
        truth = test.obs[LABELS]
        p = model.predict_proba(test, **self.keys)[truth.notna()].reindex(columns=self.classes, fill_value=0.0)
        p, n = p[p.notna().all(axis=1)], int(truth.notna().sum())
        return {"n_not_predicted": n - len(p)} | classification(truth[p.index], p.idxmax(axis=1), p)

    def _part(self, rows: np.ndarray, blocks: Mapping[str, Any], labels: pd.Series) -> AnnData:
        """Return some rows with what a classifier needs; images are not copied."""
        spatial = self.keys["spatial_key"]
        blocks = dict(blocks) | ({spatial: self.table.obsm[spatial]} if spatial in self.table.obsm else {})
        obs = self.table.obs.assign(**{LABELS: labels, self.keys["library_key"]: self.section})[rows]
        return AnnData(obs=obs, obsm={key: values[rows] for key, values in blocks.items()}, uns=self.table.uns)

    def _seen(self, fold: Fold) -> np.ndarray:
        """Which rows an encoder may learn from: no section of the test fold, nor any other of its donors."""
        if fold.transductive:
            return np.ones(len(self.section), dtype=bool)
        seen = ~np.isin(self.section, self.section[fold.test])
        if self.donor_key in self.table.obs:
            donor = self.table.obs[self.donor_key]
            seen &= ~donor.isin(donor[fold.test].dropna()).to_numpy()
        return seen | np.isin(self.section, self.section[fold.train])

    def _encoder(self, fold: Fold, seed: int, method: str) -> tuple[ImageEncoder, np.ndarray]:
        """Return the fold's encoder and what it finds in every row."""
        rows = self._seen(fold)
        options = {"random_state": seed, **self.encoder_options, "method": method}
        held = (rows.tobytes(), repr(options))
        if self._held is None or self._held[0] != held:
            encoder = self._fitted(rows, options)
            self._held = held, encoder, encoder.features(self.table)
        return self._held[1:]

    def _combined(self, fold: Fold, seed: int, method: str) -> tuple[ImageEncoder, np.ndarray]:
        """Return the same encoder with statistics beside its network, without training that again."""
        encoder, features = self._encoder(fold, seed, method)
        if encoder.statistics:
            return encoder, features
        if self._statistics is None:
            self._statistics = ImageEncoder(crops_keys=self.crops_keys).features(self.table)
        both, rows = np.concatenate([features, self._statistics], axis=1), self._seen(fold)
        combined = deepcopy(encoder)
        combined.statistics = True
        combined.fit(self._part(rows, {FEATURES: both}, self.labels), library_key=self.keys["library_key"])
        return combined, both

    def _fitted(self, rows: np.ndarray, options: dict[str, Any]) -> ImageEncoder:
        path = None
        if self.folder is not None:
            path = (
                self.folder
                / f"{options['method']}-{_fingerprint(options, self._pixels(rows), self._expression(options, rows))}"
            )
            options = options | ({"checkpoint": path.with_suffix(".ckpt")} if options["method"] in PRETEXTS else {})
        encoder = ImageEncoder(**options)
        if path is None or not path.exists():
            encoder.fit(self.table[rows].copy(), library_key=self.keys["library_key"])
            if path is None:
                return encoder
            encoder.save(path)
        found = ImageEncoder.load(path)
        found.device, found.precision = encoder.device, encoder.precision
        return found

    def _expression(self, options: dict[str, Any], rows: np.ndarray) -> str:
        """Return what tells the expression that a method draws on, empty where it draws on none."""
        encoder = ImageEncoder(**options)
        if "genes" not in encoder.needs:
            return ""
        return hashlib.sha256(np.asarray(self.table.obsm[encoder.training.genes_key])[rows].tobytes()).hexdigest()

    def _pixels(self, rows: np.ndarray) -> list[str]:
        """Return what tells the sections of these rows, and which of their rows are meant, from all others."""
        found = []
        for name in dict.fromkeys(self.section[rows]):
            own = self.section == name
            if name not in self._digests:
                digest = hashlib.sha256()
                for key in self.crops_keys:
                    crops, available = require_crops(self.table, key)
                    digest.update(available[own].tobytes() + np.ascontiguousarray(crops[own]).tobytes())
                self._digests[name] = digest.hexdigest()
            found += [name, self._digests[name], hashlib.sha256(rows[own].tobytes()).hexdigest()]
        return found


def _fingerprint(*of: Any) -> str:
    text = json.dumps([*of, versions("torch", "timm", "scikit-learn")], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _usable(fold: Fold, labels: pd.Series) -> bool:
    """Tell whether a fold can be scored; warns where it cannot."""
    n_regions, n_test = labels[fold.train].nunique(), int(labels[fold.test].notna().sum())
    if n_regions < 2 or not n_test:
        warn(f"Fold {fold.name!r} is left out: {n_regions} regions to train on, {n_test} labelled rows to test on.")
    return n_regions > 1 and n_test > 0
