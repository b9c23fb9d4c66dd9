"""AdamW for networks: which weights decay, which layers learn slower, and how the rate rises and falls."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from histoweave.models.image_encoder._backbone import Backbone

WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # share of the steps over which the learning rate rises


def parameter_groups(
    backbone: Backbone, heads: Iterable[nn.Parameter], learning_rate: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Return the groups of an optimiser: norms and biases do not decay, lower layers learn slower.

    Parameters
    ----------
    backbone
        Its last layer learns at ``learning_rate * layer_decay``, every one below again slower.
    heads
        What learns at the full rate.
    learning_rate, layer_decay
        As for :class:`histoweave.models.ImageTraining`.
    """
    layer_of: dict[str, int] = {}
    if layer_decay < 1:
        layer_of = group_parameters(backbone.network, backbone.network.group_matcher(), reverse=True)
    depth = max(layer_of.values(), default=-1) + 1
    found: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, weight in backbone.network.named_parameters():
        found[depth - layer_of.get(name, depth), weight.ndim > 1].append(weight)
    for weight in heads:
        found[0, weight.ndim > 1].append(weight)
    return [
        {"params": weights, "weight_decay": WEIGHT_DECAY * decays, "lr": learning_rate * layer_decay**below}
        for (below, decays), weights in sorted(found.items(), key=lambda group: group[0], reverse=True)
    ]


def optimizer(groups: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Return AdamW whose rates rise linearly over the first tenth of the steps, then fall as a cosine."""
    warm = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return (step + 1) / warm if step < warm else (1 + math.cos(math.pi * done)) / 2

    adam = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
    return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
