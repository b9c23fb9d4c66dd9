"""What a simple classifier reads out of an embedding, on folds that do not leak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._resolve import get_table, section_column
from histoweave._settings import track
from histoweave._validate import listing, require_choice, require_number, warn
from histoweave.metrics import classification
from histoweave.metrics._neighbours import nearest, vote
from histoweave.models._inner_groups import inner_groups
from histoweave.models._prepare import masked_labels
from histoweave.models.fusion._heads import Head, LinearHead
from histoweave.models.fusion._inner import fit_head, inner_folds
from histoweave.pp._split import Fold, iter_folds
from histoweave.tl._embeddings import embedding, embedding_keys, encoder_sections, refuse_leak
from histoweave.tl._random_features import random_features

if TYPE_CHECKING:
    from spatialdata import SpatialData

INNER_FOLDS = 3


class KnnHead(Head):
    """Vote of the nearest training rows by cosine, smoothed so that no class has probability 0."""

    def __init__(self, k: int) -> None:
        self.k = k

    def fit(self, X: np.ndarray, y: np.ndarray, n_classes: int, seed: int) -> KnnHead:
        """Keep the training rows ``(n, d)`` and their class numbers."""
        self.X, self.y, self.n_classes = X, y, n_classes
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities ``(n, n_classes)``."""
        k = min(self.k, len(self.y))
        share = vote(*nearest(X, self.X, k), self.y, self.n_classes)
        return (k * share + 1 / self.n_classes) / (k + 1)


#: Settings to choose from on inner folds, by balanced log loss; the first where labels are too few for inner folds.
PROBES = {
    "linear": [LinearHead(C) for C in (0.003, 0.03, 0.3, 3.0)],
    "knn": [KnnHead(k) for k in (5, 15, 45)],
}


