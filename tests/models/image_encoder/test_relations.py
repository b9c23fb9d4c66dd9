from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from histoweave._resolve import sections
from histoweave._validate import HistoweaveWarning
from histoweave.models.image_encoder._relations import ByLabel, expression, label_codes

N = 60


@pytest.fixture
def table() -> ad.AnnData:
    """Two sections of 5 x 6 spots one apart, three types of expression that differ between sections by an offset."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, N)
    genes = np.eye(3)[kind] * 4 + rng.normal(0, 0.3, (N, 3)) + np.repeat([[20, 0, 0], [0, 0, -20]], N // 2, axis=0)
    obs = pd.DataFrame({"library_id": np.repeat(["a", "b"], N // 2), "kind": [f"k{k}" for k in kind]})
    obs["donor"] = "one"
    obs.index = obs.index.astype(str)
    xy = np.array([(x, y) for x in range(5) for y in range(6)] * 2, float) * 50
    return ad.AnnData(np.zeros((N, 1), np.float32), obs=obs, obsm={"X_gene": genes, "spatial": xy})


def relate(table, available=None, *, across_key=None, quantiles=(0.5, 0.9)):
    available = np.ones(N, bool) if available is None else available
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HistoweaveWarning)
        return expression(table, available, sections(table), "X_gene", across_key, quantiles, 0)


def naive(table, across: np.ndarray | None, quantiles) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in loops: centred cosines, thresholds over all candidates, neighbours by their distance on the grid."""
    library, x = table.obs["library_id"].to_numpy(), table.obsm["X_gene"].copy()
    for name in np.unique(library):
        x[library == name] -= x[library == name].mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    may = np.zeros((2, N, N), bool)
    for i in range(N):
        for j in range(N):
            grid = np.linalg.norm(table.obsm["spatial"][i] - table.obsm["spatial"][j]) / 50
            may[0, i, j] = i != j and (across is None or across[i] != across[j])
            may[1, i, j] = i != j and (library[i] != library[j] or grid > 2.2)
    cosine = x @ x.T
    low, high = np.quantile(cosine[may[1]], quantiles[0]), np.quantile(cosine[may[0]], quantiles[1])
    return may[0] & (cosine >= high - 1e-6), may[1] & (cosine <= low + 1e-6)


@pytest.mark.parametrize("across_key", [None, "donor"])
def test_pairs_by_expression_are_the_loop(table, across_key):
    relation = relate(table, across_key=across_key)
    across = table.obs["library_id"].to_numpy() if across_key is None else None  # one donor: across nothing
    rows = torch.from_numpy(np.random.default_rng(1).permutation(N)[:40])
    for found, expected in zip(relation.pairs(rows), naive(table, across, (0.5, 0.9)), strict=True):
        differing = found.numpy() != expected[np.ix_(rows, rows)]
        assert differing.mean() < 2e-3  # a threshold is one of the similarities, to the last bit or not


def test_positives_share_the_type_across_sections_and_neighbours_are_no_negatives(table):
    relation, rows = relate(table), torch.arange(N)
    positive, negative = (pairs.numpy() for pairs in relation.pairs(rows))
    kind, library = table.obs["kind"].to_numpy(), table.obs["library_id"].to_numpy()
    i, j = positive.nonzero()
    assert len(i) > 100
    assert (kind[i] == kind[j]).all()
    assert (library[i] != library[j]).all()
    i, j = negative.nonzero()
    assert (kind[i] != kind[j]).mean() > 0.95
    near = np.linalg.norm(table.obsm["spatial"][i] - table.obsm["spatial"][j], axis=1) < 110
    assert not (near & (library[i] == library[j])).any()


def test_rows_without_crops_or_expression_are_in_no_pair(table):
    table.obsm["X_gene"][3] = np.nan
    available = np.arange(N) != 5
    relation = relate(table, available)
    for pairs in relation.pairs(torch.arange(N)):
        assert not pairs[[3, 5]].any()
        assert not pairs[:, [3, 5]].any()
    assert relation.usable.sum() == N - 2


def test_a_crop_drawn_twice_is_not_its_own_partner(table):
    relation = relate(table)
    for pairs in relation.pairs(torch.tensor([4, 4, 9, 40])):
        assert not pairs[0, 1]


def test_rows_without_partners_are_told(table):
    table.obsm["X_gene"][:2] = [[20.0, 0, 30], [20.0, 0, -30]]
    with pytest.warns(HistoweaveWarning, match=r"\d+ of 60 rows have no positive by expression and are no anchors"):
        expression(table, np.ones(N, bool), sections(table), "X_gene", None, (0.5, 0.98), 0)


def test_expression_that_gives_no_pairs_is_refused(table):
    alike = table.copy()
    alike.obsm["X_gene"] = np.tile([[1.0, 2, 3], [1.0, 2, 3.5]], (N // 2, 1))
    with pytest.raises(ValueError, match="quantiles.*similar"):
        relate(alike, quantiles=(0.9, 0.9))
    with pytest.raises(ValueError, match="no candidates for negatives"):
        relate(table, available=np.isin(np.arange(N), [0, 1, 6]))
    del table.obsm["X_gene"]
    with pytest.raises(KeyError, match=r"X_gene.*hw.tl.gene_encoder"):
        relate(table)
    alike.obsm["X_gene"] = np.zeros((N, 3, 2))
    with pytest.raises(ValueError, match="embedding"):
        relate(alike)


def test_without_places_neighbours_are_not_known_and_that_is_told(table):
    del table.obsm["spatial"]
    with pytest.warns(HistoweaveWarning, match="neighbours in the tissue may become negatives"):
        relation = expression(table, np.ones(N, bool), sections(table), "X_gene", None, (0.5, 0.9), 0)
    assert relation.pairs(torch.arange(N))[1].any()


def test_labels_become_numbers_and_rows_without_any_are_in_no_pair(table):
    table.obs.loc["7", "kind"] = None
    codes = label_codes(table, "kind", np.arange(N) != 9)
    assert codes[[7, 9]].tolist() == [-1, -1]
    rest = np.setdiff1d(np.arange(N), [7, 9])
    assert [f"k{c}" for c in codes[rest]] == table.obs["kind"].iloc[rest].tolist()
    positive, negative = (pairs.numpy() for pairs in ByLabel(codes).pairs(torch.arange(N)))
    kind = table.obs["kind"].to_numpy()
    same = (kind[:, None] == kind[None, :])[np.ix_(rest, rest)]
    np.testing.assert_array_equal(positive[np.ix_(rest, rest)], same & ~np.eye(len(rest), dtype=bool))
    np.testing.assert_array_equal(negative[np.ix_(rest, rest)], ~same)
    assert not positive[[7, 9]].any()
    assert not negative[:, [7, 9]].any()


def test_one_class_is_refused(table):
    table.obs["kind"] = "all"
    with pytest.raises(ValueError, match="at least 2 regions"):
        label_codes(table, "kind", np.ones(N, bool))
