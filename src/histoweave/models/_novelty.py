"""Is a section like those a model was fitted on: distances of features that are not standardised by section."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._obs import known_donors
from histoweave._random import rng
from histoweave._resolve import sections
from histoweave._validate import warn
from histoweave.models._base import Arrays, prefixed, subset
from histoweave.models._cloud import N_COMPONENTS, Cloud
from histoweave.models._inner_groups import tissue_blocks
from histoweave.models._profiles import Matrix, Profiles
from histoweave.models.image_encoder._model import FEATURES
from histoweave.models.image_encoder._statistics import arrangement

if TYPE_CHECKING:
    from spatialdata import SpatialData

MAX_ROWS = 3000  # eleven directions of a sample this large have settled
SPOT_RATE = 0.01  # of spots like the training sections', this share is called novel, in each modality
SECTION_RATE = 0.02  # and of sections, in all modalities together, if log distances of sections were normal
LEAST_GENES = 0.5  # a table with a smaller share of the model's genes was measured in another way
N_PARTS = 4  # of a single section
MAX_FOLDS = 12  # more parts than this are held out several at a time


@dataclass
class Novelty:
    """How far rows and sections lie from the training rows, in units of what is still usual.

    Attributes
    ----------
    cloud
        The training rows.
    limit
        Log distance that a share ``SPOT_RATE`` of training rows exceeds when their part is held out.
    profiles
        Means of whole sections; ``None`` with fewer than two donors or sections.
    """

    cloud: Cloud
    limit: float
    profiles: Profiles | None

    @classmethod
    def fit(cls, X: np.ndarray, section: np.ndarray, part: np.ndarray, *, scale: bool, random_state: int) -> Self:
        """Fit on rows ``(n, d)`` without NaN.

        Parameters
        ----------
        X
            Features ``(n, d)``.
        section, part
            The section of every row, and what is held out together: a donor or a section, or parts of the only one.
        scale
            Features have different units.
        random_state
            Seed.
        """
        options = {"scale": scale, "random_state": random_state}
        distance, fold = np.empty(len(X)), _folds(part)
        for number in np.unique(fold):
            out = fold == number
            distance[out] = Cloud.fit(X[~out], **options).distance(X[out])
        cloud = Cloud.fit(X, **options)
        profiles = Profiles.fit(X, section, part, cloud.ruler)
        return cls(cloud, float(np.quantile(distance, 1 - SPOT_RATE)), profiles)

    def section(self, X: Matrix, distance: np.ndarray, present: np.ndarray | None, rate: float) -> float:
        """Return how far a section of rows ``X`` lies out, 1 at the limit.

        Its mean lies further from that of the nearest training section than but for a share ``rate`` of usual sections;
        or more than half of its spots exceed their limit, which is all that one training section allows to say.
        """
        level = float(np.median(distance)) - self.limit
        if self.profiles is not None:
            level = max(level, self.profiles.distance(X, present) - self.profiles.limit(rate))
        return float(np.exp(level))

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        arrays = prefixed("cloud", self.cloud.arrays())
        if self.profiles is not None:
            arrays |= prefixed("profiles", self.profiles.arrays())
        return {"limit": self.limit}, arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        """Rebuild from `state`."""
        cloud, profiles = Cloud.from_arrays(subset("cloud", arrays)), subset("profiles", arrays)
        return cls(cloud, config["limit"], Profiles(**profiles, ruler=cloud.ruler) if profiles else None)


class NoveltyCheck:
    """Tell sections and spots unlike the training sections, by image and by genes."""

    def __init__(self, parts: Mapping[str, Novelty]) -> None:
        self.parts = dict(parts)

    @classmethod
    def fit(
        cls, encoders: Mapping[str, Any], light: AnnData, random_state: int, *, donor_key: str = _keys.DONOR
    ) -> Self:
        """Fit on the table the encoders were fitted on; of many rows, a sample."""
        generator, parts = rng(random_state), {}
        chosen = np.sort(generator.permutation(light.n_obs)[:MAX_ROWS])
        light = light[chosen].copy() if len(chosen) < light.n_obs else light
        section, part = light.obs[_keys.LIBRARY].astype(str).to_numpy(), _parts(light, donor_key)
        for name, (X, known, _) in raw_features(encoders, light).items():
            X = X.toarray() if sp.issparse(X) else X
            if known.sum() - np.bincount(_folds(part[known]), minlength=1).max() < 2 * N_COMPONENTS:
                warn(f"Too few spots to tell sections unlike these by their {name}; `novelty` will be missing.")
                continue
            options = {"scale": name == "image", "random_state": random_state}
            parts[name] = Novelty.fit(X[known].astype(np.float64), section[known], part[known], **options)
        return cls(parts)

    def apply(self, encoders: Mapping[str, Any], light: AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return ``novelty`` and ``out_of_distribution`` of every row, and a verdict on every section and modality."""
        rows_of, verdicts = sections(light), []
        found = {n: v for n, v in raw_features(encoders, light).items() if n in self.parts}
        spot = np.full((light.n_obs, max(len(found), 1)), np.nan)
        for column, (name, (X, known, present)) in enumerate(found.items()):
            novelty = self.parts[name]
            distance = _distances(novelty.cloud, X, known, present)
            spot[:, column] = np.exp(distance - novelty.limit)
            share = float(present.mean()) if present is not None else np.nan
            for section, rows in rows_of.items():
                rows = rows[~np.isnan(distance[rows])]
                here = distance[rows]
                if len(here):
                    level = novelty.section(X[rows], here, present, SECTION_RATE / len(found))
                    verdicts.append({"section": section, "modality": name, "n_spots": len(here), "novelty": level,
                                     "novel_spots": float((here > novelty.limit).mean()), "genes_found": share,
                                     "out_of_distribution": level > 1 or share < LEAST_GENES})  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # spots with neither modality stay NaN
            furthest = np.nanmax(spot, axis=1)
        spots = pd.DataFrame({"novelty": furthest, "out_of_distribution": furthest > 1}, index=light.obs_names)
        columns = ["section", "modality", "n_spots", "novelty", "novel_spots", "genes_found", "out_of_distribution"]
        return spots, pd.DataFrame(verdicts, columns=columns)

    def tell(self, verdicts: pd.DataFrame) -> None:
        """Warn of sections unlike the training sections, and say what to do."""
        flagged = verdicts[verdicts["out_of_distribution"]]
        if flagged.empty:
            return
        what = [f"{s!r} by {' and '.join(rows['modality'])}" for s, rows in flagged.groupby("section", sort=False)]
        single = any(self.parts[m].profiles is None for m in flagged["modality"])
        warn(
            f"Sections unlike those in training: {'; '.join(what)}. Their regions may be wrong however sure they look. "
            "Check tissue, stain, scale of the image and gene panel, see `novelty(data)` of the classifier; "
            "normalise the stain of all sections (`hw.pp.stain_normalize`), or label some spots there and fit again."
            + (" The model was fitted on one section: a usual difference between slides looks the same." * single)
        )

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        states = {name: part.state() for name, part in self.parts.items()}
        arrays: Arrays = {}
        for name, (_, values) in states.items():
            arrays |= prefixed(name, values)
        return {name: config for name, (config, _) in states.items()}, arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        """Rebuild from `state`."""
        return cls({name: Novelty.from_state(c, subset(name, arrays)) for name, c in config.items()})


