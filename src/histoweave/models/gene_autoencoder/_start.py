"""Where a training starts: at the principal components, so that few spots do not have to find them again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from histoweave.models.gene_autoencoder._counts import column_sums
from histoweave.models.gene_autoencoder._data import Rows
from histoweave.models.gene_autoencoder._module import GeneNetwork

MAX_ROWS = 10_000  # components of a sample this large have settled
SLOPE = 2.8088  # of selu(a) - selu(-a) at 0: two units of opposite sign pass a value on nearly as it is
REST = 0.1  # what is left of the random weights of the units that pass components on


def start_at_mean(network: GeneNetwork, rows: Rows) -> None:
    """Let the decoder start close to the genes' means instead of having to learn them first."""
    with torch.no_grad():
        network.last.weight.mul_(0.1)
        if network.likelihood == "mse":
            return  # centred values have mean 0
        total = column_sums(rows.counts, np.flatnonzero(rows.usable))
        depth = float(rows.depth[torch.from_numpy(rows.usable)].sum(dtype=torch.float64))
        share = np.append(np.maximum(total, 0.5), max(depth - total.sum(), 0.5)) / depth
        network.last.bias.copy_(torch.from_numpy(np.log(share)))


def start_at_components(network: GeneNetwork, rows: Rows, seed: int) -> None:
    """Let the embedding start as the principal components of the centred log values.

    Each component goes through two units of opposite sign in every hidden layer, of the decoder too. Its last layer
    still starts at the genes' means: started at what the components reconstruct, it fits the training sections better
    and predicts the genes of new patients worse. What is left of the random weights, and units to spare, are free to
    learn the rest.

    Parameters
    ----------
    network
        An untrained network, changed in place.
    rows
        What it will be trained on.
    seed
        Seed of the sample of rows and of the decomposition.
    """
    widths = [layer.out_features for layer in (network.first, *_linear(network.encoder))]
    usable = np.flatnonzero(rows.usable)
    k = min(network.latent.out_features, min(widths) // 2, len(usable) - 1, network.n_genes - 1)
    if k < 1:
        return
    whitening = torch.from_numpy(_whitening(rows, usable, k, seed).astype(np.float32))
    with torch.no_grad():
        inputs = [network.first] if network.around is None else [network.first, network.around]
        for layer in inputs:  # neighbours count as much as the spot
            _set_pairs(layer.weight, whitening / len(inputs))
        for layer in (*_linear(network.encoder), *_linear(network.decoder)):
            layer.weight.mul_(REST)[: 2 * k] = 0
            _set_pairs(layer.weight[:, : 2 * k], _difference(k))
        network.latent.weight.mul_(REST)[:k] = 0
        network.latent.weight[:k, : 2 * k] = _difference(k)
        network.second.weight.mul_(REST)[: 2 * k] = 0
        _set_pairs(network.second.weight[:, :k], torch.eye(k))


def _whitening(rows: Rows, usable: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the weights that make components of variance 1 ``(k, genes)``."""
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    if len(usable) > MAX_ROWS:
        usable = np.sort(np.random.default_rng(seed).choice(usable, MAX_ROWS, replace=False))
    values = rows.log_batch(torch.from_numpy(usable).to(rows.device)).cpu().numpy()
    with threadpool_limits(1):  # sums in a fixed order: the same seed gives the same start
        _, s, axes = randomized_svd(values, k, random_state=seed)
    return axes / np.maximum(s / np.sqrt(len(values)), 1e-6)[:, None]


def _set_pairs(weight: Tensor, values: Tensor) -> None:
    """Let the first units be given these weights, and as many next ones the opposite."""
    k = len(values)
    weight[:k], weight[k : 2 * k] = values, -values


def _difference(k: int) -> Tensor:
    """Return what takes ``k`` values back from their pairs ``(k, 2 * k)``."""
    return torch.cat([torch.eye(k), -torch.eye(k)], dim=1) / SLOPE


def _linear(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
