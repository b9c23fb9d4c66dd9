"""Likelihoods of masked expression: squared error of log values, and (zero-inflated) negative binomial counts.

The formulas are those of scvi-tools' distributions (Lopez et al., 2018, Nature Methods 15:1053) and are tested
against them. They are written here because importing scvi takes many seconds, and to be faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LIKELIHOODS = ("mse", "nb", "zinb")
EPS = 1e-8
TABLE = 32  # counts up to here are looked up


def nb_log_prob(x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
    """Return the log-probability of counts under a negative binomial.

    Parameters
    ----------
    x
        Counts ``(n, genes)``, whole numbers.
    mu
        Means, same shape.
    theta
        Inverse dispersion ``(genes,)``: the variance is ``mu + mu**2 / theta``.
    """
    return _NegativeBinomial.apply(x, mu, theta)


class _NegativeBinomial(torch.autograd.Function):
    """Log-probability with its gradients written out.

    Gamma functions of ``x + theta`` and their derivatives take most of the time of a training step when they are
    computed for every entry. Counts are whole, so ``lgamma(x + theta) - lgamma(theta)`` is a sum of ``x`` logarithms
    of which all spots share those of a gene: a table of the first sums is looked up, and only larger counts are
    computed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mu: Tensor, theta: Tensor) -> Tensor:
        total = mu + (theta + EPS)
        log_total = total.log()
        k = torch.arange(TABLE, device=x.device, dtype=theta.dtype)[:, None]
        at = x.clamp(max=TABLE).long()
        found = _first_terms(((theta + k) / (1 + k)).log()).gather(0, at)
        large = torch.nonzero(x > TABLE, as_tuple=True)
        if len(large[0]):
            count, own = x[large], theta[large[1]]
            found[large] = torch.lgamma(count + own) - torch.lgamma(own) - torch.lgamma(count + 1)
        found += theta * (theta + EPS).log()
        found.addcmul_(x, (mu + EPS).log_()).addcmul_(x + theta, log_total, value=-1)
        ctx.save_for_backward(x, mu, theta, total, log_total, at, *large)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        x, mu, theta, total, log_total, at, *large = ctx.saved_tensors
        share = (x + theta).div_(total)
        k = torch.arange(TABLE, device=x.device, dtype=theta.dtype)[:, None]
        by_theta = _first_terms(1 / (theta + k)).gather(0, at)
        if len(large[0]):
            at_large = tuple(large)
            own = theta[at_large[1]]
            by_theta[at_large] = torch.digamma(x[at_large] + own) - torch.digamma(own)
        by_theta -= log_total
        by_theta -= share
        constant = (theta + EPS).log() + theta / (theta + EPS)
        by_mu = (x / (mu + EPS)).sub_(share).mul_(grad)
        return None, by_mu, by_theta.mul_(grad).sum(dim=0) + constant * grad.sum(dim=0)


def _first_terms(terms: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, ... terms of every gene."""
    return torch.cat([torch.zeros_like(terms[:1]), terms.cumsum(dim=0)])


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


def masked_squared_error(value: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error where ``mask`` is True."""
    hidden = mask.to(value.dtype)
    # where nothing is masked, the value is its own target: choosing by a random mask is slower than arithmetic
    error = F.mse_loss(value, torch.lerp(value.detach(), target, hidden), reduction="sum")
    return error / hidden.sum().clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``mask`` is True: what was not masked teaches nothing."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