def probe(
    data: AnnData | SpatialData,
    *,
    keys: str | Sequence[str] | None = None,
    labels_key: str = _keys.REGION,
    probes: Sequence[str] = ("linear", "knn"),
    fold_key: str = _keys.FOLD,
    fractions: Sequence[float] = (1.0,),
    n_repeats: int = 3,
    nulls: bool = True,
    crops_key: str = _keys.CROPS,
    layer: str | None = None,
    allow_leakage: bool = False,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Score how much of the labels a linear and a kNN classifier read from stored embeddings.

    Embeddings are compared on the same rows: those that have all of them. In every fold the classifier is fitted
    on the training rows, its strength chosen on inner folds of these alone (whole donors or sections where there
    are three or more, else blocks of tissue).

    Parameters
    ----------
    data
        AnnData or SpatialData object with embeddings and folds from :func:`histoweave.pp.split`. Not changed.
    keys
        Embeddings in ``obsm``. Default: those of the package that are there, with and without context.
    labels_key
        Labels in ``obs``; unlabelled rows are neither trained on nor scored.
    probes
        ``"linear"``: class-balanced logistic regression; ``"knn"``: vote of the nearest rows by cosine, weighted
        by distance.
    fold_key
        Column of ``obs`` with the folds.
    fractions
        Shares of the labelled training rows to train on, drawn class by class, at least one a class.
    n_repeats
        Draws of each fraction below 1. All embeddings see the same rows.
    nulls
        Add what has learned nothing: the commonest label, and 64 random projections of the pixels and of the
        log-normalised counts where the table holds them.
    crops_key
        Crops behind the random projection of the pixels.
    layer
        Raw counts behind that of the genes. Default: ``layers["counts"]`` where it exists, else ``X``.
    allow_leakage
        Score folds that leak all the same; the result says so (``leakage``).
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
    A tidy DataFrame, one row per fold, fraction, repeat, embedding and probe: ``fold``, ``fraction``, ``repeat``,
    ``arm`` (``"X_image, linear"``), ``kind`` (``"model"`` or ``"null"``), ``embedding``, ``probe``, ``setting`` (the
    chosen ``C`` or ``k``), ``transductive`` (the encoder had seen sections of the test rows; missing where that is
    not recorded), ``n_train``, ``unseen_classes`` (test regions without a training row), ``leakage``, and the scores
    of :func:`histoweave.metrics.classification`. :func:`histoweave.pl.scores` draws it.

    Raises
    ------
    KeyError
        Embeddings, labels or folds are missing.
    ValueError
        The folds leak, and ``allow_leakage`` is off; or no labelled row has all embeddings.

    References
    ----------
    Alain & Bengio (2017). Understanding intermediate layers using linear classifier probes. ICLR workshop.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> hw.pp.split(sections, by="donor", n_folds=3)
    >>> encoder = hw.tl.gene_encoder(sections, n_components=20)
    >>> scores = hw.tl.probe(sections, probes=["knn"])
    >>> sorted(scores["arm"].unique())
    ['X_gene, knn', 'majority', 'random genes, knn']
    """
    for name in probes:
        require_choice(name, tuple(PROBES), argument="probes")
    for fraction in fractions:
        require_number(fraction, argument="fractions", above=0, at_most=1)
    require_number(n_repeats, argument="n_repeats", at_least=1, integer=True)
    table = get_table(data, table_key)
    keys = embedding_keys(table, keys)
    labels = masked_labels(table, labels_key)
    where = {"fold_key": fold_key, "library_key": library_key, "spatial_key": spatial_key}
    reason = refuse_leak(
        table, keys, labels.notna().to_numpy(), allow_leakage=allow_leakage, donor_key=donor_key, **where
    )
    found = {key: embedding(table, key, argument="keys") for key in keys}
    rows = _common_rows(labels.notna().to_numpy(), {key: measured for key, (_, measured) in found.items()})
    features = {key: ("model", values) for key, (values, _) in found.items()}
    seeds = child_seeds(random_state, 2)
    if nulls:
        drawn = random_features(table, crops_key, layer, library_key=library_key, random_state=seeds[0])
        features |= {name: ("null", values) for name, values in drawn.items()}
    section = section_column(table, library_key)
    groups = inner_groups(table, rows, donor_key=donor_key, library_key=library_key, spatial_key=spatial_key)
    runner = _Runner(labels, rows, features, probes, groups.of_row, groups.positions, nulls=nulls)
    runner.seen = {key: encoder_sections(table, key) for key in keys}
    folds = list(iter_folds(table, **where))
    scores = []
    for fold, seed in zip(track(folds, "folds", unit="fold"), child_seeds(seeds[1], len(folds)), strict=True):
        scores += runner.score(fold, section, fractions, n_repeats, seed)
    if not scores:
        msg = "No fold has labelled rows to train on (2 regions or more) and to test on. Run `hw.pp.split(...)` again."
        raise ValueError(msg)
    return pd.DataFrame(scores).assign(leakage=reason)


def _common_rows(labelled: np.ndarray, measured: dict[str, np.ndarray]) -> np.ndarray:
    """Labelled rows that have every embedding; says how many lack one."""
    rows = labelled & np.all(list(measured.values()), axis=0)
    if not rows.any():
        have = ", ".join(f"`adata.obsm[{key!r}]` {int((labelled & there).sum())}" for key, there in measured.items())
        msg = f"No labelled row has all embeddings. Of {int(labelled.sum())} labelled rows have values: {have}."
        raise ValueError(msg)
    if rows.sum() < labelled.sum():
        warn(
            f"{int(labelled.sum() - rows.sum())} of {int(labelled.sum())} labelled rows lack one of "
            f"{listing(measured)}; they are neither trained on nor scored."
        )
    return rows


@dataclass
class _Runner:
    """Fit and score every embedding and probe, fold after fold."""

    labels: pd.Series
    rows: np.ndarray
    features: dict[str, tuple[str, np.ndarray]]
    probes: Sequence[str]
    groups: np.ndarray
    positions: np.ndarray | None
    nulls: bool
    seen: dict[str, set[str] | None] = None

    def __post_init__(self) -> None:
        self.classes = sorted(self.labels[self.rows].unique())
        self.y = pd.Categorical(self.labels, categories=self.classes).codes.astype(int)

    def score(
        self, fold: Fold, section: np.ndarray, fractions: Sequence[float], n_repeats: int, seed: int
    ) -> Iterator[dict[str, Any]]:
        """Yield one row of scores per fraction, repeat, embedding and probe."""
        known, test = np.flatnonzero(fold.train & self.rows), np.flatnonzero(fold.test & self.rows)
        if len(np.unique(self.y[known])) < 2 or not len(test):
            warn(
                f"Fold {fold.name!r} is left out: {len(np.unique(self.y[known]))} regions to train on and "
                f"{len(test)} labelled rows to test on."
            )
            return
        unseen = [self.classes[c] for c in np.setdiff1d(self.y[test], self.y[known])]
        if unseen:
            warn(f"Fold {fold.name!r}: no training row has {listing(unseen)}; its test rows count as errors.")
        tested = set(section[test])
        for fraction in fractions:
            for repeat, draw in enumerate(child_seeds(seed, n_repeats if fraction < 1 else 1)):
                train = known[_share(self.y[known], fraction, draw)]
                about = {"fold": fold.name, "fraction": float(fraction), "repeat": repeat, "n_train": len(train)}
                about |= {"unseen_classes": "; ".join(unseen)}
                if self.nulls:
                    share = np.bincount(self.y[train], minlength=len(self.classes)) / len(train)
                    p = np.tile(share, (len(test), 1))
                    null = {"arm": "majority", "kind": "null", "embedding": "", "probe": "", "transductive": False}
                    yield about | null | self._scores(p, test)
                for key, (kind, X) in self.features.items():
                    seen = self.seen.get(key) if kind == "model" else set()
                    transductive = None if seen is None else not seen.isdisjoint(tested)
                    for name in self.probes:
                        arm = {"arm": f"{key}, {name}", "kind": kind, "embedding": key, "probe": name}
                        p, setting = self._read_out(X, name, train, test, draw)
                        arm |= {"transductive": transductive, "setting": setting}
                        yield about | arm | self._scores(p, test)

    def _read_out(
        self, X: np.ndarray, name: str, train: np.ndarray, test: np.ndarray, seed: int
    ) -> tuple[np.ndarray, float]:
        """Probabilities of the test rows, and the setting that inner folds of the training rows chose."""
        y = self.y[train]
        fold = inner_folds(y, self.groups[train], INNER_FOLDS, seed)
        positions = None if self.positions is None else self.positions[train]
        head, _ = fit_head(PROBES[name], X[train], y, len(self.classes), fold, seed, positions)
        return head.predict_proba(X[test]), float(getattr(head, "C", None) or head.k)

    def _scores(self, p: np.ndarray, test: np.ndarray) -> dict[str, Any]:
        names = np.asarray(self.classes, dtype=object)
        return classification(names[self.y[test]], names[p.argmax(axis=1)], p, classes=self.classes)


def _share(y: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Numbers of a share of the rows of every class, at least one of each, in order."""
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(y == c))[: max(1, round(fraction * np.sum(y == c)))] for c in np.unique(y)
    ]
    return np.sort(np.concatenate(drawn))
