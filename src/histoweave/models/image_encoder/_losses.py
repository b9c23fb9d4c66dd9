"""What self-supervised and metric learning minimise, one small function each."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F

from histoweave._validate import require_choice

MINING = ("all", "semi_hard", "batch_hard")


def exact(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Keep a loss in float32 where training is in bfloat16, which would round the products of unit vectors."""

    @wraps(loss)
    def run(z: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return loss(z, *args, **options)

    return run


@exact
def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """Return the loss of SimCLR (Chen et al., 2020): tell a picture's other view from all views of a batch.

    Parameters
    ----------
    a, b
        Projections ``(n, d)`` of two views of the same pictures.
    temperature
        0.2: the 0.5 of the paper for small batches pulls too little, 0.1 too much on a few thousand crops.
    """
    n = len(a)
    z = F.normalize(torch.cat([a, b]).float(), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


@exact
def vicreg(
    a: torch.Tensor, b: torch.Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> torch.Tensor:
    """Return the loss of VICReg (Bardes et al., 2022): agree, keep every dimension's spread, decorrelate.

    Parameters
    ----------
    a, b
        Projections ``(n, d)`` of two views.
    invariance, variance, covariance
        Weights of the three terms, as published.
    """
    a, b = a.float(), b.float()
    loss = invariance * F.mse_loss(a, b)
    for z in (a, b):
        centred = z - z.mean(dim=0)
        loss = loss + variance / 2 * F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
        products = (centred.T @ centred / (len(z) - 1)) ** 2
        loss = loss + covariance * (products.sum() - products.diagonal().sum()) / z.shape[1]
    return loss


def negative_cosine(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the loss of SimSiam and, up to ``2 + 2 x``, BYOL: minus the cosine to a target that gets no gradient.

    Parameters
    ----------
    predicted, target
        ``(n, d)`` each.
    """
    return -F.cosine_similarity(predicted.float(), target.detach().float(), dim=1).mean()


def class_pairs(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which pairs of rows are of one class and which of two, ``(n, n)`` each.

    Parameters
    ----------
    labels
        Class numbers ``(n,)``; rows below 0 are in no pair.
    """
    known = (labels >= 0)[:, None] & (labels >= 0)[None, :]
    same = labels[:, None] == labels[None, :]
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return known & same & ~own, known & ~same


@exact
def sup_con(z: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """Return the supervised contrastive loss (Khosla et al., 2020, the sum outside of the logarithm).

    Parameters
    ----------
    z
        Projections ``(n, d)``.
    positive, negative
        Which pairs are pulled together and which are pushed apart, ``(n, n)``; pairs that are neither do not
        matter. Rows without a positive or without a negative are no anchors; the loss of no anchors is 0.
    temperature
        As for :func:`nt_xent`.
    """
    z = F.normalize(z.float(), dim=1)
    similarity = z @ z.T / temperature
    compared = similarity.masked_fill(~(positive | negative), -torch.inf)
    anchors = positive.any(dim=1) & negative.any(dim=1)
    log_share = (similarity - compared.logsumexp(dim=1, keepdim=True)).masked_fill(~positive, 0)[anchors]
    per_row = log_share.sum(dim=1) / positive[anchors].sum(dim=1)
    return -per_row.sum() / anchors.sum().clamp_min(1)


@exact
def triplet(
    z: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, *, margin: float = 0.2, mining: str = "semi_hard"
) -> torch.Tensor:
    """Return the triplet loss of unit vectors with Euclidean distance (Schroff et al., 2015).

    Parameters
    ----------
    z
        Embeddings ``(n, d)``; they are brought to unit length.
    positive, negative
        As for :func:`sup_con`.
    margin
        How much farther a negative shall be than a positive.
    mining
        Which triplets of the batch are averaged: ``"all"`` that violate the margin, ``"semi_hard"``, those whose
        negative is farther than the positive but within the margin, or ``"batch_hard"``, for each row its
        farthest positive and nearest negative (Hermans et al., 2017). 0 where there are none.
    """
    require_choice(mining, MINING, argument="mining")
    z = F.normalize(z.float(), dim=1)
    distance = (2 - 2 * z @ z.T).clamp_min(1e-12).sqrt()  # the gradient of a root at 0 is infinite
    if mining == "batch_hard":
        anchors = positive.any(dim=1) & negative.any(dim=1)
        farthest = distance.masked_fill(~positive, -torch.inf).amax(dim=1)
        nearest = distance.masked_fill(~negative, torch.inf).amin(dim=1)
        return F.relu(farthest[anchors] - nearest[anchors] + margin).sum() / anchors.sum().clamp_min(1)
    anchor, other = positive.nonzero(as_tuple=True)
    violation = distance[anchor, other][:, None] - distance[anchor] + margin
    chosen = negative[anchor] & (violation > 0)
    if mining == "semi_hard":
        chosen &= violation < margin
    return (violation * chosen).sum() / chosen.sum().clamp_min(1)
