"""Which genes speak for a region: integrated gradients of its logit, by captum; exact where the model is linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from histoweave._settings import track
from histoweave.models.gene_autoencoder._finetune import GeneLogits, LinearEncoder

if TYPE_CHECKING:
    from histoweave.models.gene_autoencoder._classifier import GeneClassifier
    from histoweave.models.gene_autoencoder._views import Views

BATCH = 64  # spots at a time, times the number of steps in memory


def integrated_gradients(
    network: GeneLogits, x: Tensor, present: Tensor, target: Tensor, n_steps: int
) -> tuple[Tensor, Tensor]:
    """Return the contribution of every value to its row's logit, from a baseline of 0, and what is unaccounted for.

    Parameters
    ----------
    network
        The network.
    x
        Centred log values ``(n, views, genes)``.
    present
        Mask of the visible genes.
    target
        Class number of every row.
    n_steps
        Points of the path from the baseline at which gradients are taken.

    Returns
    -------
    Contributions, of the shape of ``x``, and ``(n,)`` the difference between their sum and that of the logits.
    """
    if isinstance(network.encoder, LinearEncoder):  # the gradient is the same everywhere
        x = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(x, present).gather(1, target[:, None]).sum(), x)
        return (gradient * x).detach(), torch.zeros(len(x))
    from captum.attr import IntegratedGradients  # takes seconds to import

    found, delta = IntegratedGradients(lambda values: network(values, present)).attribute(
        x, baselines=torch.zeros_like(x), target=target, n_steps=n_steps, internal_batch_size=BATCH * 4,
        return_convergence_delta=True,
    )  # fmt: skip
    return found.detach(), delta.detach()


def region_importance(
    model: GeneClassifier, views: Views, rows_of: Mapping[str, np.ndarray], n_steps: int
) -> tuple[dict[str, np.ndarray], float]:
    """Return each region's mean contributions ``(genes,)`` over its rows, all views together, and the error.

    Parameters
    ----------
    model
        A fitted classifier.
    views
        What it sees of the table.
    rows_of
        Row numbers of each group, named ``(group, region)``.
    n_steps
        As above.

    Returns
    -------
    Contributions of every group; and the median share of a logit's rise over the baseline that the contributions
    leave unaccounted for.
    """
    out, missed = {}, []
    network = model.network.to(views.device)
    for (group, region), rows in track(rows_of.items(), "integrated gradients", unit="region"):
        total = torch.zeros(len(model.genes), dtype=torch.float64)
        number = model.classes.index(region)
        for part in np.array_split(rows, -(-len(rows) // BATCH)):
            x = views.batch(part)
            target = torch.full((len(part),), number, device=x.device)
            found, delta = integrated_gradients(network, x, views.present, target, n_steps)
            total += found.sum(dim=(0, 1)).double().cpu()
            missed.append((delta.cpu().abs() / found.sum(dim=(1, 2)).cpu().abs().clamp(min=1e-3)).numpy())
        out[group, region] = np.where(views.present.cpu().numpy(), total.numpy() / len(rows), np.nan)
    return out, float(np.median(np.concatenate(missed))) if missed else 0.0


def agreement(importances: Sequence[np.ndarray]) -> float:
    """Return the mean rank correlation between the fits' importances; NaN with one fit."""
    from scipy.stats import spearmanr

    known = np.isfinite(np.stack(importances)).all(axis=0)
    pairs = [spearmanr(a[known], b[known]).statistic for a, b in combinations(importances, 2)]
    return float(np.mean(pairs)) if pairs else np.nan
