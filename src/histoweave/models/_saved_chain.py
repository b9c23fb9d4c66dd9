"""How a region classifier becomes a folder of plain numbers, and a classifier again."""

from __future__ import annotations

from typing import Any, Self

from histoweave.models._base import Arrays, prefixed, require_fitted, subset
from histoweave.models._novelty import NoveltyCheck
from histoweave.models.fusion import FusionClassifier
from histoweave.models.gene_autoencoder import ENCODERS
from histoweave.models.image_encoder import ImageEncoder

GIVEN = "given"  # stands for an encoder among stored arguments


class SavedChain:
    """Saving, loading and the model card of a :class:`histoweave.models.RegionClassifier`."""

    def _plain_arguments(self) -> dict[str, Any]:
        """Return the arguments as values that can be stored."""
        return self.arguments | ({"image": GIVEN} if isinstance(self.image, ImageEncoder) else {})

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "classes")
        config: dict[str, Any] = {"arguments": self._plain_arguments(), "sizes_um": self._sizes, "sizes_px": self._px}
        config |= {"located": self._located, "sections_seen": self.sections_seen, "inner_groups": self.inner_groups}
        config["novelty"], arrays = self._novelty.state()
        config["parts"], arrays = {}, prefixed("novelty", arrays)
        for name, part in {**self._encoders, "fusion": self._fusion}.items():
            config["parts"][name], values = part._state()
            arrays |= prefixed(name, values)
        return config, arrays

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        arguments = config["arguments"]
        kinds = {"image": ImageEncoder, "gene": ENCODERS.get(arguments["genes"]), "fusion": FusionClassifier}
        parts = {n: kinds[n]._from_state(c, subset(n, arrays)) for n, c in config["parts"].items()}
        if arguments["image"] == GIVEN:
            arguments = arguments | {"image": parts.get("image")}
        model = cls(**arguments)
        model._sizes, model._px, model._located = config["sizes_um"], config["sizes_px"], config["located"]
        model.sections_seen, model.inner_groups = config["sections_seen"], config["inner_groups"]
        model._novelty = NoveltyCheck.from_state(config["novelty"], subset("novelty", arrays))
        model._fusion, model._encoders = parts.pop("fusion"), parts
        model.classes, model.history = model._fusion.classes, model._fusion.history
        return model

    def _card(self) -> list[str]:
        sizes = ", ".join(f"{k} {v:.0f} um" if v else f"{k} of unknown size" for k, v in self._sizes.items())
        return [
            f"- sections seen: {', '.join(self.sections_seen)}",
            f"- crops: {sizes or 'none'}",
            f"- neighbourhood rings: {self.n_rings}",
            f"- inner folds keep together: {self.inner_groups}",
            *(line for part in (*self._encoders.values(), self._fusion) for line in part._card()),
            "",
            "## Intended use",
            "",
            "Research. Other tissue, stains or chemistries need their own check before the map is believed.",
        ]
