"""Ring means against a naive loop, missing modalities and borders."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.pp._context import context_features, own_values
from histoweave.pp._graph import ring_graphs


def strip(n: int = 6) -> AnnData:
    obs = pd.DataFrame({"library_id": "s", "array_row": 0, "array_col": np.arange(n)}, index=[str(i) for i in range(n)])
    uns = {"spatial": {"s": {"metadata": {"array_grid": "square"}, "scalefactors": {}}}}
    return AnnData(obs=obs, obsm={"X_gene": np.arange(n, dtype=np.float32)[:, None]}, uns=uns)


def naive(X: np.ndarray, rings: list[sp.csr_matrix]) -> np.ndarray:
    out = np.full((len(X), X.shape[1] * (1 + len(rings))), np.nan, dtype=np.float32)
    for i, own in enumerate(X):
        if np.isnan(own).any():
            continue
        parts = [own]
        for ring in rings:
            near = [X[j] for j in ring[i].indices if not np.isnan(X[j]).any()]
            parts.append(np.mean(near, axis=0) if near else parts[-1])
        out[i] = np.concatenate(parts)
    return out


def test_equals_naive_loop() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 5)).astype(np.float32)
    X[rng.choice(40, 6, replace=False)] = np.nan
    rings = [sp.csr_matrix(np.triu(rng.random((40, 40)) < 0.06, 1)) for _ in range(3)]
    rings = [(ring + ring.T).tocsr() for ring in rings]
    np.testing.assert_allclose(context_features(X, rings), naive(X, rings), rtol=1e-5, atol=1e-6)


def test_strip_by_hand() -> None:
    table = strip()
    hw.pp.spatial_context(table, keys="X_gene")
    np.testing.assert_allclose(table.obsm["X_gene_context"][0], [0, 1, 2])
    np.testing.assert_allclose(table.obsm["X_gene_context"][2], [2, 2, (0 + 4) / 2])
    np.testing.assert_array_equal(table.obsp["spatial_connectivities"].toarray(), ring_graphs(table)[0].toarray())
    assert table.uns["histoweave"]["X_gene_context"]["params"]["n_rings"] == 2


def test_default_keys_take_what_is_there_and_copy_leaves_the_original() -> None:
    table = strip()
    out = hw.pp.spatial_context(table, n_rings=1, copy=True)
    assert out.obsm["X_gene_context"].shape == (6, 2)
    assert out.obsm["X_gene_context"].dtype == np.float32
    assert list(table.obsm) == ["X_gene"]
    assert not table.obsp
    with pytest.raises(KeyError, match="X_image"):
        hw.pp.spatial_context(table, keys=["X_image"])
    with pytest.raises(ValueError, match="key_added"):
        hw.pp.spatial_context(table, keys="X_gene", key_added=["a", "b"])


def test_lonely_spot_is_stated_and_partial_nan_is_refused() -> None:
    table = strip()[[0, 1, 5]].copy()
    with pytest.warns(HistoweaveWarning, match="1 of 3 spots"):
        hw.pp.spatial_context(table, keys="X_gene")
    np.testing.assert_allclose(table.obsm["X_gene_context"][2], [5, 5, 5])
    table.obsm["X_two"] = np.array([[0, 1], [np.nan, 1], [2, 3]])
    before = list(table.obsm)
    with pytest.raises(ValueError, match="NaN"):
        hw.pp.spatial_context(table, keys="X_two")
    assert list(table.obsm) == before


@pytest.mark.parametrize("n_rings", [0, 1, 3])
def test_own_values_come_back_from_context(n_rings):
    X, ring = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), sp.csr_matrix(~np.eye(5, dtype=bool))
    np.testing.assert_array_equal(own_values(context_features(X, [ring] * n_rings), n_rings), X)
