"""Folds of a labelled table: which can be scored, what to say of them, what needs no tissue, and the scores."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._validate import listing, require_choice, require_key, warn
from histoweave.metrics import classification, multilabel
from histoweave.metrics._multilabel import findings
from histoweave.models._prepare import masked_labels
from histoweave.models.multilabel_classifier import ABSENT, PRESENT, MultiLabelClassifier
from histoweave.models.region_classifier import RegionClassifier
from histoweave.pp._split import Fold, iter_folds, leakage
from histoweave.tl._nulls import predict_nulls

Answer = tuple[np.ndarray, pd.DataFrame]
FOLD_KEYS = {"library_key": _keys.LIBRARY, "spatial_key": _keys.SPATIAL}  # under which a light table has them


class LabelledFolds:
    """Labels of a table and its folds: the half of :class:`FoldRunner` that needs no embedding.

    Parameters
    ----------
    table
        The table as it was given.
    model
        What is to be scored: regions in a column of ``obs``, or with a
        :class:`histoweave.models.MultiLabelClassifier` findings in ``obsm``, each a question of its own.
    labels_key
        Where they are.

    Attributes
    ----------
    light
        The table with crops, counts in ``X``, and sections and coordinates under the default keys; set by the runner.
    donor_key
        Column of its ``obs`` that names the donor, where known; set by the runner.
    model
        The chain whose arguments to use.
    labels
        Class name of every row, missing where unlabelled.
    classes
        All class names, in the order of the columns of probabilities.
    y
        Class number of every row, -1 where unlabelled.
    finding
        What the labels are of, ``None`` for regions.
    """

    light: AnnData
    section: np.ndarray
    donor_key: str

    def __init__(self, table: AnnData, model: RegionClassifier | MultiLabelClassifier, labels_key: str) -> None:
        self.finding, self._findings = None, None
        if isinstance(model, MultiLabelClassifier):
            self.model = model.chain
            self._findings = _named_findings(table, labels_key)
            known = self._findings.notna().any(axis=1)
            self._label(pd.Series("looked at", index=known.index, dtype=object).where(known))
        else:
            self.model = model
            self._label(masked_labels(table, labels_key))

    def _label(self, labels: pd.Series) -> None:
        self.labels, self.classes = labels, sorted(labels.dropna().unique())
        self.y = pd.Categorical(labels, categories=self.classes).codes.astype(int)

    def questions(self, fold: Fold | None = None) -> list[Self]:
        """Return a runner for every finding, all on the same embeddings; for regions, this one alone.

        Parameters
        ----------
        fold
            Only those that can be scored in this fold.
        """
        asked = [self] if self._findings is None else [self._of(name) for name in self._findings]
        return [one for one in asked if fold is None or (one._counts(fold)[0] > 1 and one._counts(fold)[1])]

    def _of(self, finding: str) -> Self:
        other = copy(self)
        other.finding, other._findings = finding, None
        other._label(self._findings[finding])
        return other

    def named(self, y: np.ndarray) -> pd.Series:
        """Return class numbers as labels, missing where they are -1."""
        names = np.asarray([*self.classes, None], dtype=object)  # -1 is the last
        return pd.Series(names[y], index=self.labels.index)

    def folds(
        self,
        names: Sequence[str] | None = None,
        *,
        fold_key: str = _keys.FOLD,
        allow_leakage: bool = False,
        n_rings: int | None = None,
    ) -> tuple[list[Fold], str]:
        """Return the folds that can be scored, and why they leak (empty where they do not).

        A fold without labelled rows to test on, or of two classes to train on, is left out with a warning.

        Parameters
        ----------
        names
            Folds to test on; all by default.
        fold_key
            Column of ``obs`` with the folds.
        allow_leakage
            Return folds that leak all the same.
        n_rings
            The most rings of neighbours that any fit will use, those of the model by default.

        Raises
        ------
        ValueError
            The folds leak, or none can be scored.
        """
        # judged on the table that knows how wide the crops of this model are
        where = {"fold_key": fold_key} | FOLD_KEYS
        rings = self.model.n_rings if n_rings is None else n_rings
        chosen = chosen_folds(self.light, names, **where)
        reason = leakage(self.light, donor_key=self.donor_key, n_rings=rings, **where) or self._labels_seen(chosen)
        if reason and not allow_leakage:
            msg = f"The folds leak: {reason} To score them all the same, pass `allow_leakage=True`."
            raise ValueError(msg)
        asked = self.questions()  # each says why it cannot
        folds = [f for f in chosen if sum(one._usable(f) for one in asked)]
        if not folds:
            msg = (
                "No fold has labelled rows to train on (2 regions or more, or spots with a finding and without) and to "
                "test on. Run `hw.pp.split(...)` again."
            )
            raise ValueError(msg)
        return folds, reason or ""

    def _labels_seen(self, folds: Sequence[Fold]) -> str | None:
        """Return why a given image encoder knows labels of test rows, ``None`` where it does not."""
        tested = {str(name) for fold in folds for name in self.section[fold.test & (self.y >= 0)]}
        seen = sorted(tested & set(getattr(self.model.image, "labels_seen", ())))
        if not seen:
            return None
        return (
            f"the image encoder given was trained with labels of {listing(seen, 3)}, which is tested on. Fit it on "
            "sections that are not, or name only other `folds=`."
        )

    def _counts(self, fold: Fold) -> tuple[int, int]:
        """Return the number of classes to train on and of labelled rows to test on."""
        return self.labels[fold.train].nunique(), int(self.labels[fold.test].notna().sum())

    def _usable(self, fold: Fold) -> bool:
        n_classes, n_test = self._counts(fold)
        if n_classes < 2 or not n_test:
            where = f"Fold {fold.name!r} is left out" + (f" for {self.finding!r}" if self.finding else "")
            kinds = "regions" if self.finding is None else "of present and absent"
            warn(f"{where}: {n_classes} {kinds} to train on and {n_test} labelled rows to test on.")
            return False
        unseen = self._unseen(fold)
        if unseen:
            warn(f"Fold {fold.name!r}: no training row has {listing(unseen)}; its test rows count as errors.")
        return True

    def _unseen(self, fold: Fold) -> list[str]:
        return sorted(set(self.labels[fold.test].dropna()) - set(self.labels[fold.train].dropna()))

    def about(self, fold: Fold) -> dict[str, Any]:
        """Return what to say of a fold: its name, ``transductive``, ``n_train``, ``unseen_classes``; the finding.

        ``transductive``: encoders saw the sections of the test rows, in a fold of blocks or because a given
        encoder had been fitted on them. ``unseen_classes``: regions of test rows that no training row has.
        """
        seen = set(getattr(self.model.image, "sections_seen", []))
        return {
            "fold": fold.name,
            **({} if self.finding is None else {"finding": self.finding}),
            "transductive": fold.transductive or not seen.isdisjoint(self.section[fold.test]),
            "n_train": int(self.labels[fold.train].notna().sum()),
            "unseen_classes": "; ".join(self._unseen(fold)),
        }

    def nulls(self, fold: Fold, seed: int) -> dict[str, Answer]:
        """Return what needs no tissue to predict the test rows, by name, as :meth:`predict` does.

        Parameters
        ----------
        fold
            The fold.
        seed
            Seed.
        """
        train = fold.train & (self.y >= 0)
        found = predict_nulls(self.light, self.y, train, fold.test, len(self.classes), seed)
        names, index = np.asarray(self.classes, dtype=object), np.flatnonzero(fold.test)
        return {
            name: (p, pd.DataFrame({"predicted": names[p.argmax(axis=1)]}, index=index)) for name, p in found.items()
        }

    def score(
        self, rows: np.ndarray, p: np.ndarray, predicted: pd.Series, *, y: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Return the scores of :func:`histoweave.metrics.classification` and ``n_not_predicted``.

        Of a finding, the scores of :func:`histoweave.metrics.multilabel`.

        Parameters
        ----------
        rows
            Mask of the rows predicted; unlabelled ones are not scored.
        p, predicted
            Of these rows, see :meth:`predict`. Where none could be predicted, there are no scores but ``n``.
        y
            Class numbers of all rows to score against, :attr:`y` by default.
        """
        y, names = (self.y if y is None else y)[rows], np.asarray(self.classes, dtype=object)
        if self.finding is not None:
            truth = np.where(y < 0, np.nan, y)  # absent comes before present
            said = predicted.to_numpy()[:, None] == PRESENT
            return multilabel(truth[:, None], p[:, [self.classes.index(PRESENT)]], predicted=said).iloc[0].to_dict()
        scored = (y >= 0) & ~np.isnan(p[:, 0])
        scores: dict[str, Any] = {"n": 0.0}
        if scored.any():
            scores = classification(names[y[scored]], predicted.to_numpy()[scored], p[scored], classes=self.classes)
        return scores | {"n_not_predicted": int(((y >= 0) & ~scored).sum())}


