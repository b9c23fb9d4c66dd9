"""Held-out folds of a region classifier, taken apart: a fold is embedded once, then fitted and scored in many ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._resolve import get_table
from histoweave._validate import listing, require_choice, warn
from histoweave.metrics import classification
from histoweave.models import RegionClassifier
from histoweave.models._prepare import masked_labels
from histoweave.models.region_classifier import MODALITIES
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs
from histoweave.pp._split import Fold, iter_folds, leakage
from histoweave.tl._fold_embeddings import FoldEmbeddings, part, without, without_images
from histoweave.tl._nulls import predict_nulls

if TYPE_CHECKING:
    from spatialdata import SpatialData

Embeddings = Mapping[str, np.ndarray]
Answer = tuple[np.ndarray, pd.DataFrame]
ARMS = {"fused": ["image", "gene"], "image": ["image"], "gene": ["gene"]}  # what each is predicted from
FOLD_KEYS = {"library_key": _keys.LIBRARY, "spatial_key": _keys.SPATIAL}  # under which a light table has them


class FoldRunner:
    """Prepare a table once; embed, fit, predict and score on its folds.

    The order of a run, each step as often as a question needs::

        runner = FoldRunner(data, RegionClassifier(), labels_key="region")
        folds, leak = runner.folds()                                   # refuses folds that leak
        for fold in folds:
            found = runner.embed(fold)                                 # the costly step, kept for the fold
            clf = runner.fit(found, runner.labels.where(fold.train))   # or fewer labels, n_rings=, seed=, modalities
            p, prediction = runner.predict(clf, found, fold.test)      # or modalities=["image"]
            scores = runner.about(fold) | runner.score(fold.test, p, prediction["predicted"])

    Parameters
    ----------
    data
        AnnData or SpatialData object; not changed.
    model
        Whose arguments to use; it is not fitted itself.
    labels_key, layer, library_key, spatial_key, table_key
        As for :meth:`histoweave.models.RegionClassifier.fit`.

    Attributes
    ----------
    light
        The table with crops, counts in ``X``, and sections and coordinates under the default keys.
    sizes
        Size in um of every kind of crop, empty without images.
    labels
        Class name of every row, missing where unlabelled.
    classes
        All class names, in the order of the columns of probabilities.
    y
        Class number of every row, -1 where unlabelled.
    """

    def __init__(
        self,
        data: AnnData | SpatialData,
        model: RegionClassifier,
        *,
        labels_key: str = _keys.REGION,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> None:
        self.labels = masked_labels(get_table(data, table_key), labels_key)
        self.model = model
        self.keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        self.light, self.sizes = self._new()._light(data, model.crop_um, model.out_px, MODALITIES, **self.keys)
        self.classes = sorted(self.labels.dropna().unique())
        self.y = pd.Categorical(self.labels, categories=self.classes).codes.astype(int)
        self.section = self.light.obs[_keys.LIBRARY].astype(str).to_numpy()
        self.light.uns["spatial"] = without_images(self.light.uns["spatial"])  # copied with every part of the table
        self._spots = without(self.light, self.sizes, counts=False)
        self._rings: dict[int, list[Any]] = {}
        self._embeddings = FoldEmbeddings(self.light, self.sizes, self.model, self.y >= 0)

    def twin(self, light: AnnData | None = None, **arguments: Any) -> FoldRunner:
        """Return a runner of the same rows and labels, with other arguments of the model or other crops.

        Parameters
        ----------
        light
            :attr:`light` with crops changed.
        arguments
            Of :class:`histoweave.models.RegionClassifier`.
        """
        other = copy(self)
        other.model = RegionClassifier(**self.model.arguments | arguments)
        other.light = self.light if light is None else light
        if other.model.genes is None:
            other.light = without(other.light, counts=False)
        other._embeddings = FoldEmbeddings(other.light, self.sizes, other.model, self.y >= 0)
        return other

    def _new(self, **arguments: Any) -> RegionClassifier:
        """Return an unfitted twin of the model with some other arguments."""
        return RegionClassifier(**self.model.arguments | {k: v for k, v in arguments.items() if v is not None})

    def named(self, y: np.ndarray) -> pd.Series:
        """Return class numbers as labels, missing where they are -1."""
        names = np.asarray([*self.classes, None], dtype=object)  # -1 is the last
        return pd.Series(names[y], index=self.labels.index)

    def has(self, *modalities: str) -> bool:
        """Tell whether all of these modalities are there."""
        there = {"image": bool(self.sizes), "gene": self.light.n_vars > 0}
        return all(there[name] for name in modalities)

    def folds(
        self,
        names: Sequence[str] | None = None,
        *,
        fold_key: str = _keys.FOLD,
        donor_key: str = _keys.DONOR,
        allow_leakage: bool = False,
        n_rings: int | None = None,
    ) -> tuple[list[Fold], str]:
        """Return the folds that can be scored, and why they leak (empty where they do not).

        A fold without labelled rows to test on, or of two classes to train on, is left out with a warning.

        Parameters
        ----------
        names
            Folds to test on; all by default.
        fold_key, donor_key
            Columns of ``obs`` with the folds and the donors.
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
        reason = leakage(self.light, donor_key=donor_key, n_rings=rings, **where)
        if reason and not allow_leakage:
            msg = f"The folds leak: {reason} To score them all the same, pass `allow_leakage=True`."
            raise ValueError(msg)
        folds = [fold for fold in chosen_folds(self.light, names, **where) if self._usable(fold)]
        if not folds:
            msg = (
                "No fold has labelled rows to train on (2 regions or more) and to test on. Run `hw.pp.split(...)` "
                "again."
            )
            raise ValueError(msg)
        return folds, reason or ""

    def _usable(self, fold: Fold) -> bool:
        n_regions, n_test = self.labels[fold.train].nunique(), int(self.labels[fold.test].notna().sum())
        if n_regions < 2 or not n_test:
            warn(
                f"Fold {fold.name!r} is left out: {n_regions} regions to train on and {n_test} labelled rows to test "
                "on."
            )
            return False
        unseen = self._unseen(fold)
        if unseen:
            warn(f"Fold {fold.name!r}: no training row has {listing(unseen)}; its test rows count as errors.")
        return True

    def _unseen(self, fold: Fold) -> list[str]:
        return sorted(set(self.labels[fold.test].dropna()) - set(self.labels[fold.train].dropna()))

    def about(self, fold: Fold) -> dict[str, Any]:
        """Return what to say of a fold: its name, ``transductive``, ``n_train`` and ``unseen_classes``.

        ``transductive``: encoders saw the sections of the test rows, in a fold of blocks or because a given
        encoder had been fitted on them. ``unseen_classes``: regions of test rows that no training row has.
        """
        seen = set(getattr(self.model.image, "sections_seen", []))
        return {
            "fold": fold.name,
            "transductive": fold.transductive or not seen.isdisjoint(self.section[fold.test]),
            "n_train": int(self.labels[fold.train].notna().sum()),
            "unseen_classes": "; ".join(self._unseen(fold)),
        }

    def embed(self, fold: Fold, *, seed: int | None = None, crops_key: str | None = None) -> dict[str, np.ndarray]:
        """Return the embedding of every modality, fitted on the sections of the fold's labelled training rows.

        In a transductive fold, encoders see all rows. What is embedded is kept until another fold with other
        sections comes, so loop over folds first.

        Parameters
        ----------
        fold
            One of :meth:`folds`, or made by hand.
        seed
            Seed of the encoders, that of the model by default.
        crops_key
            Image embedding of the crops of this scale alone (only ``"image"`` is returned).

        Returns
        -------
        Modality to float32 array ``(n_obs, d)``, without context. NaN in rows that lack the modality, and in
        sections that have neither training nor test rows.
        """
        return self._embeddings.of(fold, self.model.random_state if seed is None else seed, crops_key)

    def fit(
        self,
        embeddings: Embeddings,
        labels: pd.Series,
        *,
        n_rings: int | None = None,
        seed: int | None = None,
        memory: dict[str, Any] | None = None,
    ) -> RegionClassifier:
        """Return a classifier fitted on embeddings, for :meth:`predict`; it holds no encoders.

        Parameters
        ----------
        embeddings
            Modality to array ``(n_obs, d)``, all or some of :meth:`embed`; :meth:`predict` can do with fewer.
        labels
            Class name of every row, missing where it must not be learned from.
        n_rings
            Rings of neighbours whose mean is added, those of the model by default.
        seed
            Seed of heads and inner folds, that of the model by default.
        memory
            Any dict, the same for several fits: heads on the same embedding, labels and seed are fitted once.
        """
        model = self._new(n_rings=n_rings, random_state=seed)
        here = np.isin(self.section, self.section[labels.notna()])
        features = {m: values[here] for m, values in self._features(embeddings, model.n_rings).items()}
        return model._fit_fusion(part(self._spots, here), features, labels[here], memory)

    def predict(
        self,
        model: RegionClassifier,
        embeddings: Embeddings,
        rows: np.ndarray,
        modalities: Sequence[str] | None = None,
    ) -> Answer:
        """Return ``(probabilities, prediction)`` of the rows of a mask ``(n_obs,)``.

        Parameters
        ----------
        model
            What :meth:`fit` returned.
        embeddings
            As for :meth:`fit`.
        rows
            Rows to predict.
        modalities
            Use only these.

        Returns
        -------
        Probabilities ``(n_rows, n_classes)`` of all :attr:`classes`: 0 for those the classifier does not know, NaN
        for rows that cannot be predicted. The prediction is a DataFrame with ``predicted``, ``confidence`` and
        ``abstain``, indexed by the number of the row in the table.
        """
        features = {m: values[rows] for m, values in self._features(embeddings, model.n_rings).items()}
        graph = self._ring_graphs(1)[0][rows][:, rows] if model._fusion.smoothing else None
        known, prediction = model._fusion._predict(features, modalities, graph)
        p = np.where(np.isnan(known[:, :1]), np.nan, np.zeros(len(self.classes)))
        p[:, [self.classes.index(c) for c in model.classes]] = known
        return p, prediction.set_index(np.flatnonzero(rows))

    def _features(self, embeddings: Embeddings, n_rings: int) -> dict[str, np.ndarray]:
        if not n_rings or _keys.SPATIAL not in self._spots.obsm:
            return dict(embeddings)
        rings = self._ring_graphs(n_rings)
        return {m: context_features(values, rings) for m, values in embeddings.items()}

    def _ring_graphs(self, n_rings: int) -> list[Any]:
        if n_rings not in self._rings:
            self._rings[n_rings] = ring_graphs(self._spots, n_rings=n_rings)
        return self._rings[n_rings]

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
