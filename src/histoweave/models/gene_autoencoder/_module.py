"""The network: hidden genes in, all genes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from histoweave.models.gene_autoencoder._losses import masked_mean, masked_squared_error, nb_log_prob, zinb_log_prob
from histoweave.models.gene_autoencoder._masking import bernoulli


class GeneNetwork(nn.Module):
    """An encoder and a decoder of fully connected layers; the decoder alone is told the section.

    Parameters
    ----------
    n_genes
        Genes in and out.
    n_sections
        Sections in training.
    likelihood
        ``"mse"``, ``"nb"`` or ``"zinb"``.
    widths
        Hidden layers of the encoder; the decoder has them in reverse.
    n_latent
        Dimensions of the embedding.
    dropout
        Share of hidden units that are dropped in training.
    neighbours
        The encoder is shown the mean of each spot's neighbours as well.
    """

    def __init__(
        self,
        n_genes: int,
        n_sections: int,
        *,
        likelihood: str,
        widths: Sequence[int],
        n_latent: int,
        dropout: float,
        neighbours: bool = False,
    ) -> None:
        super().__init__()
        self.n_genes, self.likelihood = n_genes, likelihood
        # the sum over the visible genes is rescaled to all genes before the bias is added
        self.first = nn.Linear(n_genes, widths[0], bias=False)
        self.first_bias = nn.Parameter(torch.zeros(widths[0]))
        self.around = nn.Linear(n_genes, widths[0], bias=False) if neighbours else None
        self.encoder = nn.Sequential(*_tail(dropout), *_layers(widths, dropout))
        self.latent = nn.Linear(widths[-1], n_latent)
        back = [*reversed(widths)]
        self.second = nn.Linear(n_latent, back[0])
        self.decoder = nn.Sequential(*_tail(dropout), *_layers(back, dropout))
        self.section = nn.Parameter(torch.zeros(n_sections, back[0])) if n_sections > 1 else None
        # shares of all counts need one more output, for the genes that are not modelled
        self.last = nn.Linear(back[-1], n_genes + (likelihood != "mse"))
        if likelihood != "mse":
            self.log_theta = nn.Parameter(torch.zeros(n_genes))
        if likelihood == "zinb":
            self.extra_zero = nn.Linear(back[-1], n_genes)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)  # what SELU needs to keep its scale
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def encode(
        self, x: Tensor, visible: Tensor, around: Tensor | None = None, visible_around: Tensor | None = None
    ) -> Tensor:
        """Return the embedding ``(n, n_latent)``.

        Parameters
        ----------
        x
            Centred log values ``(n, genes)``, 0 where hidden.
        visible
            Number of genes that are not hidden ``(n, 1)``. What the first layer sums over fewer genes is scaled
            up to all of them.
        around, visible_around
            The same of the neighbours' mean, where the network is shown it.
        """
        h = self.first(x) * (self.n_genes / visible.clamp(min=1)) + self.first_bias
        if self.around is not None:
            h = h + self.around(around) * (self.n_genes / visible_around.clamp(min=1))
        return self.latent(self.encoder(h))

    def decode(self, z: Tensor, section: Tensor) -> dict[str, Tensor]:
        """Return what the likelihood needs; ``section`` ``(n,)`` is -1 for one that was not in training."""
        h = self.second(z)
        if self.section is not None:
            known = (section >= 0)[:, None]
            h = h + torch.where(known, self.section[section.clamp(min=0)], self.section.mean(dim=0))
        h = self.decoder(h)
        out = self.last(h).float()
        if self.likelihood == "mse":
            return {"value": out}
        found = {"share": torch.softmax(out, dim=1)[:, :-1], "theta": self.log_theta.exp()}
        if self.likelihood == "zinb":
            found["logits"] = self.extra_zero(h).float()
        return found

    def hide(self, x: Tensor, mask: Tensor, around: Tensor | None = None, mask_around: Tensor | None = None) -> Tensor:
        """Return the embedding without the genes in ``mask``, those of the neighbours in ``mask_around``."""
        seen = (~mask).to(x.dtype)
        if around is None:
            return self.encode(x * seen, seen.sum(dim=1, keepdim=True))
        beside = (~mask_around).to(x.dtype)
        return self.encode(
            x * seen, seen.sum(dim=1, keepdim=True), around * beside, beside.sum(dim=1, keepdim=True)
        )  # fmt: skip

    def complete(self, x: Tensor, present: Tensor, around: Tensor | None = None) -> Tensor:
        """Return ``x`` with the genes that the mask ``present`` ``(genes,)`` lacks as predicted from the others.

        A likelihood of counts predicts none of the centred log values that the encoder takes: its genes stay 0, at
        their mean. Scaling up what is left instead, as in training, would magnify its noise with it.
        """
        if self.likelihood != "mse" or bool(present.all()):
            return x
        absent = ~present[None]
        unknown = torch.full((len(x),), -1, device=x.device)
        return torch.where(absent, self.decode(self.hide(x, absent, around, absent), unknown)["value"], x)

    def forward(self, x: Tensor, mask: Tensor, section: Tensor) -> dict[str, Tensor]:
        """Hide the genes in ``mask`` and predict all."""
        return self.decode(self.hide(x, mask), section)

    def loss(self, out: dict[str, Tensor], target: Tensor, depth: Tensor, mask: Tensor) -> Tensor:
        """Return the mean loss over the hidden genes.

        Parameters
        ----------
        out
            What `forward` returned.
        target
            Centred log values for ``"mse"``, counts otherwise ``(n, genes)``.
        depth
            Counts of each row over all genes ``(n, 1)``.
        mask
            True where hidden.
        """
        if self.likelihood == "mse":
            return masked_squared_error(out["value"], target, mask)
        mu = out["share"] * depth
        if self.likelihood == "nb":
            return -masked_mean(nb_log_prob(target, mu, out["theta"]), mask)
        return -masked_mean(zinb_log_prob(target, mu, out["theta"], out["logits"]), mask)


class _Dropout(nn.Dropout):
    """Dropout whose mask is drawn like that of the genes: torch's own takes longer than most layers it follows."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = bernoulli(*x.shape, 1 - self.p, None, x.device)
        return x * (kept.to(x.dtype) / (1 - self.p))


def _tail(dropout: float) -> list[nn.Module]:
    return [nn.SELU(), _Dropout(dropout)]


def _layers(widths: Sequence[int], dropout: float) -> list[nn.Module]:
    return [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), *_tail(dropout))]
