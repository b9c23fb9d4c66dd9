"""The arms of an ablation: how each is embedded and fitted in a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._record import recorded
from histoweave._resolve import get_table, has_image, replace_table, sections
from histoweave._validate import listing, warn
from histoweave.models._prepare import light_table
from histoweave.models.image_encoder import ImageEncoder
from histoweave.models.image_encoder._pretexts import GUIDED
from histoweave.pp._stain import stain_normalize
from histoweave.tl._fold_embeddings import without
from histoweave.tl._fold_runner import ARMS, FoldRunner
from histoweave.tl._labelled_folds import Answer

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from histoweave.pp._split import Fold

ABLATIONS = ("context", "self-supervision", "scales", "stain")


@dataclass(frozen=True)
class Variant:
    """A way to embed and fit; ``image`` makes the image embedding where it is another one."""

    name: str = ""
    n_rings: int | None = None
    image: FoldRunner | None = None
    crops_key: str | None = None

    def arm(self, base: str) -> str:
        """Return the name of an arm of :data:`ARMS` in this variant."""
        return f"{base}, {self.name}" if self.name else base


class Arms:
    """All arms that a table allows, each fitted in a fold on any labels.

    Parameters
    ----------
    runner
        The runner of the full model.
    data
        What it was made from.
    arms, ablate, stain, table_key
        As for :func:`histoweave.tl.ablation`.

    Attributes
    ----------
    names
        Names of the arms, variant after variant.
    """

    def __init__(
        self,
        runner: FoldRunner,
        data: AnnData | SpatialData,
        arms: Sequence[str],
        ablate: Sequence[str],
        *,
        stain: str,
        table_key: str,
    ) -> None:
        self.runner = runner
        self._arms = [arm for arm in arms if runner.has(*ARMS[arm])]
        if not self._arms:
            msg = f"None of the arms {listing(arms)} can be scored: the table lacks the image or the counts they need."
            raise ValueError(msg)
        self.variants = [Variant()]
        if "context" in ablate and runner.model.n_rings and _keys.SPATIAL in runner.light.obsm:
            self.variants.append(Variant("no context", n_rings=0))
        if runner.has("image") and self._arms != ["gene"]:
            self.variants += _image_variants(runner, data, ablate, stain, table_key)
        self.names = [name for variant in self.variants for name in self._named(variant)]

    def _named(self, variant: Variant) -> dict[str, list[str]]:
        """Return the arms of a variant with what they predict from; one of the image leaves the genes' arm as it is."""
        changed = variant.image is not None
        return {variant.arm(arm): ARMS[arm] for arm in self._arms if not (changed and arm == "gene")}

    def answers(
        self, fold: Fold, labels: pd.Series, seed: int, *, encoder_seed: int | None = None, only: str | None = None
    ) -> dict[str, Answer]:
        """Return what every arm, or ``only`` one, predicts of a fold's test rows.

        Parameters
        ----------
        fold
            The fold.
        labels
            Class name of every row; training rows are learned from.
        seed
            Seed of heads and inner folds.
        encoder_seed
            Seed of the encoders, that of the model by default.
        only
            Name of an arm.
        """
        found, memory = {}, {}
        for variant in self.variants:
            named = {name: used for name, used in self._named(variant).items() if only in (None, name)}
            if not named:
                continue
            embeddings = self.runner.embed(fold, seed=encoder_seed)
            if variant.image is not None:
                embeddings |= variant.image.embed(fold, seed=encoder_seed, crops_key=variant.crops_key)
            clf = self.runner.fit(
                embeddings, labels.where(fold.train), n_rings=variant.n_rings, seed=seed, memory=memory
            )
            found |= {name: self.runner.predict(clf, embeddings, fold.test, used) for name, used in named.items()}
        return found


def _image_variants(
    runner: FoldRunner, data: AnnData | SpatialData, ablate: Sequence[str], stain: str, table_key: str
) -> list[Variant]:
    variants, image = [], runner.model.image
    guided = isinstance(image, ImageEncoder) and image.method == GUIDED  # on all scales at once, with expression
    trained = image.pretexts if isinstance(image, ImageEncoder) else image not in ("statistics", "pretrained")
    if "self-supervision" in ablate and (trained or guided):
        plain = runner.twin(image="statistics", image_options={}, genes=None)
        variants.append(Variant("no self-supervision", image=plain))
    if "stain" in ablate:
        variants += _stain_variant(runner, data, stain, table_key)
    if "scales" in ablate and len(runner.sizes) > 1 and not guided:
        variants += [Variant(f"{key} only", image=runner, crops_key=key) for key in runner.sizes]
    return variants


def _stain_variant(runner: FoldRunner, data: AnnData | SpatialData, method: str, table_key: str) -> list[Variant]:
    """Return the variant with crops normalised, or as scanned where they have been; none where neither is possible."""
    done = [key for key in runner.sizes if recorded(runner.light, key).get("stain")]
    if not done:
        if len(sections(runner.light)) < 2:
            warn("There is one section: normalising its stain to itself changes nothing; the arm is left out.")
            return []
        light = without(runner.light)
        light.uns[_keys.UNS] = dict(light.uns[_keys.UNS])
        for key in runner.sizes:
            stain_normalize(light, method=method, crops_key=key)
        return [Variant(f"{method} stain", image=runner.twin(light, genes=None))]
    pictured = all(has_image(data, name, table_key=table_key) for name in sections(runner.light))
    if not pictured or None in runner.sizes.values():
        warn(
            f"The stain of {listing(done)} has been normalised and there is no image to cut them from again; the arm "
            "as scanned is left out."
        )
        return []
    table = without(get_table(data, table_key), runner.sizes)
    light, _ = light_table(
        replace_table(data, table, table_key), crop_um=runner.sizes, image=True, genes=False,
        out_px={key: runner.light.obsm[key].shape[1] for key in runner.sizes}, **runner.keys,
    )  # fmt: skip
    return [Variant("stain as scanned", image=runner.twin(light, genes=None))]
