"""Similar rows against distances written out, and what their answers are worth where sections differ."""

from __future__ import annotations

import numpy as np
import pytest

import histoweave as hw
from histoweave.models import FusionClassifier
from histoweave.models._similar import N_SIMILAR, answer_neighbours, similar_rows
from histoweave.pp._graph import ring_graphs


def test_rows_are_joined_with_the_nearest_of_their_section():
    rng = np.random.default_rng(0)
    X, section = rng.normal(size=(60, 4)), np.repeat([0, 1], [45, 15])
    X[7] = np.nan
    among = rng.random(60) < 0.8
    found = similar_rows(X, {name: np.flatnonzero(section == name) for name in (0, 1)}, among)
    expected = np.zeros((60, 60), dtype=bool)
    for i in range(60):
        others = [j for j in range(60) if j not in (i, 7) and among[j] and among[i] and section[j] == section[i]]
        near = sorted(others, key=lambda j: np.linalg.norm(X[i] - X[j]))[:N_SIMILAR] if i != 7 else []
        expected[i, near] = expected[near, i] = True
    np.testing.assert_array_equal(found.toarray(), expected)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows_have_few_neighbours(n):
    X = np.arange(4.0)[:, None]
    X[n:] = np.nan
    found = similar_rows(X, {"a": np.arange(4)})
    assert found.shape == (4, 4)
    assert found.nnz == (2 if n == 2 else 0)


def test_neighbours_are_those_that_the_smoothing_asks_for():
    table = hw.datasets.simulate_sections(2, n_rows=6, n_cols=6, image=False)
    embeddings = {"gene": np.random.default_rng(0).normal(size=(72, 3))}
    assert answer_neighbours(None, table, embeddings) is None
    for kind in ("potts", "vote"):
        assert (answer_neighbours(kind, table, embeddings) != ring_graphs(table, n_rings=1)[0]).nnz == 0
    found = answer_neighbours("similar", table, embeddings)
    assert list(found) == ["gene"]
    del table.obsm["spatial"]
    assert answer_neighbours("vote", table, embeddings).nnz  # array positions do
    del table.obs["array_row"], table.obs["array_col"]
    assert (answer_neighbours("similar", table, embeddings)["gene"] != found["gene"]).nnz == 0
    with pytest.raises(KeyError, match="spatial_key='spatial'"):
        answer_neighbours("vote", table, embeddings)


def clouds(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two clouds, told dimly by one column in every section and well by eight in a way of the section's own."""
    y = rng.integers(0, 2, 150)
    X = rng.normal(size=(150, 9)) + y[:, None] * np.append(1.0, rng.choice([-3.0, 3.0], 8))
    return X.astype(np.float32), y


def test_similar_rows_help_where_what_tells_them_differs_between_sections():
    rng = np.random.default_rng(0)
    X, y = (np.concatenate(part) for part in zip(*(clouds(rng) for _ in range(8)), strict=True))
    group, labels = np.repeat(np.arange(8), 150), y.astype(str)
    graph = similar_rows(X, {str(g): np.flatnonzero(group == g) for g in range(8)})
    plain = FusionClassifier(heads="linear").fit({"gene": X}, labels, groups=group)
    clf = FusionClassifier(heads="linear", smoothing="similar").fit({"gene": X}, labels, groups=group, graph=graph)
    assert clf.history["smoothing_strength"][0] > 0
    assert clf.history["macro_f1"][0] > clf.history["macro_f1_before"][0] + 0.02
    gains = []
    for _ in range(5):
        new, truth = clouds(rng)
        near = similar_rows(new, {"new": np.arange(150)})
        smooth, rough = clf.predict({"gene": new}, graph=near), plain.predict({"gene": new})
        gains.append(
            (smooth["predicted"] == truth.astype(str)).mean() - (rough["predicted"] == truth.astype(str)).mean()
        )
    assert np.mean(gains) > 0.02


def test_each_subset_of_modalities_follows_its_own_neighbours():
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 100)
    blocks = {name: (rng.normal(size=(200, 2)) + y[:, None]).astype(np.float32) for name in ("image", "gene")}
    everyone = {"a": np.arange(200)}
    graphs = {name: similar_rows(values, everyone) for name, values in blocks.items()}
    clf = FusionClassifier(heads="linear", smoothing="similar").fit(blocks, y.astype(str), graph=graphs)
    alone = clf.predict_proba(blocks, modalities=["image"], graph=graphs)
    np.testing.assert_array_equal(alone, clf.predict_proba(blocks, modalities=["image"], graph=graphs["image"]))
    both = clf.predict_proba(blocks, graph=graphs)
    np.testing.assert_array_equal(both, clf.predict_proba(blocks, graph=graphs["image"] + graphs["gene"]))
    with pytest.raises(ValueError, match=r"`graph` must be .* \(200, 200\)"):
        clf.predict_proba(blocks, graph={"image": graphs["image"][:50], "gene": graphs["gene"]})
    with pytest.raises(ValueError, match="`graph` lacks 'gene'"):
        clf.predict_proba(blocks, graph={"image": graphs["image"]})
