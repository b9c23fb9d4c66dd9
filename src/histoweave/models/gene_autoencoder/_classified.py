"""What a fitted gene classifier does with a table: probabilities, classes, embeddings, a folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from histoweave import _keys
from histoweave._random import torch_seed
from histoweave._resolve import get_table
from histoweave.models._base import Arrays, Model, most_probable, prefixed, require_fitted, subset
from histoweave.models.gene_autoencoder._finetune import GeneLogits, LinearEncoder, TunedEncoder
from histoweave.models.gene_autoencoder._model import GeneAutoencoder
from histoweave.models.gene_autoencoder._pca import GenePCA
from histoweave.models.gene_autoencoder._views import Views
from histoweave.pp._graph import ring_graphs

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

ENCODERS = {"GeneAutoencoder": GeneAutoencoder, "GenePCA": GenePCA}
BATCH = 1024  # rows at a time without gradients
ARGUMENTS = (
    "strategy", "n_rings", "bottleneck", "label_smoothing", "max_epochs", "learning_rate", "weight_decay",
    "batch_size", "n_inner", "random_state",
)  # fmt: skip


class Classified(Model):
    """The half of :class:`GeneClassifier` that needs no training."""

    encoder: GeneAutoencoder | GenePCA
    network: GeneLogits
    classes: list[str] | None = None

    @property
    def genes(self) -> list[str]:
        """Names of the encoder's genes."""
        return self.encoder.genes

    @property
    def sections_seen(self) -> list[str]:
        """Sections whose counts the encoder saw."""
        return self.encoder.sections_seen

    def views(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> Views:
        """Return what the network sees of a table, to be drawn in batches ``(n, 1 + n_rings, genes)``.

        Parameters
        ----------
        data, layer, library_key, spatial_key, table_key
            As for :meth:`fit`.
        """
        table = get_table(data, table_key)
        keys = {"library_key": library_key, "spatial_key": spatial_key}
        rings = ring_graphs(table, n_rings=self.n_rings, **keys) if self.n_rings else []
        return Views(self.encoder, self.encoder._aligned(table, layer, library_key), rings)

    def predict_proba(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Return class probabilities, one row a spot, one column a class; rows without counts are NaN.

        Parameters
        ----------
        data
            Whole sections: centring and neighbourhoods use all their spots.
        layer, library_key, spatial_key, table_key
            As for :meth:`fit`.
        """
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key}
        table = get_table(data, table_key)
        logits = self._apply(lambda x, present: self.network(x, present).softmax(dim=1), table, **keys)
        return pd.DataFrame(logits, index=table.obs_names, columns=self.classes)

    def predict(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Return the class of every row and its probability.

        Parameters
        ----------
        data, layer, library_key, spatial_key, table_key
            As for :meth:`predict_proba`.

        Returns
        -------
        A DataFrame with ``predicted`` and ``confidence``; missing for rows without counts.
        """
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        return most_probable(self.predict_proba(data, **keys))

    def embed(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Return the tuned embedding, that of the spot and of each ring side by side; rows without counts are NaN.

        Parameters
        ----------
        data, layer, library_key, spatial_key, table_key
            As for :meth:`predict_proba`.
        """
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key}
        require_fitted(self, "classes")
        return self._apply(self.network.embed, get_table(data, table_key), **keys)

    def _network(self, n_classes: int, n_views: int) -> GeneLogits:
        """Return the encoder under an untrained head; what the strategy trains requires gradients."""
        with torch_seed(self.random_state):
            if isinstance(self.encoder, GenePCA):
                encoder, width = LinearEncoder(self.encoder._map), len(self.encoder._map.components)
            else:
                adapters = self.bottleneck if self.strategy == "adapter" else 0
                encoder, width = TunedEncoder(self.encoder._net, adapters), self.encoder.n_latent
            network = GeneLogits(encoder, width * n_views, n_classes).eval()
        for name, value in network.named_parameters():
            frozen = self.strategy == "frozen" or (self.strategy == "adapter" and not _is_small(name))
            value.requires_grad_(not frozen)
        return network

    @torch.no_grad()
    def _apply(self, function: Any, table: AnnData, **keys: Any) -> np.ndarray:
        require_fitted(self, "classes")
        views = self.views(table, **keys)
        self.network.to(views.device)
        out = None
        for part in parts(views.rows):
            values = function(views.batch(part), views.present).cpu().numpy()
            out = np.full((table.n_obs, values.shape[1]), np.nan, dtype=np.float32) if out is None else out
            out[part] = values
        return out

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "classes")
        config: dict[str, Any] = {"arguments": {name: getattr(self, name) for name in ARGUMENTS}}
        names = ("classes", "C", "epochs_chosen", "sections_labelled", "inner_groups")
        config |= {name: getattr(self, name) for name in names}
        config["history"] = self.history.astype(object).where(self.history.notna(), None).to_dict("records")
        encoder, arrays = self.encoder._state()
        config["encoder"] = {"model": type(self.encoder).__name__} | encoder
        weights = {name: value.cpu().numpy() for name, value in self.network.state_dict().items()}
        return config, prefixed("encoder", arrays) | prefixed("classifier", weights)

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        encoder = ENCODERS[config["encoder"]["model"]]._from_state(config["encoder"], subset("encoder", arrays))
        model = cls(encoder, **config["arguments"])
        for name in ("C", "epochs_chosen", "sections_labelled", "inner_groups"):
            setattr(model, name, config[name])
        model.history = pd.DataFrame(config["history"]).astype(float).astype({"epoch": int})
        model.network = model._network(len(config["classes"]), 1 + model.n_rings)
        model.network.load_state_dict({k: torch.from_numpy(v) for k, v in subset("classifier", arrays).items()})
        model.network.requires_grad_(False)
        model.classes = config["classes"]
        return model

    def _card(self) -> list[str]:
        return [
            f"- classes: {', '.join(self.classes)}",
            f"- labels from: {', '.join(self.sections_labelled)}; inner folds keep together: {self.inner_groups}",
            f"- strategy: {self.strategy}, {self.epochs_chosen} epochs of tuning, C = {self.C:g}",
            f"- neighbourhood rings: {self.n_rings}",
            *self.encoder._card(),
        ]


def _is_small(name: str) -> bool:
    """Tell whether a parameter belongs to the head or an adapter."""
    return name.startswith("head.") or ".down." in name or ".up." in name


def parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield row numbers in stretches that fit in memory."""
    yield from (rows[start : start + BATCH] for start in range(0, len(rows), BATCH))
