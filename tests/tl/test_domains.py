"""Domains without labels, on sections whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._record import recorded
from histoweave._validate import HistoweaveWarning
from histoweave.models import _domains
from histoweave.pp._graph import ring_graphs


@pytest.fixture(scope="module")
def _complementary():
    """Genes tell regions 1 and 2 apart, the image regions 3 and 4."""
    table = hw.datasets.simulate_section(
        n_rows=16, n_cols=16, n_genes=150, gene_signal=0.8, um_per_px=2.0,
        image_regions=[0, 0, 1, 6], gene_regions=[0, 1, 2, 2], random_state=4,
    )  # fmt: skip
    hw.pp.crops(table, size_um=110, out_px=24)
    hw.tl.image_encoder(table)
    hw.tl.gene_encoder(table, n_components=20)
    return table


@pytest.fixture
def complementary(_complementary):
    return _complementary.copy()


@pytest.fixture
def embedded(sections):
    hw.tl.gene_encoder(sections, n_components=15)
    return sections


def score(table, key="domain"):
    return hw.metrics.clustering(table.obs["region_truth"], table.obs[key])["adjusted_rand"]


@pytest.mark.parametrize("method", ["leiden", "mixture"])
def test_both_modalities_find_what_neither_finds_alone(complementary, method):
    found = {}
    for use in ("X_image", "X_gene", ("X_image", "X_gene")):
        hw.tl.domains(complementary, use=use, n_domains=4, method=method, n_seeds=3)
        found[use] = score(complementary)
    both = found.pop(("X_image", "X_gene"))
    assert both > 0.6
    assert both > max(found.values()) + 0.1


def test_labels_are_not_read(complementary):
    shuffled = complementary.copy()
    shuffled.obs["region"] = np.random.default_rng(0).permutation(shuffled.obs["region"].to_numpy())
    for table in (complementary, shuffled):
        hw.tl.domains(table, n_domains=4, n_seeds=2)
    assert complementary.obs["domain"].equals(shuffled.obs["domain"])


def test_the_seed_repeats_and_the_record_says_how(complementary):
    twin = complementary.copy()
    for table in (complementary, twin):
        assert hw.tl.domains(table, n_seeds=3, random_state=3) is None
    assert complementary.obs["domain"].equals(twin.obs["domain"])
    entry = recorded(complementary, "domain")
    sizes = complementary.obs["domain"].value_counts(sort=False)
    assert entry["rule"] == "resolution given"
    assert entry["resolution"] == 1
    assert entry["n_domains"] == len(sizes)
    assert sizes.index.tolist() == [str(k) for k in range(len(sizes))]
    assert sizes.is_monotonic_decreasing
    assert 0 < entry["stability"] <= 1
    assert entry["random_state"] == 3


def test_criterion_finds_one_domain_in_noise_and_more_in_tissue(complementary):
    complementary.obsm["X_noise"] = np.random.default_rng(0).normal(size=(complementary.n_obs, 4))
    hw.tl.domains(complementary, use="X_noise", method="mixture", n_rings=0, n_seeds=2)
    assert recorded(complementary, "domain")["n_domains"] == 1
    hw.tl.domains(complementary, method="mixture", n_seeds=1)
    entry = recorded(complementary, "domain")
    assert entry["n_domains"] >= 4
    assert entry["rule"] == "Bayesian information criterion"
    assert "stability" not in entry


@pytest.mark.parametrize(("n_regions", "gene_signal", "expected"), [(3, 1.0, 3), (8, 1.0, 8), (8, 0.0, 1)])
def test_criterion_finds_the_number_that_genes_tell_apart(n_regions, gene_signal, expected, monkeypatch):
    table = hw.datasets.simulate_section(
        n_regions=n_regions, gene_signal=gene_signal, image=False, random_state=900
    )  # fmt: skip
    hw.tl.gene_encoder(table)
    asked, mixture = [], _domains.mixture
    monkeypatch.setattr(_domains, "mixture", lambda *a, **k: asked.append(k["shared"]) or mixture(*a, **k))
    hw.tl.domains(table, method="mixture", n_seeds=1)
    assert recorded(table, "domain")["n_domains"] == expected
    ring = ring_graphs(table, n_rings=1)[0].toarray()
    assert asked == [pytest.approx(np.mean([1 + row.sum() for row in ring]))]  # a spot and its neighbours


def test_stability_is_the_mean_agreement_of_single_seeds(complementary):
    from itertools import combinations

    from histoweave._random import child_seeds

    hw.tl.domains(complementary, use="X_gene", n_domains=6, method="mixture", n_seeds=3, random_state=1)
    rings = hw.pp._graph.ring_graphs(complementary, n_rings=1)
    X = _domains.smooth_components(
        complementary.obsm["X_gene"], {"s": np.arange(complementary.n_obs)}, rings, n_components=15
    )
    runs = [_domains.mixture(X, 6, seed)[0] for seed in child_seeds(1, 3)]
    pairs = [hw.metrics.clustering(a, b)["adjusted_rand"] for a, b in combinations(runs, 2)]
    assert recorded(complementary, "domain")["stability"] == pytest.approx(np.mean(pairs))


def test_domains_go_across_sections(embedded):
    hw.tl.domains(embedded, n_domains=3, n_seeds=3)
    assert score(embedded) > 0.5
    per_section = pd.crosstab(embedded.obs["library_id"], embedded.obs["domain"])
    assert (per_section > 0).all(axis=None)


def test_rows_without_one_modality_are_placed_by_the_other(complementary):
    complementary.obsm["X_image"][::5] = np.nan
    for method in ("leiden", "mixture"):
        with pytest.warns(HistoweaveWarning, match="have no 'X_image'"):
            hw.tl.domains(complementary, n_domains=4, method=method, n_seeds=3)
        assert complementary.obs["domain"].notna().all()
        assert score(complementary) > 0.5
        without = complementary[::5]
        genes = without.obs["region_truth"].astype(str).replace({"region_4": "region_3"})  # what genes can tell
        assert hw.metrics.clustering(genes, without.obs["domain"])["homogeneity"] > 0.5


def test_rows_without_anything_get_no_domain(embedded):
    embedded.obsm["X_gene"][[4, 250]] = np.nan
    with pytest.warns(HistoweaveWarning, match="2 of 400 rows have none"):
        hw.tl.domains(embedded, n_domains=3, n_seeds=1)
    assert np.flatnonzero(embedded.obs["domain"].isna()).tolist() == [4, 250]


def test_rows_without_positions(embedded):
    del embedded.obsm["spatial"], embedded.obs["array_row"], embedded.obs["array_col"]
    hw.tl.domains(embedded, n_domains=3, n_rings=0, n_seeds=1, key_added="cluster")
    assert embedded.obs["cluster"].nunique() == 3
    with pytest.raises(KeyError, match="spatial_key"):
        hw.tl.domains(embedded, n_domains=3)


def test_copy_leaves_the_table_alone(embedded):
    before = embedded.copy()
    out = hw.tl.domains(embedded, n_domains=2, n_seeds=1, copy=True)
    assert "domain" in out.obs
    assert list(embedded.obs) == list(before.obs)
    np.testing.assert_array_equal(embedded.obsm["X_gene"], before.obsm["X_gene"])
    assert "domain" not in embedded.uns["histoweave"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"use": "X_imgae"}, KeyError, "X_imgae.*Run `hw.tl.image_encoder"),
        ({"use": []}, ValueError, "names no representation.*X_gene"),
        ({"method": "louvain"}, ValueError, "'leiden', 'mixture'"),
        ({"n_domains": 0}, ValueError, "n_domains"),
        ({"n_domains": 2.5}, TypeError, "n_domains.*integer"),
        ({"n_domains": 401}, ValueError, "401 rows or more"),
        ({"resolution": 0}, ValueError, "resolution"),
        ({"n_rings": -1}, ValueError, "n_rings"),
        ({"n_seeds": 0}, ValueError, "n_seeds"),
    ],
)
def test_bad_arguments(embedded, arguments, error, words):
    before = list(embedded.obs)
    with pytest.raises(error, match=words):
        hw.tl.domains(embedded, **arguments)
    assert list(embedded.obs) == before


def test_bad_representations(embedded):
    embedded.obsm["X_image"] = np.full((400, 3), np.nan)
    with pytest.raises(ValueError, match="'X_image'.*NaN in every row"):
        hw.tl.domains(embedded, n_domains=3)
    embedded.obsm["X_image"] = np.ones((400, 3))
    embedded.obsm["X_image"][:200] = np.nan
    embedded.obsm["X_gene"][200:] = np.nan
    with (
        pytest.raises(ValueError, match="no representation .* in common"),
        pytest.warns(HistoweaveWarning, match="have no"),
    ):
        hw.tl.domains(embedded, n_domains=3)
    embedded.obsm["X_gene"][0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        hw.tl.domains(embedded, use="X_gene", n_domains=3)
