"""Neighbours shown, and sections forgotten, on simulated tissue: what is gained, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import GeneAutoencoder
from histoweave.models.gene_autoencoder._correction import Discrepancy
from histoweave.pp._graph import ring_graphs

SMALL = {"n_latent": 10, "widths": (48,), "max_epochs": 25, "patience": None}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads, hw.settings.progress = torch.get_num_threads(), False
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    hw.settings.progress = True


def readable(Z, y) -> float:
    Z = (Z - Z.mean(axis=0)) / Z.std(axis=0)
    return float(cross_val_score(LogisticRegression(max_iter=500), Z, y, cv=4, scoring="balanced_accuracy").mean())


@pytest.fixture(scope="module")
def batches():
    """Two sections that differ in every gene."""
    return hw.datasets.simulate_sections(
        2, n_rows=13, n_cols=13, n_genes=100, n_regions=3, image=False, batch_effect=0.6, gene_signal=1.5
    )


@pytest.fixture(scope="module")
def uncorrected(batches):
    return GeneAutoencoder(**SMALL, centre=False).fit_embed(batches)


def test_the_section_is_forgotten_and_the_region_is_not(batches, uncorrected):
    Z = GeneAutoencoder(**SMALL, centre=False, batch_correction="mmd").fit_embed(batches)
    section, region = batches.obs["library_id"].astype(str), batches.obs["region_truth"].astype(str)
    assert readable(uncorrected, section) > 0.95
    assert readable(Z, section) < readable(uncorrected, section) - 0.05
    assert readable(Z, region) > readable(uncorrected, region) - 0.1


def test_one_section_as_its_own_batch_is_told(section):
    model = GeneAutoencoder(**SMALL | {"max_epochs": 1}, batch_correction="mmd")
    with pytest.warns(HistoweaveWarning, match="needs two sections"):
        model.fit(section)
    plain = GeneAutoencoder(**SMALL | {"max_epochs": 1}).fit_embed(section)
    np.testing.assert_array_equal(model.embed(section), plain)


def test_discrepancy_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    z, section = torch.randn(12, 3, generator=generator), torch.arange(12) % 2
    a, b = z[section == 0].numpy(), z[section == 1].numpy()
    scale = np.median([np.square(x - y).sum() for x in z.numpy() for y in z.numpy()])

    def mean_kernel(p, q):
        distances = np.array([[np.square(x - y).sum() for y in q] for x in p])
        return np.mean([np.exp(-distances / (f * scale)).mean() for f in (0.5, 1.0, 2.0)])

    expected = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
    found = Discrepancy()(z, section, 1.0)
    assert float(found) == pytest.approx(expected, abs=0.02)  # torch takes the lower of two middle distances
    assert float(Discrepancy()(z, torch.zeros(12), 1.0)) == 0


def test_neighbours_help_where_spots_are_shallow():
    options = {"n_rows": 13, "n_cols": 13, "n_genes": 100, "n_regions": 3, "image": False, "depth": 60}
    shallow = hw.datasets.simulate_sections(2, **options)
    region = shallow.obs["region_truth"].astype(str).to_numpy()
    alone = GeneAutoencoder(**SMALL).fit(shallow)
    shown = GeneAutoencoder(**SMALL, neighbours=True).fit(shallow)
    assert readable(shown.embed(shallow), region) > readable(alone.embed(shallow), region) + 0.03


def test_neighbours_are_the_mean_of_ring_one_and_need_positions(section):
    model = GeneAutoencoder(**SMALL | {"max_epochs": 1}, neighbours=True, centre=False, loading="sparse").fit(section)
    rows = model._rows(model._aligned(section, None, "library_id"))
    around = rows.around_batch(torch.arange(5)).numpy()
    ring = ring_graphs(section, n_rings=1)[0]
    values = rows.log.toarray() - rows.means[0]
    for i in range(5):
        np.testing.assert_allclose(around[i], values[ring[i].indices].mean(axis=0), atol=1e-5)
    genes = model.genes[:3]
    spoiled = section.copy()
    counts = spoiled.layers["counts"].tolil()
    at = [section.var_names.get_loc(g) for g in genes]
    counts[:, at] = counts[:, at[::-1]]  # hidden genes change places: depth stays, and no other gene sees it
    spoiled.layers["counts"] = counts.tocsr()
    np.testing.assert_allclose(
        model.impute(spoiled, genes=genes[::2]), model.impute(section, genes=genes[::2]), atol=1e-5
    )
    del section.obsm["spatial"], section.obs["array_row"]
    with pytest.raises(KeyError, match="spatial_key"):
        model.embed(section)
