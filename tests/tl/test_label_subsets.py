"""Subsets of the labels: nested, every class in them, patches that hang together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse.csgraph import connected_components

from histoweave.pp._graph import ring_graphs
from histoweave.tl._label_subsets import grow, nested_subset

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


@pytest.fixture
def tissue(sections):
    """Labels with gaps, the neighbourhoods of spots, and their sections."""
    labels = sections.obs["region"].astype(object)
    labels.iloc[::13] = None
    return labels, ring_graphs(sections, n_rings=1)[0], sections.obs["library_id"].astype(str).to_numpy()


def n_parts(neighbours, rows) -> int:
    return connected_components(neighbours[rows][:, rows], directed=False)[0]


def test_small_shares_of_the_labels_lie_within_larger_ones():
    labels = pd.Series(["a"] * 60 + ["b"] * 30 + ["c"] * 2 + [None] * 8)
    kept = {f: nested_subset(labels, f, np.random.default_rng(5)) for f in (0.01, 0.1, 0.5, 1.0)}
    assert kept[0.01].value_counts().to_dict() == {"a": 1, "b": 1, "c": 1}
    assert kept[0.1].value_counts().to_dict() == {"a": 6, "b": 3, "c": 1}
    assert kept[1.0].equals(labels)
    chosen = [set(k.dropna().index) for k in kept.values()]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert not nested_subset(labels, 0.5, np.random.default_rng(6)).equals(kept[0.5])


@pytest.mark.parametrize("seed", [0, 1])
def test_patches_are_nested_and_as_large_as_random_subsets(tissue, seed):
    labels, neighbours, section = tissue
    before = None
    for fraction in FRACTIONS:
        rng = np.random.default_rng(seed)
        kept = nested_subset(labels, fraction, rng, neighbours=neighbours, section=section)
        spots = nested_subset(labels, fraction, np.random.default_rng(seed))
        assert kept.value_counts().to_dict() == spots.value_counts().to_dict()
        assert kept.dropna().equals(labels[kept.notna()])
        assert before is None or set(before.dropna().index) < set(kept.dropna().index)
        before = kept
    assert before.equals(labels)


def test_patches_hang_together_where_the_tissue_of_their_class_does(tissue):
    labels, neighbours, section = tissue
    kept = nested_subset(labels, 0.3, np.random.default_rng(0), neighbours=neighbours, section=section)
    scattered = nested_subset(labels, 0.3, np.random.default_rng(0))
    in_patches, at_random = 0, 0
    for region in labels.dropna().unique():
        for name in np.unique(section):
            there = np.flatnonzero((labels == region) & (section == name))
            rows = np.flatnonzero((kept == region) & (section == name))
            assert abs(len(rows) - 0.3 * len(there)) < 2  # every section has its share
            _, of = connected_components(neighbours[there][:, there], directed=False)
            touched = of[np.isin(there, rows)]
            # one patch an island, and an island is full before the next is begun
            assert n_parts(neighbours, rows) == len(np.unique(touched))
            full = [np.sum(touched == k) == np.sum(of == k) for k in np.unique(touched)]
            assert sum(full) >= len(full) - 1
            in_patches += n_parts(neighbours, rows)
            at_random += n_parts(neighbours, np.flatnonzero((scattered == region) & (section == name)))
    assert in_patches < at_random / 2


def test_a_single_label_goes_to_one_section(tissue):
    labels, neighbours, section = tissue
    for seed in range(3):
        kept = nested_subset(labels, 1e-6, np.random.default_rng(seed), neighbours=neighbours, section=section)
        assert kept.value_counts().eq(1).all()
        assert kept.nunique() == labels.nunique()


def test_growth_is_connected_at_any_time_and_compact(sections):
    neighbours = ring_graphs(sections, n_rings=1)[0][:100, :100]  # one section, 10 x 10
    order = grow(neighbours, [37, 0])
    assert order[0] == 37
    assert sorted(order) == list(range(100))
    for n in range(1, 101):
        assert n_parts(neighbours, order[:n]) == 1
    xy = sections.obsm["spatial"][:100]
    spread = np.linalg.norm(xy[order[:19]] - xy[37], axis=1).max() / 50  # in pitches; a disc of two rings has 19 spots
    assert spread <= 3.01


def test_another_seed_draws_other_patches(tissue):
    labels, neighbours, section = tissue
    first, again, other = (
        nested_subset(labels, 0.1, np.random.default_rng(seed), neighbours=neighbours, section=section)
        for seed in (0, 0, 1)
    )
    assert first.equals(again)
    assert not first.equals(other)
