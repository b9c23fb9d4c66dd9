"""Embeddings of a table, fold by fold: fitted on the sections of the training rows, made once and kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._validate import require_choice, warn
from histoweave.loaders import require_crops
from histoweave.models import ImageEncoder, RegionClassifier
from histoweave.models._chain import embed_all
from histoweave.models.image_encoder._model import FEATURES
from histoweave.models.image_encoder._statistics import feature_names
from histoweave.pp._split import Fold


class FoldEmbeddings:
    """What the encoders of a model make of a table in each fold; the last fold's are kept.

    Parameters
    ----------
    light
        Table with crops, counts in ``X`` and ``obs["library_id"]``.
    sizes
        Its kinds of crops.
    model
        Whose encoders to use.
    labelled
        Mask of the labelled rows.
    """

    def __init__(
        self, light: AnnData, sizes: dict[str, float | None], model: RegionClassifier, labelled: np.ndarray
    ) -> None:
        self.light, self.sizes, self.model, self.labelled = light, sizes, model, labelled
        self.section = light.obs[_keys.LIBRARY].astype(str).to_numpy()
        self._described: AnnData | None = None
        self._sections: tuple[bytes, bytes] | None = None  # whose embeddings are held
        self._held: dict[tuple[int, str | None], dict[str, np.ndarray]] = {}
        self._encoders: dict[int, dict[str, Any]] = {}

    def of(self, fold: Fold, seed: int, crops_key: str | None = None) -> dict[str, np.ndarray]:
        """Return the embeddings of a fold, see :meth:`FoldRunner.embed`."""
        seen, new = self._rows_of(fold)
        if (seen.tobytes(), new.tobytes()) != self._sections:
            self._sections, self._held, self._encoders = (seen.tobytes(), new.tobytes()), {}, {}
        if (seed, None) not in self._held:
            self._held[seed, None] = self._embed(seen, new, seed, fold.name)
        if (seed, crops_key) not in self._held:
            self._held[seed, crops_key] = self._embed_scale(seen, new, self._encoders[seed], crops_key)
        return dict(self._held[seed, crops_key])

    def _rows_of(self, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        """Return masks of the rows that encoders are fitted on and of the others to embed."""
        if fold.transductive:
            return np.ones(len(self.labelled), dtype=bool), np.zeros(len(self.labelled), dtype=bool)
        seen = np.isin(self.section, self.section[fold.train & self.labelled])
        return seen, np.isin(self.section, self.section[fold.test]) & ~seen

    def _embed(self, seen: np.ndarray, new: np.ndarray, seed: int, name: str) -> dict[str, np.ndarray]:
        table, model = self._table(), self._new(seed)
        learned_from, lacking = _learnable(part(table, seen), self.sizes)
        if lacking:
            warn(f"Fold {name!r}: no section to train on has {' or '.join(lacking)}; nothing is predicted from that.")
        model._sizes = {} if "images" in lacking else self.sizes
        if not model._sizes and not learned_from.n_vars:
            return {}
        found = {m: _spread(v, seen) for m, v in model._fit_encoders(learned_from).items()}
        if new.any():
            for name, values in embed_all(model._encoders, part(table, new), self.sizes).items():
                found[name][new] = values
        self._encoders[seed] = model._encoders
        return found

    def _embed_scale(
        self, seen: np.ndarray, new: np.ndarray, encoders: dict[str, Any], key: str
    ) -> dict[str, np.ndarray]:
        """Return what the image embedding would be with one kind of crops; the network is not trained again."""
        require_choice(key, tuple(self.sizes), argument="crops_key")
        if "image" not in encoders:
            return {}
        table, whole = self._table(), encoders["image"]
        raw = _spread(whole.features(part(table, seen | new)), seen | new)
        one = AnnData(obs=table.obs, obsm={FEATURES: raw[:, _columns(whole, key, raw.shape[1])]})
        encoder = ImageEncoder(
            whole.method, crops_keys=key, n_components=whole.n_components, statistics=whole.statistics,
            random_state=whole.random_state,
        )  # fmt: skip
        values = _spread(encoder.fit_embed(part(one, seen)), seen)
        if new.any():
            values[new] = encoder.embed(part(one, new))
        return {"image": values}

    def _table(self) -> AnnData:
        """Return the light table, without crops where an encoder needs to look at them only once."""
        if self._described is None:
            image = self._new(self.model.random_state)._new_encoders(self.light)["image"] if self.sizes else None
            if image is not None and (image.sections_seen or not image.pretexts):
                # what an encoder learns from the descriptions is learned in each fold
                self._described = without(self.light, self.sizes)
                self._described.obsm[FEATURES] = image.features(self.light)
            else:
                self._described = self.light
        return self._described

    def _new(self, seed: int) -> RegionClassifier:
        model = RegionClassifier(**self.model.arguments | {"random_state": seed})
        model._sizes = self.sizes
        return model


def _columns(encoder: ImageEncoder, crops_key: str, width: int) -> np.ndarray:
    """Return which of an encoder's features are of one scale: the network's scale by scale, then statistics."""
    n, place = len(encoder.crops_keys), encoder.crops_keys.index(crops_key)
    beside = len(feature_names()) if encoder.statistics else 0
    own = width // n - beside
    return np.concatenate([np.arange(own) + place * own, np.arange(beside) + n * own + place * beside])


def _learnable(table: AnnData, crops_keys: Collection[str]) -> tuple[AnnData, list[str]]:
    """Return the table without the images or counts that no row of it has, and which these are."""
    lacking = []
    if table.n_vars and not table.X.nnz:
        table, lacking = without(table, counts=False), ["counts"]
    if FEATURES in table.obsm:
        imaged = not np.isnan(table.obsm[FEATURES]).all()
    else:
        imaged = all(require_crops(table, key)[1].any() for key in crops_keys)
    if not imaged:
        table, lacking = without(table, [*crops_keys, FEATURES]), ["images", *lacking]
    return table, lacking


def part(table: AnnData, rows: np.ndarray) -> AnnData:
    """Return the rows of a mask, the table itself where these are all."""
    return table if rows.all() else table[rows].copy()


def without(table: AnnData, crops_keys: Collection[str] = (), *, counts: bool = True) -> AnnData:
    """Return a table without some crops, and without counts unless they are wanted."""
    obsm = {key: values for key, values in table.obsm.items() if key not in crops_keys}
    X, var = (table.X, table.var) if counts else (None, None)
    return AnnData(X, obs=table.obs, var=var, obsm=obsm, uns=table.uns)


def without_images(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``uns["spatial"]`` with what calibrates the images, but not the images."""
    return {
        name: {k: v for k, v in entry.items() if k != "images"} if isinstance(entry, Mapping) else entry
        for name, entry in entries.items()
    }


def _spread(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return values ``(n_rows, d)`` of a mask's rows as ``(n_obs, d)``, NaN elsewhere."""
    out = np.full((len(rows), values.shape[1]), np.nan, dtype=values.dtype)
    out[rows] = values
    return out
