"""Rings of the array neighbourhood, against squidpy and a naive breadth-first search."""

from __future__ import annotations

from collections import deque

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from histoweave._validate import HistoweaveWarning
from histoweave.pp._graph import ring_graphs


def grid_table(kind: str, n_row: int = 9, n_col: int = 8, name: str = "s1", *, metadata: bool = True) -> AnnData:
    row, col = (a.ravel() for a in np.meshgrid(np.arange(n_row), np.arange(n_col), indexing="ij"))
    if kind == "hex":
        col = 2 * col + row % 2
        xy = np.stack([col * 50.0, row * 50 * np.sqrt(3)], axis=1)
    else:
        xy = np.stack([col * 100.0, row * 100.0], axis=1)
    obs = pd.DataFrame(
        {"library_id": name, "array_row": row, "array_col": col},
        index=[f"{name}-{i}" for i in range(len(row))],
    )
    meta = {"array_grid": kind, "array_pitch_um": 100.0} if metadata else {}
    return AnnData(obs=obs, obsm={"spatial": xy}, uns={"spatial": {name: {"metadata": meta, "scalefactors": {}}}})


def naive_rings(position: np.ndarray, kind: str, n_rings: int) -> list[np.ndarray]:
    """Breadth-first search over the endless array, spots or not."""
    steps = (
        [(0, 2), (0, -2), (1, 1), (1, -1), (-1, 1), (-1, -1)] if kind == "hex" else [(0, 1), (0, -1), (1, 0), (-1, 0)]
    )
    index = {tuple(p): i for i, p in enumerate(position)}
    rings = [np.zeros((len(position),) * 2, dtype=bool) for _ in range(n_rings)]
    for start, i in index.items():
        depth, queue = {start: 0}, deque([start])
        while queue:
            at = queue.popleft()
            if depth[at] == n_rings:
                continue
            for dr, dc in steps:
                new = (at[0] + dr, at[1] + dc)
                if new not in depth:
                    depth[new] = depth[at] + 1
                    queue.append(new)
                    if new in index:
                        rings[depth[new] - 1][i, index[new]] = True
    return rings


@pytest.mark.parametrize(("kind", "n_neighs"), [("hex", 6), ("square", 4)])
def test_complete_grid_equals_squidpy(kind: str, n_neighs: int) -> None:
    from squidpy.gr import spatial_neighbors_grid

    table = grid_table(kind)
    rings = ring_graphs(table, n_rings=2)
    one = spatial_neighbors_grid(table, n_neighs=n_neighs, n_rings=1, copy=True).connectivities
    np.testing.assert_array_equal(rings[0].toarray(), one.toarray() > 0)
    two = spatial_neighbors_grid(table, n_neighs=n_neighs, n_rings=2, copy=True).connectivities
    np.testing.assert_array_equal((rings[0] + rings[1]).toarray() > 0, two.toarray() > 0)


@pytest.mark.parametrize("kind", ["hex", "square"])
def test_rings_with_holes_equal_breadth_first_search(kind: str) -> None:
    table = grid_table(kind)[np.random.default_rng(0).permutation(72)[:50]].copy()
    truth = naive_rings(table.obs[["array_row", "array_col"]].to_numpy(), kind, 3)
    for ring, expected in zip(ring_graphs(table, n_rings=3), truth, strict=True):
        np.testing.assert_array_equal(ring.toarray(), expected)


def test_grid_kind_is_read_from_positions_when_not_recorded() -> None:
    for kind in ("hex", "square"):
        known, unknown = grid_table(kind), grid_table(kind, metadata=False)
        assert (ring_graphs(known)[1] != ring_graphs(unknown)[1]).nnz == 0


def test_sections_are_never_joined_and_row_order_does_not_matter() -> None:
    import anndata as ad

    table = ad.concat([grid_table("hex", name="s1"), grid_table("hex", 5, 5, name="s2")], uns_merge="unique")
    order = np.random.default_rng(1).permutation(table.n_obs)
    shuffled = table[order].copy()
    for ring, mixed in zip(ring_graphs(table), ring_graphs(shuffled), strict=True):
        assert (ring[order][:, order] != mixed).nnz == 0
        rows, cols = mixed.nonzero()
        assert (shuffled.obs["library_id"].to_numpy()[rows] == shuffled.obs["library_id"].to_numpy()[cols]).all()


def test_coordinates_alone_give_symmetric_disjoint_rings_that_do_not_cross_gaps() -> None:
    rng = np.random.default_rng(0)
    xy = np.concatenate([rng.uniform(0, 10, (60, 2)), rng.uniform([100, 0], [110, 10], (60, 2))])
    table = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(120)]), obsm={"spatial": xy})
    one, two = (ring.toarray() for ring in ring_graphs(table))
    for ring in (one, two):
        assert (ring == ring.T).all()
        assert not ring.diagonal().any()
        assert not ring[:60, 60:].any()
    assert not (one & two).any()
    assert (((one.astype(int) @ one) > 0) & ~one & ~np.eye(120, dtype=bool) == two).all()


def test_few_or_collinear_points() -> None:
    single = AnnData(obs=pd.DataFrame(index=["a"]), obsm={"spatial": np.zeros((1, 2))})
    assert [ring.nnz for ring in ring_graphs(single)] == [0, 0]
    line = AnnData(obs=pd.DataFrame(index=list("abc")), obsm={"spatial": np.array([[0.0, 0], [1, 0], [2, 0]])})
    assert ring_graphs(line)[0][0, 1]


def test_bad_positions() -> None:
    merged = grid_table("hex")
    merged.obs.loc[merged.obs_names[1], ["array_row", "array_col"]] = [0, 0]
    with pytest.raises(ValueError, match="share one array position"):
        ring_graphs(merged)
    fractional = grid_table("square")
    fractional.obs["array_row"] = fractional.obs["array_row"] + 0.5
    with pytest.warns(HistoweaveWarning, match="coordinates instead"):
        assert ring_graphs(fractional)[0].nnz
    bare = AnnData(obs=pd.DataFrame(index=["a", "b"]))
    with pytest.raises(KeyError, match="spatial_key"):
        ring_graphs(bare)
    broken = AnnData(obs=pd.DataFrame(index=["a", "b"]), obsm={"spatial": np.array([[0, 0], [np.nan, 1]])})
    with pytest.raises(ValueError, match="NaN"):
        ring_graphs(broken)
    with pytest.raises(ValueError, match="n_rings"):
        ring_graphs(grid_table("hex"), n_rings=0)


def test_large_section_stays_linear() -> None:
    table = grid_table("square", 400, 300)
    rings = ring_graphs(table, n_rings=2)
    assert rings[0].nnz == 2 * (400 * 299 + 399 * 300)
