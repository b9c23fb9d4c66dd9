"""What a network can be trained on, chosen by name: what it sees and what it has to get right.

Every pretext takes the backbone and the views of a batch and returns a loss; widths are those published, cut for
sets of hundreds to thousands of crops. What a pretext needs beyond pixels it declares in ``needs``, and looks up by
the rows of the batch.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from histoweave._validate import listing, require_choice, require_number
from histoweave.loaders import Augmentation
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._losses import negative_cosine, nt_xent, sup_con, triplet, vicreg
from histoweave.models.image_encoder._module import Decoder, head
from histoweave.models.image_encoder._options import ImageTraining
from histoweave.models.image_encoder._relations import Relation

GUIDED = "gene_regression"  # statistics, brought to expression by trees
WITHOUT_NETWORK = ("statistics", GUIDED)
UNTRAINED = (*WITHOUT_NETWORK, "pretrained")
CELLS = 16  # side of the coarse pictures that decoders draw


@dataclass(frozen=True)
class Views:
    """What a pretext is shown of a batch.

    Parameters
    ----------
    pictures
        One tensor ``(n, 3, height, width)`` a view.
    rows
        Rows of the table ``(n,)``.
    generator
        CPU generator of what is random.
    """

    pictures: list[torch.Tensor]
    rows: torch.Tensor
    generator: torch.Generator


class Pretext(nn.Module, ABC):
    """A task; ``backbone`` gives ``dim`` features a picture.

    Parameters
    ----------
    backbone
        The network.
    options
        Temperature, margin and the like.
    relation
        What belongs together, of the kind that the task ``needs``.
    """

    needs: ClassVar[str | None] = None  #: ``"labels"``, ``"genes"`` or nothing

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__()
        self.options, self.relation = options, relation

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        """Return how each of the views of a picture is drawn."""
        return aug, aug

    @abstractmethod
    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        """Return the loss of the views."""

    def after_step(self, backbone: Backbone, progress: float) -> None:
        """Follow a step of the optimiser; ``progress`` is the share of the training that is done."""


class SimCLR(Pretext):
    """Tell the other view of a crop from all others (Chen et al., 2020); projection to 128."""

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.project = head(backbone.dim, backbone.dim, 128)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        return nt_xent(*self.project(backbone.encode(torch.cat(views.pictures))).chunk(2), self.options.temperature)


class VICReg(Pretext):
    """Views agree, dimensions keep their spread and stay uncorrelated (Bardes et al., 2022); 512, not 8192, wide."""

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.project = head(backbone.dim, 512, 512, 512)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        return vicreg(*self.project(backbone.encode(torch.cat(views.pictures))).chunk(2))


class SimSiam(Pretext):
    """Predict the other view, which gets no gradient (Chen & He, 2021); 512, not 2048, wide."""

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.project = head(backbone.dim, 512, 512, normalise_last=True)
        self.predict = head(512, 128, 512)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        z = self.project(backbone.encode(torch.cat(views.pictures)))
        (za, zb), (pa, pb) = z.chunk(2), self.predict(z).chunk(2)
        return (negative_cosine(pa, zb) + negative_cosine(pb, za)) / 2


class BYOL(Pretext):
    """Predict the other view as a slowly following copy of the network sees it (Grill et al., 2020).

    The copy follows with momentum 0.99, rising to 1: the published 0.996 needs longer trainings.
    """

    momentum = 0.99

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.project = head(backbone.dim, 512, 128)
        self.predict = head(128, 512, 128)
        self.target = copy.deepcopy(nn.ModuleList([backbone, self.project])).requires_grad_(False)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        both = torch.cat(views.pictures)
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
    """Draw the coarse picture of a crop of which a square of half the side is hidden (Pathak et al., 2016).

    The picture is drawn from the pooled features, so that these, which become the embedding, must hold it. What is
    visible is drawn as well: on simulated tissue the hidden part alone can hardly be guessed, and features trained
    to do so fall below those of a random network. The loss is relative to the variance of the pictures of the batch.
    """

    hidden = CELLS // 2

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.decode = Decoder(backbone.dim)

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return (replace(aug, grey=0.0, blur=0.0),)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        (x,) = views.pictures
        first = torch.randint(0, CELLS - self.hidden + 1, (2, len(x), 1), generator=views.generator).to(x.device)
        cells = torch.arange(CELLS, device=x.device)
        rows, columns = (cells >= first) & (cells < first + self.hidden)
        cover = F.interpolate((rows[:, None, :, None] & columns[:, None, None, :]).float(), size=x.shape[2:])
        seen = (x * (1 - cover)).sum(dim=(2, 3), keepdim=True) / (1 - cover).sum(dim=(2, 3), keepdim=True)
        return _unexplained(self.decode(backbone.encode(torch.lerp(x, seen, cover))), F.adaptive_avg_pool2d(x, CELLS))


class Colorize(Pretext):
    """Predict the coarse colours of a crop from its grey version (Zhang et al., 2016), from the pooled features.

    Half of the crops keep their colours: a network that has never seen any puts little into its features when it
    describes crops in colour later. The loss is relative to the variance of the colours. Views are moved and turned.
    """

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.decode = Decoder(backbone.dim)

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return (Augmentation(scale=aug.scale, rotation=aug.rotation, flip=aug.flip),)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        (x,) = views.pictures
        grey = x.mean(dim=1, keepdim=True).expand_as(x)
        without = (torch.rand(len(x), 1, 1, 1, generator=views.generator) < 0.5).to(x.device)
        drawn = self.decode(backbone.encode(torch.where(without, grey, x)))
        return _unexplained(drawn, F.adaptive_avg_pool2d(x - grey, CELLS))


class _Metric(Pretext):
    """Bring rows that belong together near to each other, others apart; projection to 128."""

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.project = head(backbone.dim, backbone.dim, 128)

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return (aug,)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        z = self.project(backbone.encode(torch.cat(views.pictures)))
        return self.loss(z, *self.relation.pairs(views.rows.repeat(len(views.pictures))))

    @abstractmethod
    def loss(self, z: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Return the loss of projections ``(n, d)`` and the pairs ``(n, n)`` among them."""


