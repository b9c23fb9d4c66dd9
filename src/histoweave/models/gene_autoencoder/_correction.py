"""A term of the loss that makes an embedding forget which section a spot is from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CORRECTIONS = ("mmd",)
BANDWIDTHS = (0.5, 1.0, 2.0)  # of the kernels, in median squared distances
MIN_ROWS = 2  # of a section in a batch, to have a distribution


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


def correction(kind: str | None, n_sections: int) -> nn.Module | None:
    """Return the term, ``None`` where nothing is asked for or there is only one section."""
    return None if kind is None or n_sections < 2 else Discrepancy()
