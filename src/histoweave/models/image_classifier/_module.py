"""From pictures to logits: the network of a classifier on its own."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from histoweave.models._pca import LinearMap
from histoweave.models._sections import LIMIT
from histoweave.models.fusion._heads import LinearHead
from histoweave.models.image_encoder import ImageEncoder
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._module import set_scale


class LogitNetwork(nn.Module):
    """Backbone, standardisation and linear layer; pictures ``(n, 3, height, width)`` in 0..1 to ``(n, n_classes)``.

    Features are standardised with the training sections' pooled mean and spread: a picture alone has no section.

    Parameters
    ----------
    backbone
        The network.
    mean, sd
        Of its features ``(d,)``.
    weight, bias
        Of the linear layer, ``(n_classes, d)`` and ``(n_classes,)``.
    """

    def __init__(
        self, backbone: Backbone, mean: np.ndarray, sd: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ) -> None:
        super().__init__()
        self.backbone = backbone
        for name, values in {"mean": mean, "sd": sd, "weight": weight, "bias": bias}.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        features = (self.backbone.encode(x) - self.mean) / self.sd
        return F.linear(features.clamp(-LIMIT, LIMIT), self.weight, self.bias)


def logit_network(encoder: ImageEncoder, head: LinearHead, scale: int, n_blocks: int) -> LogitNetwork:
    """Return encoder and head as a module of one scale, the others held at their mean.

    Parameters
    ----------
    encoder, head, n_blocks
        As for :func:`collapse`.
    scale
        Number of the scale among the encoder's.
    """
    if not encoder.has_network:
        msg = f"An encoder with `method={encoder.method!r}` has no network. Use a pretrained or trained one."
        raise ValueError(msg)
    weight, bias = collapse(head, encoder._map, n_blocks)
    network, scaler = deepcopy(encoder._network).cpu(), encoder._scaler
    set_scale(network, scale)
    own = slice(scale * network.dim, (scale + 1) * network.dim)
    return LogitNetwork(network, scaler.mean[own], scaler.sd[own], weight[:, own], bias).eval()


def collapse(head: LinearHead, components: LinearMap | None, n_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights ``(n_classes, d)`` and bias of a head in terms of the features before their components.

    Parameters
    ----------
    head
        Fitted on ``n_blocks`` embeddings side by side, a row's own and those of its rings of neighbours, which are
        taken to be like it.
    components
        What turned features into the embedding, if anything did.
    n_blocks
        One more than there are rings.
    """
    weight = head.coef / head.sd
    bias = head.intercept - weight @ head.mean
    weight = weight.reshape(len(weight), n_blocks, -1).sum(axis=1)
    if components is None:
        return weight, bias
    weight = weight @ components.apply(np.eye(len(components.mean)) + components.mean).T
    return weight, bias - weight @ components.mean
