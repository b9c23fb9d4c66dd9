"""How a fusion classifier becomes plain numbers, and a classifier again."""

from __future__ import annotations

from typing import Any, Self

import pandas as pd

from histoweave.models._base import Arrays, markdown_table, prefixed, require_fitted, subset
from histoweave.models.fusion._combination import Combination
from histoweave.models.fusion._members import STORED

ARGUMENTS = ("method", "heads", "decision", "calibration", "smoothing", "coverage", "n_inner", "random_state")
FITTED = ("classes", "modalities", "widths", "class_shares")


class SavedFusion:
    """Saving, loading and the model card of a :class:`histoweave.models.FusionClassifier`."""

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "classes")
        config = {name: getattr(self, name) for name in (*ARGUMENTS, *FITTED)}
        config["history"] = self.history.to_dict("records")
        arrays: Arrays = {}
        config["members"] = {}
        for name, head in self._members.items():
            config["members"][name], values = head.state()
            arrays |= prefixed(f"member.{name}", values)
        config["combinations"] = {}
        for chosen, combination in self._combinations.items():
            name = "+".join(chosen)
            config["combinations"][name], values = combination.state()
            arrays |= prefixed(f"combination.{name}", values)
        return config, arrays

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        model = cls(**{name: config[name] for name in ARGUMENTS})
        for name in FITTED:
            setattr(model, name, config[name])
        model.history = pd.DataFrame(config["history"])
        model._members = {
            name: STORED[c["kind"]].from_state(c, subset(f"member.{name}", arrays))
            for name, c in config["members"].items()
        }
        model._combinations = {
            tuple(name.split("+")): Combination.from_state(c, subset(f"combination.{name}", arrays))
            for name, c in config["combinations"].items()
        }
        return model

    def _card(self) -> list[str]:
        lines = [
            f"- classes: {', '.join(self.classes)}",
            f"- modalities: {', '.join(self.modalities)}",
            "",
            "## Scores out of fold, inside the training rows",
            "",
        ]
        if self.history.empty:
            return [*lines, "Too few labels to hold any out."]
        columns = ["modalities", "n", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"]
        columns += [name for name in ("macro_f1_before", "smoothing_strength") if name in self.history]
        return [*lines, *markdown_table(self.history[columns])]
