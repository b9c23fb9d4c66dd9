"""Cross-validate the whole chain on folds that do not leak, beside what needs no tissue at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._resolve import get_table, working_copy
from histoweave._settings import track
from histoweave._validate import listing, require_choice, warn
from histoweave.metrics import classification
from histoweave.models import RegionClassifier
from histoweave.models._prepare import masked_labels
from histoweave.models.image_encoder._model import FEATURES
from histoweave.models.region_classifier import MODALITIES
from histoweave.pp._split import Fold, iter_folds, leakage
from histoweave.tl._nulls import predict_nulls
from histoweave.tl._write import write_prediction

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

ARMS = {"fused": None, "image": ["image"], "gene": ["gene"]}


def cross_validate(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    model: RegionClassifier | None = None,
    fold_key: str = _keys.FOLD,
    folds: Sequence[str] | None = None,
    arms: Sequence[str] = ("fused", "image", "gene"),
    nulls: bool = True,
    key_added: str | None = None,
    allow_leakage: bool = False,
    layer: str | None = None,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Score a region classifier on held-out folds, each modality alone, and the nulls.

    In every fold the chain is fitted anew on the training rows. Where test rows lie in sections of their own,
    encoders never see those sections. Where folds are blocks of one section, encoders see the whole section
    but no label of the test blocks, nor any within the buffer around them; the table says so
    (``transductive``), and also where a given image encoder had been fitted on test sections.

    Parameters
    ----------
    data
        AnnData or SpatialData object with folds from :func:`histoweave.pp.split`. Not changed unless
        ``key_added`` is given.
    labels_key
        Labels in ``obs``; unlabelled rows are neither trained on nor scored.
    model
        A :class:`histoweave.models.RegionClassifier` whose arguments to use; it is not fitted itself.
    fold_key
        Column of ``obs`` with the folds.
    folds
        Names of the folds to test on; all by default.
    arms
        ``"fused"``, ``"image"``, ``"gene"``: what to predict from. Those the data allow are scored.
    nulls
        Add what needs no tissue: majority, sequencing depth, coordinates, vote of labelled neighbours.
    key_added
        Write the held-out predictions of the first arm under this name (``obs[f"{key_added}_predicted"]``, ...).
    allow_leakage
        Score folds that leak all the same; the result says so (``leakage``).
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    random_state
        Seed of the nulls; the model has its own.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame, one row per fold and arm: ``fold``, ``arm``, ``kind`` (``"model"`` or ``"null"``),
    ``transductive``, ``n_train``, ``unseen_classes`` (test regions that no training row has), and the scores of
    :func:`histoweave.metrics.classification`.

    Raises
    ------
    KeyError
        Folds or labels are missing.
    ValueError
        The folds leak, and ``allow_leakage`` is off.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> hw.pp.split(sections, by="donor", n_folds=3)
    >>> scores = hw.tl.cross_validate(sections, model=hw.models.RegionClassifier(image=None))
    >>> sorted(scores["arm"].unique())
    ['coordinates', 'depth', 'gene', 'majority', 'neighbour vote']
    """
    for arm in arms:
        require_choice(arm, tuple(ARMS), argument="arms")
    table = get_table(data, table_key)
    labels = masked_labels(table, labels_key)
    model = model or RegionClassifier()
    twin = RegionClassifier(**model.arguments)
    keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
    light, sizes = twin._light(data, twin.crop_um, twin.out_px, MODALITIES, **keys)
    twin._sizes = sizes
    # judged on the table that knows how wide the crops of this model are
    where = {"fold_key": fold_key, "library_key": _keys.LIBRARY, "spatial_key": _keys.SPATIAL}
    reason = leakage(light, donor_key=donor_key, n_rings=twin.n_rings, **where)
    if reason and not allow_leakage:
        msg = f"The folds leak: {reason} To score them all the same, pass `allow_leakage=True`."
        raise ValueError(msg)
    image = twin._new_encoders(light)["image"] if sizes else None
    if image is not None and (image.sections_seen or not image.pretexts):
        # described once: what an encoder learns from the descriptions is learned in each fold
        light.obsm[FEATURES] = image.features(light)
        for key in sizes:
            del light.obsm[key]
    chosen = _chosen_folds(light, folds, **where)
    runner = _Runner(light, sizes, labels, model.arguments, [a for a in arms if _possible(a, sizes, light)])
    if not runner.arms:
        msg = f"None of the arms {listing(arms)} can be scored: the table lacks the image or the counts they need."
        raise ValueError(msg)
    seeds = child_seeds(random_state, len(chosen))
    rows, held_out = [], []
    for fold, seed in zip(track(chosen, "folds", unit="fold"), seeds, strict=True):
        rows += runner.score(fold, seed if nulls else None, held_out)
    if not rows:
        msg = "No fold has labelled rows to train on (2 regions or more) and to test on. Run `hw.pp.split(...)` again."
        raise ValueError(msg)
    if key_added is not None:
        params = {
            "labels_key": labels_key,
            "fold_key": fold_key,
            "arm": runner.arms[0],
            "model": model._plain_arguments(),
        }
        _write(working_copy(data, table_key)[1], key_added, held_out, runner.classes, params)
    return pd.DataFrame(rows).assign(leakage=reason or "")


def _chosen_folds(table: AnnData, names: Sequence[str] | None, **keys: str) -> list[Fold]:
    folds = {fold.name: fold for fold in iter_folds(table, **keys)}
    if names is None:
        return list(folds.values())
    for name in names:
        require_choice(str(name), tuple(folds), argument="folds")
    return [folds[str(name)] for name in names]


