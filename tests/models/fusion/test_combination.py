"""Combinations fitted on predictions out of fold."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from histoweave._validate import HistoweaveWarning
from histoweave.models.fusion._balance import balanced_weights, shared_weights
from histoweave.models.fusion._combination import Combination, fit_combinations
from histoweave.models.fusion._pool import LogPool

OPTIONS = {"coverage": 0.8, "decision": "balanced", "calibration": "temperature", "gated": False}
NAMES = ["a", "b", "c"]


def members_of(chosen):
    return [f"{m}:linear" for m in chosen]


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    logits = rng.normal(size=(2, 300, 3)) + 2 * np.eye(3)[y]
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return {"gene:linear": p[0], "image:linear": p[1]}, y


def fit(oof, y, **options):
    n = np.arange(len(y))
    return fit_combinations(oof, ["gene", "image"], members_of, y, n // 10, n // 60, NAMES, **OPTIONS | options)


def test_every_subset_gets_the_pool_of_its_heads_balanced_over_groups(heads):
    oof, y = heads
    groups = np.arange(300) // 10
    found, history = fit(oof, y)
    assert set(found) == {("gene",), ("image",), ("gene", "image")}
    for chosen, combination in found.items():
        p = np.stack([oof[m] for m in members_of(chosen)])
        by_hand = LogPool().fit(p, y, balanced_weights(y, groups), biased=False)
        np.testing.assert_allclose(combination.pool.weights, by_hand.weights)
        calibrated = LogPool().fit(by_hand.combine(p)[None], y, shared_weights(groups))
        np.testing.assert_allclose(combination.apply(p)["accuracy"], calibrated.combine(by_hand.combine(p)[None]))
        confidence = combination.apply(p)["accuracy"].max(axis=1)
        assert np.mean(confidence >= combination.threshold) == pytest.approx(0.8, abs=0.04)
        assert "+".join(chosen) in set(history["modalities"])


@pytest.mark.parametrize("decision", ["balanced", "accuracy"])
def test_scores_are_those_of_combinations_that_had_not_seen_the_fold(heads, decision):
    oof, y = heads
    groups, fold = np.arange(300) // 10, np.arange(300) // 60
    _, history = fit(oof, y, decision=decision)
    p = np.stack([oof[m] for m in members_of(("gene", "image"))])
    guess = np.empty(300, dtype=int)
    for i in range(5):
        rest = fold != i
        combination = Combination.fit(p[:, rest], y[rest], groups[rest], "temperature")
        guess[~rest] = combination.apply(p[:, ~rest])[decision].argmax(axis=1)
    row = history.set_index("modalities").loc["gene+image"]
    assert row["accuracy"] == pytest.approx((guess == y).mean())
    assert row["macro_f1"] == row[f"macro_f1_{decision}"] == pytest.approx(f1_score(y, guess, average="macro"))


def test_rows_that_could_not_be_held_out_are_left_out(heads):
    oof, y = heads
    oof["gene:linear"][:100] = np.nan
    _, history = fit(oof, y)
    assert history.set_index("modalities")["n"].to_dict() == {"gene": 200, "image": 300, "gene+image": 200}


def test_too_few_rows_give_equal_trust_and_no_abstention(heads):
    oof, y = heads
    few = {name: np.where(np.arange(300)[:, None] < 4, p, np.nan) for name, p in oof.items()}
    with pytest.warns(HistoweaveWarning, match="Too few labels"):
        found, history = fit(few, y)
    assert {c.threshold for c in found.values()} == {0.0}
    assert np.array_equal(found["gene", "image"].pool.weights, [0.5, 0.5])
    p = np.stack(list(oof.values()))
    both = found["gene", "image"].apply(p)
    np.testing.assert_allclose(both["balanced"], both["accuracy"], atol=1e-3)
    assert history.empty


def test_a_missing_head_leaves_its_subsets_out(heads):
    oof, y = heads
    found, _ = fit({"gene:linear": oof["gene:linear"]}, y)
    assert set(found) == {("gene",)}
    with pytest.raises(ValueError, match="two classes"):
        fit({}, y)


def groups_of(shifts, seed: int):
    """One head that is sure of itself in every group; a group's shift makes it sure of the wrong class."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, 150 * len(shifts), p=[0.7, 0.2, 0.1])
    groups = np.repeat(np.arange(len(shifts)), 150)
    logits = 1.5 * np.eye(3)[y] + np.outer(shifts, [0, 0, 1])[groups] + 0.5 * rng.normal(size=(len(y), 3))
    p = np.exp(2 * logits)
    return p / p.sum(axis=1, keepdims=True), y, groups


def test_one_strange_group_does_not_silence_a_head():
    """Every spot counted, the stranger's confident errors turn the map into the majority; it must still rank."""
    macro = {"rows": [], "groups": []}
    for seed in range(5):
        p, y, groups = groups_of([0, 0, 0, 4], seed)
        new, truth, _ = groups_of([0], 1000 + seed)
        by_row = LogPool().fit(p[None], y).combine(new[None]).argmax(axis=1)
        by_group = Combination.fit(p[None], y, groups, "temperature").apply(new[None])["balanced"].argmax(axis=1)
        for name, guess in (("rows", by_row), ("groups", by_group)):
            macro[name].append(f1_score(truth, guess, labels=[0, 1, 2], average="macro", zero_division=0))
    assert np.mean(macro["rows"]) < 0.65
    assert np.mean(macro["groups"]) > 0.8
