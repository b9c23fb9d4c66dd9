"""Likelihoods of masked expression: squared error of log values, and (zero-inflated) negative binomial counts.

The formulas are those of scvi-tools' distributions (Lopez et al., 2018, Nature Methods 15:1053) and are tested
against them. They are written here because importing scvi takes many seconds and these take six lines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LIKELIHOODS = ("mse", "nb", "zinb")
EPS = 1e-8


def nb_log_prob(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Return the log-probability of counts under a negative binomial.

    Parameters
    ----------
    x
        Counts ``(n, genes)``.
    mu
        Means, same shape.
    theta
        Inverse dispersion ``(genes,)``: the variance is ``mu + mu**2 / theta``.
    """
    log_sum = torch.log(theta + mu + EPS)
    kernel = theta * (torch.log(theta + EPS) - log_sum) + x * (torch.log(mu + EPS) - log_sum)
    return kernel + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def zinb_log_prob(x: Tensor, mu: Tensor, theta: Tensor, logits: Tensor) -> Tensor:
    """Return the log-probability of counts under a negative binomial with extra zeros.

    Parameters
    ----------
    x, mu, theta
        As for :func:`nb_log_prob`.
    logits
        Log odds of an extra zero ``(n, genes)``.
    """
    not_extra = -F.softplus(logits)
    zero_by_chance = theta * (torch.log(theta + EPS) - torch.log(theta + mu + EPS))
    zero = not_extra + F.softplus(zero_by_chance - logits) + logits
    return torch.where(x < EPS, zero, not_extra + nb_log_prob(x, mu, theta))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``mask`` is True: what was not masked teaches nothing."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
