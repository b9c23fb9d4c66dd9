"""Combinations fitted on predictions out of fold."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave._validate import HistoweaveWarning
from histoweave.models.fusion._calibrate import fit_pools
from histoweave.models.fusion._pool import LogPool


def members_of(chosen):
    return [f"{m}:linear" for m in chosen]


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    logits = rng.normal(size=(2, 300, 3)) + 2 * np.eye(3)[y]
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return {"gene:linear": p[0], "image:linear": p[1]}, y


def test_every_subset_gets_the_pool_of_its_heads_and_the_quantile_as_threshold(heads):
    oof, y = heads
    pools, thresholds, history = fit_pools(oof, ["gene", "image"], members_of, y, ["a", "b", "c"], 0.8)
    assert set(pools) == {("gene",), ("image",), ("gene", "image")}
    for chosen, pool in pools.items():
        p = np.stack([oof[m] for m in members_of(chosen)])
        by_hand = LogPool().fit(p, y)
        np.testing.assert_array_equal(pool.weights, by_hand.weights)
        confidence = by_hand.combine(p).max(axis=1)
        assert np.mean(confidence >= thresholds["+".join(chosen)]) == pytest.approx(0.8, abs=0.01)
        row = history.set_index("modalities").loc["+".join(chosen)]
        assert row["accuracy"] == pytest.approx(np.mean(by_hand.combine(p).argmax(axis=1) == y))


def test_rows_that_could_not_be_held_out_are_left_out(heads):
    oof, y = heads
    oof["gene:linear"][:100] = np.nan
    _, _, history = fit_pools(oof, ["gene", "image"], members_of, y, ["a", "b", "c"], 0.9)
    assert history.set_index("modalities")["n"].to_dict() == {"gene": 200, "image": 300, "gene+image": 200}


def test_too_few_rows_give_equal_trust_and_no_abstention(heads):
    oof, y = heads
    few = {name: np.where(np.arange(300)[:, None] < 4, p, np.nan) for name, p in oof.items()}
    with pytest.warns(HistoweaveWarning, match="Too few labels"):
        pools, thresholds, history = fit_pools(few, ["gene", "image"], members_of, y, ["a", "b", "c"], 0.9)
    assert thresholds == {"gene": 0.0, "image": 0.0, "gene+image": 0.0}
    assert np.array_equal(pools["gene", "image"].weights, [0.5, 0.5])
    assert history.empty


def test_a_missing_head_leaves_its_subsets_out(heads):
    oof, y = heads
    pools, _, _ = fit_pools({"gene:linear": oof["gene:linear"]}, ["gene", "image"], members_of, y, ["a", "b", "c"], 0.9)
    assert set(pools) == {("gene",)}
    with pytest.raises(ValueError, match="two classes"):
        fit_pools({}, ["gene"], members_of, y, ["a", "b", "c"], 0.9)
