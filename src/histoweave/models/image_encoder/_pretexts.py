"""Tasks that need no labels, chosen by name: what the network sees and what it has to get right.

Every pretext takes the backbone and the views of a batch and returns a loss; widths are those published, cut for
sets of hundreds to thousands of crops.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from histoweave.loaders import Augmentation
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._losses import negative_cosine, nt_xent, vicreg
from histoweave.models.image_encoder._module import Decoder, head

CELLS = 16  # side of the coarse pictures that decoders draw


class Pretext(nn.Module):
    """A task; ``backbone`` gives ``dim`` features a picture."""

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        """Return how each of the views of a picture is drawn."""
        return aug, aug

    def forward(self, backbone: Backbone, views: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """Return the loss of the views ``(n, 3, height, width)``; random choices come from the CPU generator."""
        raise NotImplementedError

    def after_step(self, backbone: Backbone, progress: float) -> None:
        """Follow a step of the optimiser; ``progress`` is the share of the training that is done."""


class SimCLR(Pretext):
    """Tell the other view of a crop from all others (Chen et al., 2020); projection to 128."""

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        super().__init__()
        self.project, self.temperature = head(backbone.dim, backbone.dim, 128), temperature

    def forward(self, backbone: Backbone, views: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        return nt_xent(*self.project(backbone.encode(torch.cat(views))).chunk(2), self.temperature)


class VICReg(Pretext):
    """Views agree, dimensions keep their spread and stay uncorrelated (Bardes et al., 2022); 512, not 8192, wide."""

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        super().__init__()
        self.project = head(backbone.dim, 512, 512, 512)

    def forward(self, backbone: Backbone, views: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        return vicreg(*self.project(backbone.encode(torch.cat(views))).chunk(2))


class SimSiam(Pretext):
    """Predict the other view, which gets no gradient (Chen & He, 2021); 512, not 2048, wide."""

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        super().__init__()
        self.project = head(backbone.dim, 512, 512, normalise_last=True)
        self.predict = head(512, 128, 512)

    def forward(self, backbone: Backbone, views: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        z = self.project(backbone.encode(torch.cat(views)))
        (za, zb), (pa, pb) = z.chunk(2), self.predict(z).chunk(2)
        return (negative_cosine(pa, zb) + negative_cosine(pb, za)) / 2


class BYOL(Pretext):
    """Predict the other view as a slowly following copy of the network sees it (Grill et al., 2020).

    The copy follows with momentum 0.99, rising to 1: the published 0.996 needs longer trainings.
    """

    momentum = 0.99

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        super().__init__()
        self.project = head(backbone.dim, 512, 128)
        self.predict = head(128, 512, 128)
        self.target = copy.deepcopy(nn.ModuleList([backbone, self.project])).requires_grad_(False)

    def forward(self, backbone: Backbone, views: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        both = torch.cat(views)
        pa, pb = self.predict(self.project(backbone.encode(both))).chunk(2)
        with torch.no_grad():
            network, project = self.target
            ta, tb = project(network.encode(both)).chunk(2)
        return 2 + negative_cosine(pa, tb) + negative_cosine(pb, ta)

    @torch.no_grad()
    def after_step(self, backbone: Backbone, progress: float) -> None:
        momentum = 1 - (1 - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        online = nn.ModuleList([backbone, self.project])
        for slow, fast in zip(self.target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)


class Inpaint(Pretext):
    """Predict the coarse content of a hidden square of half the side from the rest (Pathak et al., 2016).

    The picture is drawn from the pooled features, so that these, which become the embedding, must hold it. The
    loss is relative to the variance of what is hidden.
    """

    hidden = CELLS // 2

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        super().__init__()
        self.decode = Decoder(backbone.dim)

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return (replace(aug, grey=0.0, blur=0.0),)

    def forward(self, backbone: Backbone, views: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        (x,) = views
        first = torch.randint(0, CELLS - self.hidden + 1, (2, len(x), 1), generator=generator).to(x.device)
        cells = torch.arange(CELLS, device=x.device)
        rows, columns = (cells >= first) & (cells < first + self.hidden)
        mask = (rows[:, None, :, None] & columns[:, None, None, :]).float()
        cover = F.interpolate(mask, size=x.shape[2:])
        seen = (x * (1 - cover)).sum(dim=(2, 3), keepdim=True) / (1 - cover).sum(dim=(2, 3), keepdim=True)
        target = (F.adaptive_avg_pool2d(x, CELLS) - seen) * mask
        drawn = self.decode(backbone.encode(torch.lerp(x, seen, cover))).float() * mask
        return _unexplained(drawn, target)


class Colorize(Pretext):
    """Predict the coarse colours of a crop from its grey version (Zhang et al., 2016), from the pooled features.

    The loss is relative to the variance of the colours. Views are moved and turned; their colours are kept.
    """

    def __init__(self, backbone: Backbone, temperature: float) -> None:
        super().__init__()
        self.decode = Decoder(backbone.dim)

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return (Augmentation(scale=aug.scale, rotation=aug.rotation, flip=aug.flip),)

    def forward(self, backbone: Backbone, views: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        (x,) = views
        grey = x.mean(dim=1, keepdim=True).expand_as(x)
        target = F.adaptive_avg_pool2d(x - grey, CELLS)
        return _unexplained(self.decode(backbone.encode(grey)).float(), target)


PRETEXTS: dict[str, type[Pretext]] = {
    "simclr": SimCLR,
    "vicreg": VICReg,
    "simsiam": SimSiam,
    "byol": BYOL,
    "inpaint": Inpaint,
    "colorize": Colorize,
}


def _unexplained(drawn: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(drawn, target) / target.pow(2).mean().clamp_min(1e-6)