def _possible(arm: str, sizes: dict, light: AnnData) -> bool:
    has = {"image": bool(sizes), "gene": light.n_vars > 0}
    return all(has.values()) if arm == "fused" else has[arm]


class _Runner:
    """Fit and score fold after fold on one prepared table."""

    def __init__(self, light: AnnData, sizes: dict, labels: pd.Series, arguments: dict, arms: list[str]) -> None:
        self.light, self.sizes, self.labels, self.arguments, self.arms = light, sizes, labels, arguments, arms
        self.classes = sorted(labels.dropna().unique())
        self.y = pd.Categorical(labels, categories=self.classes).codes.astype(int)
        self._whole: tuple[RegionClassifier, dict[str, np.ndarray]] | None = None

    def score(self, fold: Fold, null_seed: int | None, held_out: list) -> Iterator[dict[str, Any]]:
        """Yield one row of scores per arm and null; the first arm's predictions are added to ``held_out``."""
        train, test = fold.train & (self.y >= 0), fold.test & (self.y >= 0)
        if len(np.unique(self.y[train])) < 2 or not test.any():
            warn(
                f"Fold {fold.name!r} is left out: {len(np.unique(self.y[train]))} regions to train on and "
                f"{int(test.sum())} labelled rows to test on."
            )
            return
        unseen = [self.classes[c] for c in np.setdiff1d(self.y[test], self.y[train])]
        about = {
            "fold": fold.name,
            "transductive": fold.transductive or self._saw(fold),
            "n_train": int(train.sum()),
            "unseen_classes": "; ".join(unseen),
        }
        if unseen:
            warn(f"Fold {fold.name!r}: no training row has {listing(unseen)}; its test rows count as errors.")
        model, features = self._fitted(fold, train)
        for arm in self.arms:
            p, prediction = model._fusion._predict(features, ARMS[arm])
            p = self._expand(model, p)
            if arm == self.arms[0]:
                held_out.append((fold.test, prediction, p))
            yield about | {"arm": arm, "kind": "model"} | self._scores(p, test, prediction["predicted"].to_numpy())
        if null_seed is not None:
            found = predict_nulls(self.light, self.y, train, test, len(self.classes), null_seed)
            for name, values in found.items():
                p = np.full((len(self.y), len(self.classes)), np.nan)
                p[test] = values
                guess = np.asarray(self.classes, dtype=object)[np.nan_to_num(p).argmax(axis=1)]
                yield about | {"arm": name, "kind": "null"} | self._scores(p, test, guess)

    def _saw(self, fold: Fold) -> bool:
        """Tell whether an encoder that was given had been fitted on sections of the test rows."""
        seen = getattr(self.arguments["image"], "sections_seen", [])
        return not set(seen).isdisjoint(self.light.obs[_keys.LIBRARY][fold.test])

    def _fitted(self, fold: Fold, train: np.ndarray) -> tuple[RegionClassifier, dict[str, np.ndarray]]:
        """Return a model fitted on the fold and the features of the rows to predict."""
        labels = self.labels.where(train)
        if fold.transductive:  # encoders see all rows in every such fold, so they are fitted once
            if self._whole is None:
                model = self._new()
                self._whole = model, model._fit_encoders(self.light)
            model, features = self._whole
            return model._fit_fusion(self.light, features, labels), features
        model = self._new()
        section = self.light.obs[_keys.LIBRARY].to_numpy()
        here = np.isin(section, np.unique(section[train]))
        part = self.light[here].copy()
        model._fit_fusion(part, model._fit_encoders(part), labels[here])
        there = np.isin(section, np.unique(section[fold.test]))
        found = model._features(self.light[there].copy())
        features = {}
        for name, values in found.items():
            features[name] = np.full((len(section), values.shape[1]), np.nan, dtype=values.dtype)
            features[name][there] = values
        return model, features

    def _new(self) -> RegionClassifier:
        model = RegionClassifier(**self.arguments)
        model._sizes = self.sizes
        return model

    def _expand(self, model: RegionClassifier, p: np.ndarray) -> np.ndarray:
        """Probabilities over all classes: 0 for those that the fold's training rows lack, NaN if not predicted."""
        out = np.where(np.isnan(p[:, :1]), np.nan, np.zeros(len(self.classes)))
        out[:, [self.classes.index(c) for c in model.classes]] = p
        return out

    def _scores(self, p: np.ndarray, test: np.ndarray, guess: np.ndarray) -> dict[str, Any]:
        scored = test & ~np.isnan(p[:, 0])
        names = np.asarray(self.classes, dtype=object)
        scores = classification(names[self.y[scored]], guess[scored], p[scored], classes=self.classes)
        return scores | {"n_not_predicted": int((test & ~scored).sum())}


def _write(table: AnnData, key: str, held_out: list, classes: list[str], params: dict[str, Any]) -> None:
    names = ["predicted", "confidence", "abstain"]
    frame = pd.DataFrame({"predicted": None, "confidence": np.nan, "abstain": True}, index=table.obs_names)
    probability = np.full((table.n_obs, len(classes)), np.nan)
    for test, prediction, p in held_out:
        frame.loc[test, names] = prediction.loc[test, names].to_numpy()
        probability[test] = p[test]
    probability = pd.DataFrame(probability, columns=classes, index=table.obs_names)
    write_prediction(table, key, frame, probability, "tl.cross_validate", params)
