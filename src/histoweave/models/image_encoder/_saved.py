"""How an image encoder becomes plain numbers, and an encoder again."""

from __future__ import annotations

from typing import Any, Self

import pandas as pd
import torch

from histoweave.models._base import Arrays, prefixed, require_fitted, subset
from histoweave.models._pca import LinearMap
from histoweave.models._sections import SectionScaler
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._expression import ExpressionGuide
from histoweave.models.image_encoder._options import ImageTraining

SAVED = ("method", "crops_keys", "backbone", "n_components", "statistics", "batch_size", "random_state")  # arguments


class SavedEncoder:
    """Saving, loading and the model card of a :class:`histoweave.models.ImageEncoder`."""

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "sections_seen")
        config = {name: getattr(self, name) for name in (*SAVED, "sections_seen")}
        config |= {"training": self.training.to_dict()}
        config |= {"history": None if self.history is None else self.history.to_dict("records")}
        arrays: Arrays = {"scaler.mean": self._scaler.mean, "scaler.sd": self._scaler.sd}
        if self._map is not None:
            arrays |= prefixed("map", self._map.arrays())
        if self._guide is not None:
            config["guide"], values = self._guide.state()
            arrays |= prefixed("guide", values)
        if self.has_network:
            arrays |= prefixed("network", {k: v.cpu().numpy() for k, v in self._network.network.state_dict().items()})
        return config, arrays

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        model = cls(**{name: config[name] for name in SAVED})
        model.training = ImageTraining.from_dict(config["training"])
        model.history = None if config["history"] is None else pd.DataFrame(config["history"])
        model.sections_seen = config["sections_seen"]
        model._scaler = SectionScaler()
        model._scaler.mean, model._scaler.sd = arrays["scaler.mean"], arrays["scaler.sd"]
        reduced = subset("map", arrays)
        model._map, model.n_components = LinearMap.from_arrays(reduced) if reduced else None, config["n_components"]
        if "guide" in config:
            model._guide = ExpressionGuide.from_state(config["guide"], subset("guide", arrays))
        if model.has_network:
            model._network = Backbone(model.backbone, pretrained=False)
            if model.pretexts and model.training.scale_token and len(model.crops_keys) > 1:
                model._network.add_scale_token(len(model.crops_keys))
            state = {k: torch.from_numpy(v) for k, v in subset("network", arrays).items()}
            model._network.network.load_state_dict(state)
        return model

    def _card(self) -> list[str]:
        network = f" ({self.backbone})" if self.has_network else ""
        network += " beside statistics" if self.statistics else ""
        return [
            f"- image encoder: {self.method}{network} on {', '.join(self.crops_keys)}",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
