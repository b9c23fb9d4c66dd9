"""An untrained network embeds and reconstructs as principal components do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import histoweave as hw
from histoweave.models.gene_autoencoder._data import Expression, Rows
from histoweave.models.gene_autoencoder._module import GeneNetwork
from histoweave.models.gene_autoencoder._start import start_at_components, start_at_mean


@pytest.fixture(scope="module")
def rows():
    table = hw.datasets.simulate_section(n_rows=16, n_cols=16, n_genes=90, image=False)
    expression = Expression(table, list(table.var_names), None, "library_id")
    rows = Rows(expression, target_sum=expression.median_depth(), centre=True)
    return rows.to("cpu", loading="dense")


@pytest.fixture(scope="module")
def values(rows):
    return rows.log_batch(torch.arange(len(rows.usable)))


def started(rows, widths, n_latent=6, seed=0, **options):
    torch.manual_seed(0)
    network = GeneNetwork(90, 1, widths=widths, n_latent=n_latent, dropout=0.0, **{"likelihood": "mse"} | options)
    start_at_mean(network, rows)
    start_at_components(network, rows, seed)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("widths", [(64,), (64, 32), (80, 64, 32)])
def test_embedding_is_the_whitened_components(rows, values, widths):
    z = started(rows, widths).encode(values, torch.full((len(values), 1), 90)).numpy()
    scores = PCA(6).fit_transform(values.numpy())
    r = np.abs(np.corrcoef(z.T, scores.T)[:6, 6:])
    assert (r.diagonal() > 0.9).all()
    assert (r - np.diag(r.diagonal()) < 0.3).all()


def test_decoder_is_shown_the_components_and_starts_at_the_mean(rows, values):
    network = started(rows, (64, 32))
    z = network.encode(values, torch.full((len(values), 1), 90))
    h = network.decoder(network.second(z))
    r = np.corrcoef(h.T, z.T)[:64, 64:]
    assert (r[:6].diagonal() > 0.9).all()
    assert (r[6:12].diagonal() < -0.9).all()
    found = network.decode(z, torch.zeros(len(values)).long())["value"]
    assert found.square().mean() < 0.1 * values.square().mean()


def test_neighbours_count_as_much_as_the_spot(rows, values):
    network = started(rows, (64, 32), neighbours=True)
    torch.testing.assert_close(network.around.weight[:12], network.first.weight[:12])
    everything = torch.full((len(values), 1), 90)
    both = network.encode(values, everything, values, everything)
    alone = started(rows, (64, 32)).encode(values, everything)
    assert (np.corrcoef(both.T, alone.T)[:6, 6:].diagonal() > 0.9).all()


def test_same_seed_same_start_and_narrow_networks_take_what_fits(rows):
    a, b = started(rows, (64, 32)), started(rows, (64, 32))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    narrow = started(rows, (10,), n_latent=8)  # five components fit, the other dimensions stay random
    assert torch.equal(narrow.first.weight[:5], -narrow.first.weight[5:10])
    assert narrow.latent.weight[5:].abs().min() > 0
