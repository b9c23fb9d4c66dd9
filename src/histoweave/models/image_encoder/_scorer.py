"""What can be explained: a network from pictures to class logits, found in a model or made from an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from histoweave._validate import require_choice, require_labels
from histoweave.loaders import crop_batches
from histoweave.models.fusion._heads import LinearHead
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._explain import as_pictures, prepared, probabilities
from histoweave.models.image_encoder._model import ImageEncoder

#: From a network, pictures and class numbers to maps ``(n, h, w)``.
MapsOf = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@runtime_checkable
class ImageNetwork(Protocol):
    """A model whose decision can be followed back to the pixels.

    Attributes
    ----------
    network
        From pictures ``(n, 3, height, width)`` in 0..1 to logits ``(n, n_classes)``.
    classes
        Names of the classes.
    crops_keys
        Crops in ``obsm`` that it looks at.
    """

    network: nn.Module
    classes: Sequence[str]
    crops_keys: Sequence[str]


@dataclass(frozen=True)
class Scorer:
    """A network, its classes and the crops it is explained on."""

    network: nn.Module
    classes: tuple[str, ...]
    crops_key: str


class LinearScorer(nn.Module):
    """A backbone with a linear head: logistic regression on its features."""

    def __init__(self, backbone: Backbone, head: LinearHead) -> None:
        super().__init__()
        self.backbone = backbone
        weight = head.coef / head.sd
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(head.intercept - weight @ head.mean))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn pictures ``(n, 3, height, width)`` in 0..1 into logits ``(n, n_classes)``."""
        return self.head(self.backbone.encode(x))


def as_scorer(
    model: Any, table: AnnData, *, crops_key: str | None, labels_key: str, device: str, random_state: int
) -> Scorer:
    """Return the network of a model with class logits, or an encoder's network with a head fitted on the labels.

    The network is a copy, ready on the device.

    Raises
    ------
    TypeError
        The model is neither.
    ValueError
        An encoder without a network, or one that does not use these crops.
    """
    if not isinstance(model, ImageEncoder | ImageNetwork):
        msg = (
            f"`model` must be a `hw.models.ImageEncoder`, or have `network`, `classes` and `crops_keys`; got "
            f"{type(model).__name__}. Of a larger model, explain its image encoder."
        )
        raise TypeError(msg)
    keys = list(model.crops_keys)
    crops_key = keys[0] if crops_key is None else crops_key
    require_choice(crops_key, keys, argument="crops_key")
    if not isinstance(model, ImageEncoder):
        return Scorer(prepared(model.network, device), tuple(str(name) for name in model.classes), crops_key)
    if model.method == "statistics":
        msg = (
            "An encoder with `method='statistics'` has no network whose gradients could be followed. Fit one with "
            "`method='pretrained'`, `'simclr'` or another that trains a network."
        )
        raise ValueError(msg)
    labels = require_labels(table, labels_key)
    available = f"{crops_key}_available"
    known = labels.notna() & (table.obs[available].astype(bool) if available in table.obs else True)
    labelled = table[known.to_numpy()]
    features = model.features(labelled)
    width = features.shape[1] // len(keys)
    place = keys.index(crops_key) * width
    numbers, classes = pd.factorize(labels[known].astype(str), sort=True)
    head = LinearHead().fit(features[:, place : place + width], numbers, len(classes), random_state)
    return Scorer(prepared(LinearScorer(model._network, head), device), tuple(classes), crops_key)


def explain_crops(
    scorer: Scorer,
    crops: Any,
    rows: np.ndarray,
    targets: Sequence[str],
    ways: Mapping[str, MapsOf],
    *,
    batch_size: int,
    device: str,
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return ``{(target, layer): (maps, class numbers, probabilities)}`` of some rows, with one pass over the crops.

    Parameters
    ----------
    scorer
        What is explained, its network on the device.
    crops, rows
        Crops ``(n_obs, height, width, 3)`` uint8, and the numbers of the rows, ascending.
    targets
        Names of classes; any other name stands for the most probable class of each row.
    ways
        What makes the maps of a network, pictures and class numbers, by the name of the layer.
    batch_size, device
        As for :func:`histoweave.tl.grad_cam`.
    """
    parts: dict[tuple[str, str], list[tuple[np.ndarray, ...]]] = {(t, layer): [] for t in targets for layer in ways}
    for _, batch in crop_batches(crops, rows, batch_size=batch_size, description="explain"):
        probability = probabilities(scorer.network, batch.numpy(), batch_size=batch_size, device=device)
        for target, layer in parts:
            named = target in scorer.classes
            numbers = np.full(len(batch), scorer.classes.index(target)) if named else probability.argmax(axis=1)
            classes = torch.from_numpy(numbers).to(device)
            maps = ways[layer](scorer.network, as_pictures(batch, device), classes).cpu().numpy()
            parts[target, layer].append((maps, numbers, probability[np.arange(len(numbers)), numbers]))
    return {key: tuple(map(np.concatenate, zip(*made, strict=True))) for key, made in parts.items()}
