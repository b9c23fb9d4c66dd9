"""The image encoder a user holds: crops of a table in, one embedding per row out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from histoweave import _keys
from histoweave._device import resolve_device, resolve_precision
from histoweave._resolve import get_table, sections
from histoweave._validate import listing, require_number
from histoweave.loaders import require_crops
from histoweave.models._base import Model, require_fitted
from histoweave.models._pca import LinearMap
from histoweave.models._sections import SectionScaler
from histoweave.models.image_encoder._backbone import Backbone, load_backbone
from histoweave.models.image_encoder._describe import describe
from histoweave.models.image_encoder._expression import ExpressionGuide, fit_guide
from histoweave.models.image_encoder._module import set_scale
from histoweave.models.image_encoder._options import ImageTraining
from histoweave.models.image_encoder._pretexts import GUIDED, PRETEXTS, WITHOUT_NETWORK, pretext_weights
from histoweave.models.image_encoder._saved import SavedEncoder
from histoweave.models.image_encoder._statistics import crop_statistics, feature_names

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

FEATURES = "_histoweave_image_features"  # obsm key of features computed before: folds share one pass over the pixels
MIN_PX = 16  # below this the coarsest texture band is a single pixel


class ImageEncoder(SavedEncoder, Model):
    """Turn image crops into an embedding.

    Parameters
    ----------
    method
        ``"statistics"``: colour and texture in stain space, of the crop and of strips from its thinner to its
        denser side (92 numbers a crop and scale), nothing to train. ``"pretrained"``: a frozen network from timm, or
        from local weights. ``"gene_regression"``: trees that bring the statistics to expression, learned on rows
        that have both, from then on for pictures alone; :attr:`history` says how well expression is predicted in
        tissue that was held out.

        The others train a network on the crops. Without labels: ``"simclr"``, ``"vicreg"``, ``"simsiam"`` and
        ``"byol"`` make two views of a crop agree, ``"inpaint"`` draws a hidden part of it, ``"colorize"`` its
        colours. ``"gene_triplet"`` and ``"gene_contrast"`` bring crops of similar expression together, across
        sections where there are several, and keep others apart, but never neighbours in the tissue. With labels:
        ``"triplet"``, ``"supcon"``, and ``"supervised"``, a classifier from scratch to compare with.

        Several at once by the weights of their losses, ``{"simclr": 1.0, "colorize": 0.5}``. Methods that
        need labels or expression use the rows that have them, and in combination with others all rows.
    crops_keys
        Crops in ``obsm`` to describe, one or several scales; their features are put side by side. One network is
        trained on all scales.
    backbone
        timm name of the network, e.g. ``"resnet18"``, or a hub name, ``"hf-hub:..."``. Pretrained on tissue, most for
        those who were given access on the hub: ``"uni"``, ``"uni2-h"``, ``"phikon"``, ``"h-optimus-0"``,
        ``"h-optimus-1"``, ``"h0-mini"``, ``"virchow"``, ``"virchow2"``, ``"prov-gigapath"``; crops are scaled to
        their 224 pixels, which were 112 um in training. To be trained also ``"resnet18-small"`` (34, 50), with a
        first layer for small crops, ``"resnet10-narrow"``, seven times as fast as ``"resnet18"``, and ``"tiny"``.
    weights
        Safetensors file with the weights of ``backbone``: instead of the published ones, or to start training
        from. Training starts from random weights by default, from the published ones with ``"published"``.
    n_components
        Reduce the features to so many principal components, learned in ``fit``. Default: all statistics, and
        64 components for a network.
    statistics
        Put the statistics of the same crops beside the components of a network: what it finds and what was designed
        complete each other.
    batch_size
        Crops at a time, in training as well.
    device, precision
        As :data:`histoweave.settings`; precision applies to networks.
    random_state
        Seed.
    training
        How a network is trained: the arguments of :class:`histoweave.models.ImageTraining`, such as ``max_epochs``.

    Notes
    -----
    After training, :attr:`history` is a table of the epochs with their loss and learning rate.

    Features are standardised within each section: stain and scanner differ between sections more than regions
    do within one. A section with too few spots uses the training sections' mean and spread, and says so.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.crops(adata, size_um={"crops": 110, "crops_context": 300})
    >>> hw.models.ImageEncoder(crops_keys=("crops", "crops_context")).fit(adata).embed(adata).shape
    (400, 184)
    """

    def __init__(
        self,
        method: str | Mapping[str, float] = "statistics",
        *,
        crops_keys: str | Sequence[str] = _keys.CROPS,
        backbone: str = "resnet18",
        weights: str | os.PathLike[str] | None = None,
        n_components: int | None = None,
        statistics: bool = False,
        batch_size: int = 256,
        device: str = "auto",
        precision: str = "auto",
        random_state: int = 0,
        **training: Any,
    ) -> None:
        self.method = dict(method) if isinstance(method, Mapping) else method
        self.pretexts = pretext_weights(self.method)
        self.training = ImageTraining.of(training)
        require_number(batch_size, argument="batch_size", at_least=1, integer=True)
        if n_components is not None:
            require_number(n_components, argument="n_components", at_least=1, integer=True)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        self.crops_keys = (crops_keys,) if isinstance(crops_keys, str) else tuple(crops_keys)
        self.backbone, self.weights = backbone, None if weights is None else str(weights)
        self.n_components = n_components if n_components or not self.has_network else 64
        if statistics and not self.has_network:
            msg = f"`statistics=True` puts statistics beside a network, and `method={self.method!r}` has none."
            raise ValueError(msg)
        self.statistics = bool(statistics)
        self.batch_size, self.device, self.precision = int(batch_size), device, precision
        self.random_state = int(random_state)
        self.sections_seen: list[str] | None = None
        self.history: pd.DataFrame | None = None
        self._network: Backbone | None = None
        self._map: LinearMap | None = None
        self._guide: ExpressionGuide | None = None

    @property
    def has_network(self) -> bool:
        """Whether a network looks at the crops."""
        return self.method not in WITHOUT_NETWORK

    @property
    def needs(self) -> set[str]:
        """What fitting needs beside the crops: ``"labels"``, ``"genes"``, both or nothing."""
        found = {PRETEXTS[name].needs for name in self.pretexts} | ({"genes"} if self.method == GUIDED else set())
        return {need for need in found if need}

    @property
    def labels_seen(self) -> list[str]:
        """Sections whose labels were learned from, or decided when to stop; on their rows classifiers look too good."""
        learned = "labels" in self.needs or self.training.probe
        return list(self.sections_seen or []) if learned else []

    def fit(
        self, data: AnnData | SpatialData, *, library_key: str = _keys.LIBRARY, table_key: str = _keys.TABLE
    ) -> Self:
        """Train the network where the method does, and learn the standardisation and components of its features.

        Parameters
        ----------
        data
            AnnData or SpatialData object with ``obsm[crops_key]`` for each of ``crops_keys``.
        library_key
            Column of ``obs`` that names the section.
        table_key
            Table of a SpatialData object.

        Returns
        -------
        The fitted encoder.
        """
        self.fit_embed(data, library_key=library_key, table_key=table_key)
        return self

    def fit_embed(
        self, data: AnnData | SpatialData, *, library_key: str = _keys.LIBRARY, table_key: str = _keys.TABLE
    ) -> np.ndarray:
        """Fit and return the embedding of the same table, with one pass over its crops.

        Parameters
        ----------
        data, library_key, table_key
            As for :meth:`fit`.

        Returns
        -------
        The embedding ``(n_obs, d)`` float32; rows without crops are NaN.
        """
        table = get_table(data, table_key)
        rows_of = sections(table, library_key)
        if self.pretexts and FEATURES not in table.obsm:
            self._train(table, rows_of)
        raw = self.features(table)
        self._scaler, self._map = SectionScaler().fit(raw), None
        values = self._scaler.transform(raw, rows_of)
        if self.method == GUIDED:
            how = {"genes_key": self.training.genes_key, "random_state": self.random_state}
            self._guide = fit_guide(values, table, rows_of, **how)
            self.history = self._guide.history
            values = self._guide.apply(values, rows_of)
        if self.n_components is not None:
            width = values.shape[1] - self.statistics * len(self.crops_keys) * len(feature_names())
            found = LinearMap.principal(values[:, :width], self.n_components, self.random_state)
            self._map = found.beside(values.shape[1] - width) if self.statistics else found
            values = self._map.apply(values)
        self.sections_seen = list(rows_of)
        return values

    def embed(
        self, data: AnnData | SpatialData, *, library_key: str = _keys.LIBRARY, table_key: str = _keys.TABLE
    ) -> np.ndarray:
        """Return the embedding ``(n_obs, d)`` float32; rows without crops are NaN.

        Parameters
        ----------
        data, library_key, table_key
            As for :meth:`fit`.
        """
        require_fitted(self, "sections_seen")
        table = get_table(data, table_key)
        raw = self.features(table)
        if raw.shape[1] != len(self._scaler.mean):
            msg = (
                f"The crops give {raw.shape[1]} features, the encoder was fitted on {len(self._scaler.mean)}: "
                f"use the same crops, {listing(self.crops_keys)}."
            )
            raise ValueError(msg)
        rows_of = sections(table, library_key)
        scaled = self._scaler.transform(raw, rows_of)
        if self._guide is not None:
            scaled = self._guide.apply(scaled, rows_of)
        return scaled if self._map is None else self._map.apply(scaled)

    def features_as_in(self, raw: np.ndarray, section: np.ndarray) -> np.ndarray:
        """Return the embedding of features ``(n, d)`` as if they were of one section, which has these ``(m, d)``.

        Parameters
        ----------
        raw, section
            Features from :meth:`features`.
        """
        scaled = self._scaler.as_in(raw, section).astype(np.float32)
        if self._guide is not None:
            scaled = self._guide.as_in(scaled, self._scaler.as_in(section, section).astype(np.float32))
        return scaled if self._map is None else self._map.apply(scaled)

    def features(self, table: AnnData) -> np.ndarray:
        """Return the features before standardisation, ``(n_obs, d)``; they depend on the crops alone.

        Parameters
        ----------
        table
            A table with the crops.
        """
        if FEATURES in table.obsm:
            return np.asarray(table.obsm[FEATURES])
        if self.method == "pretrained" and self._network is None:
            self._network = load_backbone(self.backbone, self.weights)
        if self.pretexts:
            require_fitted(self, "_network")
        kinds = ([True] if self.has_network else []) + ([False] if self.statistics or not self.has_network else [])
        crops = self._crops(table)
        blocks = [self._describe(*crops[key], key, network=network) for network in kinds for key in crops]
        return np.concatenate(blocks, axis=1)

    def _crops(self, table: AnnData) -> dict[str, tuple[Any, np.ndarray]]:
        """Return the crops of each key and which rows have any, checked."""
        found = {}
        for key in self.crops_keys:
            crops, available = require_crops(table, key)
            if min(crops.shape[1:3]) < MIN_PX:
                msg = (
                    f"`adata.obsm[{key!r}]` holds crops of {crops.shape[1]} x {crops.shape[2]} pixels; at least "
                    f"{MIN_PX} are needed. Cut larger ones with `hw.pp.crops(..., out_px=64)`."
                )
                raise ValueError(msg)
            if not available.any():
                msg = f"No row has crops in `adata.obsm[{key!r}]` (`adata.obs[{key + '_available'!r}]` is all False)."
                raise ValueError(msg)
            found[key] = crops, available
        return found

    def _train(self, table: AnnData, rows_of: dict[str, np.ndarray]) -> None:
        from histoweave.models.image_encoder._fit import fit_network  # Lightning takes seconds to import

        device = resolve_device(self.device)
        self._network, history = fit_network(
            table,
            self._crops(table),
            rows_of,
            self.pretexts,
            self.training,
            backbone=self.backbone,
            weights=self.weights,
            batch_size=self.batch_size,
            device=device,
            precision=resolve_precision(self.precision, device),
            random_state=self.random_state,
        )
        self.history = pd.DataFrame(history)

    def _describe(self, crops: Any, available: np.ndarray, key: str, *, network: bool) -> np.ndarray:
        device = resolve_device(self.device)
        how = {"device": device, "batch_size": self.batch_size, "description": f"embed {key}"}
        if not network:
            return describe(crops, available, crop_statistics, **how)
        by = self._network.to(device, memory_format=torch.channels_last).eval()
        set_scale(by, self.crops_keys.index(key))
        return describe(crops, available, by, precision=resolve_precision(self.precision, device), **how)
