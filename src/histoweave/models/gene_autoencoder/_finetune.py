"""From gene values to logits in one differentiable piece, and how it is tuned on few labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from histoweave._random import torch_generator, torch_seed
from histoweave.models._pca import LinearMap
from histoweave.models.fusion._heads import LinearHead
from histoweave.models.gene_autoencoder._module import GeneNetwork

ABSENT = -20.0  # logit offset of a class without training rows: next to impossible, yet finite


class Adapter(nn.Module):
    """A residual bottleneck that starts as the identity (Houlsby et al., 2019, ICML)."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Return ``(n, width)``."""
        return h + self.up(torch.selu(self.down(h)))


class TunedEncoder(nn.Module):
    """A copy of a trained encoder, with an adapter behind each hidden layer and the embedding, or without.

    Parameters
    ----------
    network
        The trained network; its encoder is copied, and genes that a table lacks are what it predicts.
    bottleneck
        Width of the adapters, 0 for none.
    """

    def __init__(self, network: GeneNetwork, bottleneck: int) -> None:
        super().__init__()
        self._complete = network.complete
        self.first, self.first_bias, latent = map(deepcopy, (network.first, network.first_bias, network.latent))
        layers, width = [], self.first.out_features
        for layer in [*deepcopy(network.encoder), latent]:
            width = getattr(layer, "out_features", width)
            layers.append(layer)
            if bottleneck and (isinstance(layer, nn.Dropout) or layer is latent):
                layers.append(Adapter(width, bottleneck))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Embed centred log values ``(n, genes)``, of which those in the mask ``(genes,)`` are known, the others 0."""
        return self.layers(self.first(self._complete(x, present)) + self.first_bias)


class LinearEncoder(nn.Module):
    """Principal components as a module; genes that are not visible are left out of the projection."""

    def __init__(self, linear_map: LinearMap) -> None:
        super().__init__()
        self._map = linear_map

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Project centred log values ``(n, genes)``."""
        weights = torch.from_numpy(self._map.weights(present.cpu().numpy())).to(x)
        return (x - torch.from_numpy(self._map.mean).to(x)) @ weights.T


class GeneLogits(nn.Module):
    """An encoder under a linear head.

    Parameters
    ----------
    encoder
        Embeds ``(n, genes)``.
    n_features
        Dimensions of all views' embeddings together.
    n_classes
        Number of classes.
    """

    def __init__(self, encoder: nn.Module, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(n_features, n_classes)

    def embed(self, x: Tensor, present: Tensor) -> Tensor:
        """Return the embeddings of all views ``(n, views, genes)`` side by side."""
        return self.encoder(x.flatten(0, 1), present).reshape(len(x), -1)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` that sum to 0: only their differences mean anything."""
        logits = self.head(self.embed(x, present))
        return logits - logits.mean(dim=1, keepdim=True)

    def take_head(self, head: LinearHead) -> GeneLogits:
        """Take the weights of a fitted head, its standardisation folded in."""
        weight = head.coef / head.sd
        bias = np.maximum(head.intercept, ABSENT) - weight @ head.mean
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weight))
            self.head.bias.copy_(torch.from_numpy(bias))
        return self


def tune(
    network: GeneLogits,
    batch_of: Callable[[np.ndarray], Tensor],
    present: Tensor,
    rows: np.ndarray,
    codes: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    label_smoothing: float,
    batch_size: int,
    seed: int,
    held_out: Sequence[int] | np.ndarray = (),
) -> tuple[list[float], list[float]]:
    """Train in place what requires gradients; return the training and held-out loss before and after every epoch.

    Parameters
    ----------
    network
        The network.
    batch_of
        Returns ``(n, views, genes)`` for row numbers.
    present
        Mask of the visible genes.
    rows
        Row numbers to train on.
    codes
        Class number of every row.
    epochs, learning_rate, weight_decay, label_smoothing, batch_size
        Of AdamW and the class-balanced cross-entropy.
    seed
        Seed of order and dropout.
    held_out
        Row numbers to score.
    """
    n_classes = network.head.out_features
    sizes = np.bincount(codes[rows], minlength=n_classes)
    weight = np.where(sizes > 0, len(rows) / np.maximum(sizes, 1) / max((sizes > 0).sum(), 1), 0)
    weight = torch.from_numpy(weight).float().to(present.device)
    target = torch.from_numpy(codes).to(present.device)
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], learning_rate, weight_decay=weight_decay
    )
    generator = torch_generator(seed)
    train_loss, held_out_loss = [np.nan], [_balanced_loss(network, batch_of, present, held_out, target)]
    with torch_seed(seed):
        for _ in range(epochs):
            network.train()
            order = rows[torch.randperm(len(rows), generator=generator).numpy()]
            total = 0.0
            for part in np.array_split(order, max(1, round(len(order) / batch_size))):
                loss = nn.functional.cross_entropy(
                    network(batch_of(part), present), target[part], weight, label_smoothing=label_smoothing
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(part)
            network.eval()
            train_loss.append(total / len(rows))
            held_out_loss.append(_balanced_loss(network, batch_of, present, held_out, target))
    return train_loss, held_out_loss


@torch.no_grad()
def _balanced_loss(
    network: GeneLogits, batch_of: Callable[[np.ndarray], Tensor], present: Tensor, rows: np.ndarray, target: Tensor
) -> float:  # fmt: skip
    """Log loss, every class counting the same."""
    if not len(rows):
        return np.nan
    parts = np.array_split(rows, -(-len(rows) // 1024))
    loss = torch.cat(
        [nn.functional.cross_entropy(network(batch_of(p), present), target[p], reduction="none") for p in parts]
    )
    sizes = torch.bincount(target[rows])
    weight = 1.0 / sizes[target[rows]]
    return float((weight * loss).sum() / weight.sum())
