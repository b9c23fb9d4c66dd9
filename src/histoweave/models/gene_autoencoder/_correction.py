"""Two ways of making an embedding forget which section a spot is from; both are terms of the loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CORRECTIONS = ("adversarial", "mmd")
BANDWIDTHS = (0.5, 1.0, 2.0)  # of the kernels, in median squared distances
MIN_ROWS = 2  # of a section in a batch, to have a distribution


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


class Adversary(nn.Module):
    """A classifier of sections whose gradient reaches the encoder reversed (Ganin et al., 2016, JMLR 17:59)."""

    def __init__(self, n_latent: int, n_sections: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(n_latent, elementwise_affine=False),  # an embedding must not hide by being small
            nn.Linear(n_latent, 64), nn.ReLU(), nn.Linear(64, n_sections),
        )  # fmt: skip

    def forward(self, z: Tensor, section: Tensor, weight: float) -> Tensor:
        """Return the classifier's loss."""
        return F.cross_entropy(self.net(_Reversed.apply(z, weight)), section)


class Discrepancy(nn.Module):
    """Squared maximum mean discrepancy between each section and the others (Gretton et al., 2012, JMLR 13:723)."""

    def forward(self, z: Tensor, section: Tensor, weight: float) -> Tensor:
        """Return the mean over the sections of the batch."""
        squared = (z[:, None] - z[None]).square().sum(dim=2)
        scale = squared.detach().median().clamp(min=1e-12)
        kernel = sum(torch.exp(-squared / (factor * scale)) for factor in BANDWIDTHS) / len(BANDWIDTHS)
        found = [_between(kernel, section == number) for number in section.unique()]
        found = [value for value in found if value is not None]
        return weight * torch.stack(found).mean() if found else z.sum() * 0


def _between(kernel: Tensor, own: Tensor) -> Tensor | None:
    if own.sum() < MIN_ROWS or (~own).sum() < MIN_ROWS:
        return None
    return kernel[own][:, own].mean() + kernel[~own][:, ~own].mean() - 2 * kernel[own][:, ~own].mean()


def correction(kind: str | None, n_latent: int, n_sections: int) -> nn.Module | None:
    """Return the term, ``None`` where nothing is asked for or there is only one section."""
    if kind is None or n_sections < 2:
        return None
    return Adversary(n_latent, n_sections) if kind == "adversarial" else Discrepancy()
