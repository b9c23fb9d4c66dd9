"""What self-supervised and metric learning minimise, one small function each."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from histoweave._validate import require_choice

MINING = ("all", "semi_hard", "batch_hard")


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


def sup_con(z: torch.Tensor, labels: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """Return the supervised contrastive loss (Khosla et al., 2020, the sum outside of the logarithm).

    Parameters
    ----------
    z
        Projections ``(n, d)``.
    labels
        Class numbers ``(n,)``. Rows whose class occurs once are told from but not pulled to anything.
    temperature
        As for :func:`nt_xent`.

    Raises
    ------
    ValueError
        No class has two rows, or there is one class only.
    """
    same = _same_class(labels)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    z = F.normalize(z.float(), dim=1)
    similarity = (z @ z.T / temperature).masked_fill(own, -torch.inf)
    log_share = (similarity - similarity.logsumexp(dim=1, keepdim=True)).masked_fill(own, 0)
    positive = same & ~own
    anchors = positive.any(dim=1)
    per_row = (log_share * positive).sum(dim=1)[anchors] / positive.sum(dim=1)[anchors]
    return -per_row.mean()


def triplet(z: torch.Tensor, labels: torch.Tensor, *, margin: float = 0.2, mining: str = "semi_hard") -> torch.Tensor:
    """Return the triplet loss of unit vectors with Euclidean distance (Schroff et al., 2015).

    Parameters
    ----------
    z
        Embeddings ``(n, d)``; they are brought to unit length.
    labels
        Class numbers ``(n,)``.
    margin
        How much farther a negative shall be than a positive.
    mining
        Which triplets of the batch are averaged: ``"all"`` that violate the margin, ``"semi_hard"``, those whose
        negative is farther than the positive but within the margin, or ``"batch_hard"``, for each row its
        farthest positive and nearest negative (Hermans et al., 2017). 0 where there are none.

    Raises
    ------
    ValueError
        No class has two rows, or there is one class only.
    """
    require_choice(mining, MINING, argument="mining")
    same = _same_class(labels)
    z = F.normalize(z.float(), dim=1)
    distance = (2 - 2 * z @ z.T).clamp_min(1e-12).sqrt()  # the gradient of a root at 0 is infinite
    positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    if mining == "batch_hard":
        farthest = distance.masked_fill(~positive, -torch.inf).amax(dim=1)
        nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
        return F.relu(farthest - nearest + margin)[positive.any(dim=1)].mean()
    violation = distance[:, :, None] - distance[:, None, :] + margin
    chosen = positive[:, :, None] & ~same[:, None, :] & (violation > 0)
    if mining == "semi_hard":
        chosen &= violation < margin
    return (violation * chosen).sum() / chosen.sum().clamp_min(1)


def _same_class(labels: torch.Tensor) -> torch.Tensor:
    """Which pairs are of one class; raises where a batch has no positives or no negatives."""
    same = labels[:, None] == labels[None, :]
    if same.all() or same.sum() == len(labels):
        kind = "one class only: nothing is a negative" if same.all() else "no class twice: nothing is a positive"
        msg = f"A batch of {len(labels)} rows holds {kind}. Draw batches of several classes with several rows each."
        raise ValueError(msg)
    return same
