"""The arms of a comparison of ways to train an image classifier: each fitted and scored, kept in a folder if asked."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._files import atomic_path
from histoweave._record import versions
from histoweave._resolve import section_column
from histoweave._validate import HistoweaveWarning
from histoweave.loaders import require_crops
from histoweave.metrics import classification
from histoweave.models import ImageClassifier, ImageEncoder
from histoweave.models.image_encoder._model import FEATURES
from histoweave.models.image_encoder._pretexts import PRETEXTS
from histoweave.pp._split import Fold
from histoweave.tl._label_subsets import nested_subset

WITH_CONTEXT = ("context", "combined")
LABELS = "_histoweave_labels"  # obs column of a fit's labels


class ImageArms:
    """Fit and score; the last encoder is kept in memory, all encoders and scores in a folder where there is one.

    Parameters
    ----------
    table, labels
        Rows with crops, and their labels.
    encoder_options, classifier_options, n_rings, donor_key, cache_dir, **keys
        As for :func:`histoweave.tl.compare_image_training`.
    """

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
        self._digests: dict[tuple[str, str], str] = {}
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
        of += [labels.tolist(), self.labels.where(fold.test).tolist(), *map(self._told, parts)]
        of += [self._needed(method, self._seen(fold))] if method else []
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
            method = options["method"]
            path = self.folder / f"{method}-{_fingerprint(options, self._told(rows), self._needed(method, rows))}"
            options = options | ({"checkpoint": path.with_suffix(".ckpt")} if method in PRETEXTS else {})
        encoder = ImageEncoder(**options)
        if path is None or not path.exists():
            encoder.fit(self.table[rows].copy(), library_key=self.keys["library_key"])
            if path is None:
                return encoder
            encoder.save(path)
        found = ImageEncoder.load(path)
        found.device, found.precision = encoder.device, encoder.precision
        return found

    def _needed(self, method: str, rows: np.ndarray) -> list[str]:
        """Return what tells the weights that a method starts from, and the expression that it draws on."""
        encoder = ImageEncoder(**self.encoder_options | {"method": method})
        found = []
        if encoder.weights is not None and Path(encoder.weights).is_file():
            if ("file", encoder.weights) not in self._digests:
                self._digests["file", encoder.weights] = hashlib.sha256(Path(encoder.weights).read_bytes()).hexdigest()
            found.append(self._digests["file", encoder.weights])
        if "genes" in encoder.needs:
            key, across = encoder.training.genes_key, encoder.training.across_key
            found += [_digest(np.asarray(self.table.obsm[key])[rows])]
            found += [_digest(self.table.obs[across].astype(str).to_numpy()[rows])] if across in self.table.obs else []
        return found

    def _told(self, rows: np.ndarray) -> list[str]:
        """Return what tells the sections of these rows, and which of their rows are meant, from all others."""
        found = []
        for name in dict.fromkeys(self.section[rows]):
            own = self.section == name
            if ("section", name) not in self._digests:
                blocks = [part[own] for key in self.crops_keys for part in require_crops(self.table, key)]
                if (spatial := self.keys["spatial_key"]) in self.table.obsm:
                    blocks.append(np.asarray(self.table.obsm[spatial])[own])
                columns = (self.donor_key, _keys.ARRAY_ROW, _keys.ARRAY_COL)
                blocks += [self.table.obs[c].astype(str).to_numpy()[own] for c in columns if c in self.table.obs]
                self._digests["section", name] = _digest(*blocks)
            found += [name, self._digests["section", name], _digest(rows[own])]
        return found


def _digest(*blocks: Any) -> str:
    digest = hashlib.sha256()
    for block in map(np.asarray, blocks):
        text = block.dtype.kind not in "biuf"
        digest.update(repr(block.tolist()).encode() if text else np.ascontiguousarray(block).tobytes())
    return digest.hexdigest()


def _fingerprint(*of: Any) -> str:
    text = json.dumps([*of, versions("torch", "timm", "scikit-learn")], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]