class TellsNovelty:
    """What a classifier with a fitted check (``_novelty``), encoders and `_encode` offers."""

    def novelty(
        self,
        data: AnnData | SpatialData,
        *,
        modalities: Sequence[str] | None = None,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Tell which sections are unlike those it was fitted on; ``data`` is not changed.

        Parameters
        ----------
        data, modalities, layer, library_key, spatial_key, table_key
            As for ``predict_proba``.

        Returns
        -------
        A DataFrame, one row a section and modality: ``n_spots``, ``novelty`` (how far the section lies out, 1 at the
        limit), ``novel_spots`` (share of spots beyond the spots' own limit), ``genes_found`` (share of the model's
        genes; NaN for images) and ``out_of_distribution`` (``novelty`` above 1, or half of the genes missing).

        Notes
        -----
        Image features and expression are compared as they are, not standardised by section, in two ways. Spots: the
        Mahalanobis distance on ten principal components, and on what they leave over; their limit is what 1 % of the
        spots of training donors (sections where donors are not known) exceed when held out in turn. Sections: the
        distance of their mean from that of the nearest training section, against that of training donors from each
        other; the limit is what 2 % of usual sections would exceed if log distances were normal, with a standard
        deviation that few donors tell little of and a prior completes. A section is out of distribution when its
        mean exceeds that limit, or more than half of its spots theirs. With one training section only the second can
        be said, against its own held-out parts: usual differences between slides may look like another tissue.
        """
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        return self._novelty.apply(self._encoders, self._encode(data, modalities, **keys)[0])[1]


def raw_features(encoders: Mapping[str, Any], light: AnnData) -> dict[str, tuple[Matrix, np.ndarray, Any]]:
    """Return what encoders describe before sections are standardised, which hides what differs between them.

    Features ``(n, d)`` of the image, and the roots of the genes' shares of the counts of all the model's genes, whose
    distance is that of Hellinger and depends on no depth to normalise to; with each, which rows have it, and which
    genes are there.
    """
    found: dict[str, tuple[Matrix, np.ndarray, Any]] = {}
    image, genes = encoders.get("image"), encoders.get("gene")
    if image is not None and (FEATURES in light.obsm or all(key in light.obsm for key in image.crops_keys)):
        X = image.features(light)
        if image.statistics or not image.has_network:
            # what lies next to what differs from spot to spot, not from tissue to tissue
            of_tissue = np.tile(~arrangement(), len(image.crops_keys))
            X = X[:, np.append(np.ones(X.shape[1] - len(of_tissue), dtype=bool), of_tissue)]
        found["image"] = X, ~np.isnan(X).any(axis=1), None
    if genes is not None and light.n_vars and genes.overlap(light) >= genes.min_share:
        expression = genes._aligned(light, None, _keys.LIBRARY, quiet=True)
        counts = sp.csr_matrix(expression.counts)
        depth = np.asarray(counts.sum(axis=1)).ravel()
        shares = sp.csr_matrix(sp.diags(1 / np.maximum(depth, 1)) @ counts)
        found["gene"] = shares.sqrt(), depth > 0, expression.present
    return found


def _distances(cloud: Cloud, X: Matrix, known: np.ndarray, present: np.ndarray | None, batch: int = 4096) -> np.ndarray:
    out, rows = np.full(len(known), np.nan), np.flatnonzero(known)
    for start in range(0, len(rows), batch):
        here = rows[start : start + batch]
        part = X[here].toarray() if sp.issparse(X) else X[here]
        out[here] = cloud.distance(part.astype(np.float64), present)
    return out


def _folds(part: np.ndarray) -> np.ndarray:
    return pd.factorize(part)[0] % MAX_FOLDS


def _parts(light: AnnData, donor_key: str) -> np.ndarray:
    """Return what is held out together: donors where there are several, else sections, else parts of the only one."""
    section = light.obs[_keys.LIBRARY].astype(str).to_numpy()
    for names in (known_donors(light.obs, section, donor_key), section):
        if names is not None and len(set(names)) > 1:
            return names
    xy = light.obsm.get(_keys.SPATIAL)
    blocks = tissue_blocks(light.obs[_keys.LIBRARY].to_numpy(), xy)
    return (pd.factorize(blocks)[0] % N_PARTS).astype(str)
