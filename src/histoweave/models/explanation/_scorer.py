"""What can be explained: a network from pictures to class logits, found in a model or made from an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from anndata import AnnData
from torch import nn

from histoweave._validate import require_choice
from histoweave.loaders import crop_batches
from histoweave.models.explanation._attribution import as_pictures, prepared, probabilities
from histoweave.models.image_classifier import ImageClassifier
from histoweave.models.image_classifier._module import LogitNetwork
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
    """A backbone with a linear head that takes its features as they are.

    Features beyond the range of the classifier's standardisation count in full: those of random weights lie there.
    """

    def __init__(self, network: LogitNetwork) -> None:
        super().__init__()
        self.backbone = network.backbone
        weight = network.weight / network.sd
        self.head = nn.Linear(*weight.T.shape)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(network.bias - weight @ network.mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn pictures ``(n, 3, height, width)`` in 0..1 into logits ``(n, n_classes)``."""
        return self.head(self.backbone.encode(x))


def as_scorer(
    model: Any,
    table: AnnData,
    *,
    crops_key: str | None,
    labels_key: str,
    library_key: str,
    device: str,
    random_state: int,
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
    if not isinstance(model, ImageEncoder | ImageClassifier | ImageNetwork):
        msg = (
            f"`model` must be a `hw.models.ImageClassifier` or `ImageEncoder`, or have `network`, `classes` and "
            f"`crops_keys`; got {type(model).__name__}. Of a larger model, explain its image encoder."
        )
        raise TypeError(msg)
    crops_key = next(iter(model.crops_keys)) if crops_key is None else crops_key
    require_choice(crops_key, list(model.crops_keys), argument="crops_key")
    if not isinstance(model, ImageEncoder | ImageClassifier):
        return Scorer(prepared(model.network, device), tuple(str(name) for name in model.classes), crops_key)
    encoder = model if isinstance(model, ImageEncoder) else model.encoder
    if encoder is not None and not encoder.has_network:
        msg = (
            f"An encoder with `method={encoder.method!r}` has no network whose gradients could be followed. Fit one "
            "with `method='pretrained'`, `'simclr'` or another that trains a network."
        )
        raise ValueError(msg)
    if isinstance(model, ImageEncoder):
        model = ImageClassifier(model, strategy="linear", device=device, random_state=random_state)
        model.fit(table, labels_key=labels_key, library_key=library_key)
    network = LinearScorer(model.network_of(crops_key))
    return Scorer(prepared(network, device), tuple(model.classes), crops_key)


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
