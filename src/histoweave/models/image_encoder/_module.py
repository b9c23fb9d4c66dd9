"""Networks trained here: those whose first layers suit small pictures, a tiny one, and the heads of pretexts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 64, 64)}  # as in timm's `pretrained_cfg`


class Tiny(nn.Sequential):
    """Three strided convolutions, for tests and for a first look: 25,000 weights, 64 features."""

    num_features = 64

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inside, outside in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.pretrained_cfg = dict(CONFIG)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return which weights are a layer, as timm's networks do."""
        return {"stem": r"^[01]\.", "blocks": [(r"^[34]\.", (0,)), (r"^[67]\.", (1,))]}


def _small_stem(name: str) -> nn.Module:
    """Return a ResNet that keeps the resolution in its first layers, as SimCLR does for CIFAR: 4 times the work."""
    import timm

    network: Any = timm.create_model(name, pretrained=False, num_classes=0)
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def _narrow() -> nn.Module:
    """Return a ResNet of 10 layers and half the width: 1.2 million weights, 256 features, for CPUs."""
    from timm.models.resnet import BasicBlock, ResNet

    network: Any = ResNet(BasicBlock, [1, 1, 1, 1], channels=(32, 64, 128, 256), num_classes=0)
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, stride=2, padding=1, bias=False)
    network.pretrained_cfg = dict(CONFIG)
    return network


#: Networks that are not timm's, all without published weights.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "tiny": Tiny,
    "resnet10-narrow": _narrow,
    **{f"{name}-small": partial(_small_stem, name) for name in ("resnet18", "resnet34", "resnet50")},
}


class ScaleToken(nn.Module):
    """A gain and an offset of every channel, of the scale that was set last; at first they change nothing.

    Parameters
    ----------
    n_scales, n_channels
        Their numbers.
    axis
        Of the channels.
    """

    def __init__(self, n_scales: int, n_channels: int, axis: int) -> None:
        super().__init__()
        self.gain, self.offset = (nn.Parameter(torch.zeros(n_scales, n_channels)) for _ in range(2))
        self.axis, self.scale = axis, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` as the scale's token changes it."""
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * (1 + self.gain[self.scale].view(shape)) + self.offset[self.scale].view(shape)


def set_scale(module: nn.Module, scale: int) -> None:
    """Tell every scale token in ``module`` which scale comes next."""
    for part in module.modules():
        if isinstance(part, ScaleToken):
            part.scale = scale


def head(*sizes: int, normalise_last: bool = False) -> nn.Sequential:
    """Return linear layers of the given sizes with batch normalisation and ReLU between them."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes[:-1]):
        layers += [nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside), nn.ReLU()]
    layers.append(nn.Linear(*sizes[-2:], bias=not normalise_last))
    if normalise_last:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)


class Decoder(nn.Module):
    """From features ``(n, d)`` to a coarse picture ``(n, 3, 16, 16)``."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.spread = nn.Linear(dim, width * 16)
        self.width = width
        layers: list[nn.Module] = []
        for inside, outside in ((width, width // 2), (width // 2, width // 4)):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
        self.grow = nn.Sequential(*layers, nn.Conv2d(width // 4, 3, 3, padding=1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Draw the picture."""
        return self.grow(self.spread(features).relu().view(-1, self.width, 4, 4))