class Triplet(_Metric):
    """Crops of a class are nearer to each other than to others, by a margin (Schroff et al., 2015)."""

    needs = "labels"

    def loss(self, z: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return triplet(z, positive, negative, margin=self.options.margin, mining=self.options.mining)


class SupCon(_Metric):
    """Tell the crops of a class, in two views, from all others (Khosla et al., 2020)."""

    needs = "labels"

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return aug, aug

    def loss(self, z: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return sup_con(z, positive, negative, self.options.temperature)


class GeneTriplet(Triplet):
    """As :class:`Triplet`, with pairs of similar expression for pairs of a class."""

    needs = "genes"


class GeneContrast(SupCon):
    """As :class:`SupCon`, with pairs of similar expression for pairs of a class, and one view a crop."""

    needs = "genes"

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return (aug,)


class Supervised(Pretext):
    """Name the class of a crop: cross-entropy with smoothed labels (Szegedy et al., 2016)."""

    needs = "labels"

    def __init__(self, backbone: Backbone, options: ImageTraining, relation: Relation | None = None) -> None:
        super().__init__(backbone, options, relation)
        self.classify = nn.Linear(backbone.dim, relation.n_classes)

    def augmentations(self, aug: Augmentation) -> tuple[Augmentation, ...]:
        return (aug,)

    def forward(self, backbone: Backbone, views: Views) -> torch.Tensor:
        scores, codes = self.classify(backbone.encode(views.pictures[0])).float(), self.relation.codes[views.rows]
        losses = F.cross_entropy(
            scores, codes, ignore_index=-1, label_smoothing=self.options.label_smoothing, reduction="sum"
        )
        return losses / (codes >= 0).sum().clamp_min(1)


PRETEXTS: dict[str, type[Pretext]] = {
    "simclr": SimCLR,
    "vicreg": VICReg,
    "simsiam": SimSiam,
    "byol": BYOL,
    "inpaint": Inpaint,
    "colorize": Colorize,
    "gene_triplet": GeneTriplet,
    "gene_contrast": GeneContrast,
    "triplet": Triplet,
    "supcon": SupCon,
    "supervised": Supervised,
}


def pretext_weights(method: str | dict[str, float]) -> dict[str, float]:
    """Return the weight of each pretext of a method; none where nothing is trained."""
    if not isinstance(method, dict):
        require_choice(method, (*UNTRAINED, *PRETEXTS), argument="method")
        return {method: 1.0} if method in PRETEXTS else {}
    if not method:
        msg = f"`method={{}}` names no method. Give weights of one or more of {listing(PRETEXTS)}."
        raise ValueError(msg)
    for name, weight in method.items():
        require_choice(name, tuple(PRETEXTS), argument="method")
        require_number(weight, argument=f"method[{name!r}]", above=0)
    return {name: float(weight) for name, weight in method.items()}


def _unexplained(drawn: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Share of the variance of the pictures, around their mean colour, that is not drawn."""
    target = pictures - pictures.mean(dim=(0, 2, 3), keepdim=True)
    return F.mse_loss(drawn.float(), target) / target.pow(2).mean().clamp_min(1e-6)
