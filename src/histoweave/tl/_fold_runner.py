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
from histoweave.models import MultiLabelClassifier, RegionClassifier
from histoweave.models._inner_groups import require_donors
from histoweave.models.region_classifier import MODALITIES
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs
from histoweave.pp._split import Fold
from histoweave.tl._fold_embeddings import FoldEmbeddings, part, without, without_images
from histoweave.tl._labelled_folds import Answer, LabelledFolds

if TYPE_CHECKING:
    from spatialdata import SpatialData

Embeddings = Mapping[str, np.ndarray]
ARMS = {"fused": ["image", "gene"], "image": ["image"], "gene": ["gene"]}  # what each is predicted from


class FoldRunner(LabelledFolds):
    """Prepare a table once; embed, fit, predict and score on its folds.

    The order of a run, each step as often as a question needs::

        runner = FoldRunner(data, RegionClassifier(), labels_key="region")
        folds, leak = runner.folds()                                   # refuses folds that leak
        for fold in folds:
            found = runner.embed(fold)                                 # the costly step, kept for the fold
            # of findings: for runner in runner.questions(fold), and go on the same
            clf = runner.fit(found, runner.labels.where(fold.train))   # or fewer labels, n_rings=, seed=, modalities
            p, prediction = runner.predict(clf, found, fold.test)      # or modalities=["image"]
            scores = runner.about(fold) | runner.score(fold.test, p, prediction["predicted"])

    Parameters
    ----------
    data
        AnnData or SpatialData object; not changed.
    model
        Whose arguments to use; it is not fitted itself.
    labels_key
        As for :class:`LabelledFolds`, whose attributes a runner has as well.
    layer, library_key, donor_key, spatial_key, table_key
        As for :meth:`histoweave.models.RegionClassifier.fit`.

    Attributes
    ----------
    sizes
        Size in um of every kind of crop, empty without images.
    """

    def __init__(
        self,
        data: AnnData | SpatialData,
        model: RegionClassifier | MultiLabelClassifier,
        *,
        labels_key: str = _keys.REGION,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        donor_key: str = _keys.DONOR,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> None:
        super().__init__(get_table(data, table_key), model, labels_key)
        self.keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        self.donor_key, chain = donor_key, self.model
        require_donors(get_table(data, table_key), donor_key)
        self.light, self.sizes = self._new()._light(data, chain.crop_um, chain.out_px, MODALITIES, **self.keys)
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

    def has(self, *modalities: str) -> bool:
        """Tell whether all of these modalities are there."""
        there = {"image": bool(self.sizes), "gene": self.light.n_vars > 0}
        return all(there[name] for name in modalities)

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
        sections that have neither training nor test rows. A modality that no section to train on has is left out.
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
            Class name of every row, missing where it must not be learned from; at least one labelled section needs to
            have one of the modalities.
        n_rings
            Rings of neighbours whose mean is added, those of the model by default.
        seed
            Seed of heads and inner folds, that of the model by default.
        memory
            Any dict, the same for several fits: heads on the same embedding, labels and seed are fitted once.
        """
        if not embeddings:
            msg = "No section to train on has images or counts that the model may use; leave the fold out, `folds=`."
            raise ValueError(msg)
        model = self._new(n_rings=n_rings, random_state=seed)
        here = np.isin(self.section, self.section[labels.notna()])
        features = {m: values[here] for m, values in self._features(embeddings, model.n_rings).items()}
        options = {"donor_key": self.donor_key, "memory": memory}
        return model._fit_fusion(part(self._spots, here), features, labels[here], **options)

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
        asked = set(embeddings if modalities is None else modalities) & model._fusion.answers_from & set(embeddings)
        if not asked:
            return self._no_answer(rows)
        features = {m: values[rows] for m, values in self._features(embeddings, model.n_rings).items()}
        graph = model._neighbours(part(self._spots, rows), features)
        known, prediction = model._fusion._predict(features, sorted(asked), graph)
        p = np.where(np.isnan(known[:, :1]), np.nan, np.zeros(len(self.classes)))
        p[:, [self.classes.index(c) for c in model.classes]] = known
        return p, prediction.set_index(np.flatnonzero(rows))

    def _no_answer(self, rows: np.ndarray) -> Answer:
        """Return what is predicted where no labelled row of the fold has any of the modalities asked for."""
        none = {"predicted": None, "confidence": np.nan, "abstain": True, "modalities": ""}
        return np.full((rows.sum(), len(self.classes)), np.nan), pd.DataFrame(none, index=np.flatnonzero(rows))

    def _features(self, embeddings: Embeddings, n_rings: int) -> dict[str, np.ndarray]:
        if not n_rings or _keys.SPATIAL not in self._spots.obsm:
            return dict(embeddings)
        rings = self._ring_graphs(n_rings)
        return {m: context_features(values, rings) for m, values in embeddings.items()}

    def _ring_graphs(self, n_rings: int) -> list[Any]:
        if n_rings not in self._rings:
            self._rings[n_rings] = ring_graphs(self._spots, n_rings=n_rings)
        return self._rings[n_rings]
