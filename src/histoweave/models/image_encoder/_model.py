"""The image encoder a user holds: crops of a table in, one embedding per row out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from histoweave import _keys
from histoweave._device import resolve_device, resolve_precision
from histoweave._resolve import get_table, sections
from histoweave._validate import listing, require_choice, require_number
from histoweave.loaders import crop_batches, require_crops
from histoweave.models._base import Arrays, Model, prefixed, require_fitted, subset
from histoweave.models._pca import LinearMap
from histoweave.models._sections import SectionScaler
from histoweave.models.image_encoder._backbone import Backbone, load_backbone
from histoweave.models.image_encoder._statistics import crop_statistics

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

METHODS = ("statistics", "pretrained")
FEATURES = "_histoweave_image_features"  # obsm key of features computed before: folds share one pass over the pixels
MIN_PX = 16  # below this the coarsest texture band is a single pixel


class ImageEncoder(Model):
    """Turn image crops into an embedding.

    Parameters
    ----------
    method
        ``"statistics"``: colour and texture statistics in stain space (72 numbers a crop and scale), nothing
        to train. ``"pretrained"``: a frozen network from timm, or from local weights.
    crops_keys
        Crops in ``obsm`` to describe, one or several scales; their features are put side by side.
    backbone
        timm name for ``"pretrained"``, e.g. ``"resnet18"`` or a hub name the user has access to.
    weights
        Safetensors file with the weights of ``backbone``, instead of the published ones.
    n_components
        Reduce the features to so many principal components, learned in ``fit``. Default: all statistics, and
        64 components for a network.
    batch_size
        Crops at a time.
    device, precision
        As :data:`histoweave.settings`; precision applies to networks.
    random_state
        Seed.

    Notes
    -----
    Features are standardised within each section: stain and scanner differ between sections more than regions
    do within one. A section with too few spots uses the training sections' mean and spread, and says so.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.crops(adata, size_um={"crops": 110, "crops_context": 300})
    >>> hw.models.ImageEncoder(crops_keys=("crops", "crops_context")).fit(adata).embed(adata).shape
    (400, 144)
    """

    def __init__(
        self,
        method: str = "statistics",
        *,
        crops_keys: str | Sequence[str] = _keys.CROPS,
        backbone: str = "resnet18",
        weights: str | os.PathLike[str] | None = None,
        n_components: int | None = None,
        batch_size: int = 256,
        device: str = "auto",
        precision: str = "auto",
        random_state: int = 0,
    ) -> None:
        require_choice(method, METHODS, argument="method")
        require_number(batch_size, argument="batch_size", at_least=1, integer=True)
        if n_components is not None:
            require_number(n_components, argument="n_components", at_least=1, integer=True)
        self.method = method
        self.crops_keys = (crops_keys,) if isinstance(crops_keys, str) else tuple(crops_keys)
        self.backbone, self.weights = backbone, None if weights is None else str(weights)
        self.n_components = n_components if n_components or method == "statistics" else 64
        self.batch_size, self.device, self.precision = int(batch_size), device, precision
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        self.random_state = int(random_state)
        self.sections_seen: list[str] | None = None
        self._network: Backbone | None = None

    def fit(
        self, data: AnnData | SpatialData, *, library_key: str = _keys.LIBRARY, table_key: str = _keys.TABLE
    ) -> Self:
        """Learn the standardisation, and the components where asked for, from a table's crops.

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
        raw = self.features(table)
        self._scaler, self._map = SectionScaler().fit(raw), None
        values = self._scaler.transform(raw, rows_of)
        if self.n_components is not None:
            self._map = LinearMap.principal(values, self.n_components, self.random_state)
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
        scaled = self._scaler.transform(raw, sections(table, library_key))
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
        blocks = []
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
            blocks.append(self._describe(crops, available, key))
        return np.concatenate(blocks, axis=1)

    @torch.inference_mode()
    def _describe(self, crops: Any, available: np.ndarray, key: str) -> np.ndarray:
        device = torch.device(resolve_device(self.device))
        describe = crop_statistics
        if self.method == "pretrained":
            describe = self._network.to(device, memory_format=torch.channels_last).eval()
        low = self.method == "pretrained" and resolve_precision(self.precision, str(device)) == "bfloat16"
        out = None
        batches = crop_batches(crops, np.flatnonzero(available), batch_size=self.batch_size, description=f"embed {key}")
        for rows, batch in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
                values = describe(batch.to(device)).float().cpu().numpy()
            if out is None:
                out = np.full((len(available), values.shape[1]), np.nan, dtype=np.float32)
            out[rows] = values
        return out

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "sections_seen")
        names = (
            "method",
            "crops_keys",
            "backbone",
            "n_components",
            "batch_size",
            "random_state",
            "sections_seen",
        )
        config = {name: getattr(self, name) for name in names}
        arrays: Arrays = {"scaler.mean": self._scaler.mean, "scaler.sd": self._scaler.sd}
        if self._map is not None:
            arrays |= prefixed("map", self._map.arrays())
        if self.method == "pretrained":
            arrays |= prefixed("network", {k: v.cpu().numpy() for k, v in self._network.network.state_dict().items()})
        return config, arrays

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        names = ("crops_keys", "backbone", "n_components", "batch_size", "random_state")
        model = cls(config["method"], **{name: config[name] for name in names})
        model.sections_seen = config["sections_seen"]
        model._scaler = SectionScaler()
        model._scaler.mean, model._scaler.sd = arrays["scaler.mean"], arrays["scaler.sd"]
        model._map = LinearMap.from_arrays(subset("map", arrays)) if model.n_components is not None else None
        if model.method == "pretrained":
            model._network = Backbone(model.backbone, pretrained=False)
            state = {k: torch.from_numpy(v) for k, v in subset("network", arrays).items()}
            model._network.network.load_state_dict(state)
        return model

    def _card(self) -> list[str]:
        network = f" ({self.backbone})" if self.method == "pretrained" else ""
        return [
            f"- image encoder: {self.method}{network} on {', '.join(self.crops_keys)}",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
