"""How an image classifier becomes plain numbers, and a classifier again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Self

import pandas as pd

from histoweave.loaders import Augmentation
from histoweave.models._base import Arrays, prefixed, require_fitted, subset
from histoweave.models.fusion._heads import LinearHead
from histoweave.models.image_encoder import ImageEncoder

ARGUMENTS = (
    "strategy", "n_rings", "n_steps", "learning_rate", "first_layer", "batch_size", "label_smoothing", "random_state",
)  # fmt: skip


class SavedClassifier:
    """Saving, loading and the model card of a :class:`histoweave.models.ImageClassifier`."""

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "classes")
        config, arrays = self.encoder._state()
        head, values = self._head.state()
        state = {name: getattr(self, name) for name in (*ARGUMENTS, "classes", "sections_seen")}
        state |= {"augmentation": asdict(self.augmentation), "history": self.history.to_dict("records")}
        return state | {"encoder": config, "head": head}, prefixed("encoder", arrays) | prefixed("head", values)

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        encoder = ImageEncoder._from_state(config["encoder"], subset("encoder", arrays))
        drawn = {k: tuple(v) if isinstance(v, list) else v for k, v in config["augmentation"].items()}
        scratch = config["strategy"] == "scratch"
        model = cls(
            None if scratch else encoder,
            **({"backbone": encoder.backbone, "crops_keys": encoder.crops_keys} if scratch else {}),
            **{name: config[name] for name in ARGUMENTS},
            augmentation=Augmentation(**drawn),
        )
        model.encoder, model._head = encoder, LinearHead.from_state(config["head"], subset("head", arrays))
        model.history = pd.DataFrame(config["history"])
        model.classes, model.sections_seen = config["classes"], config["sections_seen"]
        return model

    def _card(self) -> list[str]:
        return [
            f"- classes: {', '.join(self.classes)}",
            f"- strategy: {self.strategy}, rings of neighbours: {self.n_rings}",
            *(line for line in self.encoder._card() if self.strategy != "scratch"),
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