def chosen_folds(table: AnnData, names: Sequence[str] | None, **keys: str) -> list[Fold]:
    """Return the folds of these names, all by default; ``keys`` as for :func:`histoweave.pp._split.iter_folds`."""
    folds = {fold.name: fold for fold in iter_folds(table, **keys)}
    if names is None:
        return list(folds.values())
    for name in names:
        require_choice(str(name), tuple(folds), argument="folds")
    return [folds[str(name)] for name in names]


def require_regions(model: Any) -> None:
    """Raise unless ``model`` asks for one region a spot."""
    if isinstance(model, MultiLabelClassifier):
        msg = (
            "`model` is a MultiLabelClassifier; only `hw.tl.cross_validate` and `hw.tl.label_efficiency` ask for "
            "findings. Put one finding into a column of `adata.obs` and pass a RegionClassifier."
        )
        raise TypeError(msg)


def _named_findings(table: AnnData, key: str) -> pd.DataFrame:
    """Return findings as ``"present"``, ``"absent"`` and missing."""
    require_key(table.obsm, key, where="adata.obsm", argument="labels_key")
    known = findings(table.obsm[key], argument=f"adata.obsm[{key!r}]").set_index(table.obs_names)
    return known.apply(lambda column: column.map({1.0: PRESENT, 0.0: ABSENT}).astype(object))
