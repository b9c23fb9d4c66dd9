"""Cross-attention against attention written out token by token, and against what it alone can learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histoweave.models import FusionClassifier
from histoweave.models.fusion._attention import N_HEADS, N_TOKENS, WIDTH, AttentionHead, TokenNetwork


def exclusive_or(n: int, seed: int = 0):
    """Whether two bits differ, each seen by one modality: either alone says nothing."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, (2, n))
    image, gene = rng.normal(size=(n, 6)), rng.normal(size=(n, 4))
    image[:, 0] += 4 * a - 2
    gene[:, 0] += 4 * b - 2
    return {"image": image.astype(np.float32), "gene": gene.astype(np.float32)}, a ^ b


def side_by_side(blocks):
    return np.concatenate([blocks[m] for m in sorted(blocks)], axis=1)


@pytest.mark.parametrize("widths", [(5, 3), (4,), (2, 3, 4)])
def test_network_is_attention_token_by_token(widths):
    torch.manual_seed(0)
    network = TokenNetwork(widths, 3).eval().double()
    x = torch.randn(2, sum(widths), dtype=torch.float64)
    expected = []
    for row in x:
        tokens, owner, start = [], [], 0
        for m, width in enumerate(widths):
            flat = network.tokens[m](row[start : start + width])
            tokens += list(flat.view(N_TOKENS, WIDTH))
            owner += [m] * N_TOKENS
            start += width
        normed = [network.before(t) for t in tokens]
        shown = [network.show(t) for t in normed]
        found = []
        for i, token in enumerate(normed):
            query, parts = network.ask(token), []
            others = [j for j in range(len(tokens)) if len(widths) == 1 or owner[j] != owner[i]]
            for h in range(N_HEADS):
                part = slice(h * WIDTH // N_HEADS, (h + 1) * WIDTH // N_HEADS)
                keys = torch.stack([shown[j][:WIDTH][part] for j in others])
                values = torch.stack([shown[j][WIDTH:][part] for j in others])
                weight = torch.softmax(keys @ query[part] / (WIDTH / N_HEADS) ** 0.5, dim=0)
                parts.append(weight @ values)
            h = tokens[i] + network.answer(torch.cat(parts))
            found.append(h + network.think(h))
        expected.append(network.out(torch.stack(found).mean(dim=0)))
    torch.testing.assert_close(network(x), torch.stack(expected))


def test_absent_modality_is_not_looked_at():
    torch.manual_seed(0)
    network = TokenNetwork((5, 3), 2).eval()
    x = torch.randn(4, 8)
    other = torch.cat([x[:, :5], torch.randn(4, 3)], dim=1)
    without = torch.tensor([[True, False]]).expand(4, 2)
    torch.testing.assert_close(network(x, without), network(other, without))
    assert (network(x) - network(other)).abs().max() > 1e-3
    torch.testing.assert_close(network(x, torch.ones(4, 2, dtype=torch.bool)), network(x))


@pytest.mark.slow
def test_finds_what_only_the_combination_shows():
    train, y = exclusive_or(400)
    test, truth = exclusive_or(400, seed=1)
    accuracy = {}
    for name, method in (("attention", "cross_attention"), ("stack", "stack")):
        clf = FusionClassifier(method, heads="linear", n_inner=2).fit(train, y.astype(str))
        accuracy[name] = (clf.predict(test)["predicted"] == truth.astype(str)).mean()
        if method == "cross_attention":
            alone = (clf.predict(test, modalities=["gene"])["predicted"] == truth.astype(str)).mean()
    assert accuracy["attention"] > 0.85
    assert accuracy["stack"] < 0.6
    assert alone < 0.6


@pytest.mark.slow
def test_as_good_as_logistic_regression_where_that_is_the_truth():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 500)
    X = (rng.normal(size=(500, 9)) + 1.5 * np.eye(3, 9)[y]).astype(np.float32)
    blocks = {"image": X[:, :2], "gene": X[:, 2:]}  # regions 0 and 1 are in one, 2 in the other
    shares = {}
    for method in ("cross_attention", "concat"):
        part = {m: block[:250] for m, block in blocks.items()}
        clf = FusionClassifier(method, heads="linear", n_inner=2).fit(part, y[:250].astype(str))
        guess = clf.predict({m: block[250:] for m, block in blocks.items()})["predicted"]
        shares[method] = (guess == y[250:].astype(str)).mean()
    assert shares["cross_attention"] > shares["concat"] - 0.04


def test_same_seed_same_head_and_the_global_generator_is_left_alone():
    blocks, y = exclusive_or(80)
    X = side_by_side(blocks)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (AttentionHead((4, 6), 20).fit(X, y, 2, seed).predict_proba(X) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3
    torch.testing.assert_close(torch.rand(1), before)


def test_class_without_rows_has_probability_zero():
    blocks, y = exclusive_or(80)
    p = (
        AttentionHead((4, 6), 5)
        .fit(side_by_side(blocks), np.where(y == 1, 3, 1), 5, 0)
        .predict_proba(side_by_side(blocks))
    )
    assert p.shape == (80, 5)
    assert (p[:, [0, 2, 4]] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_saved_classifier_says_the_same(tmp_path):
    blocks, y = exclusive_or(60)
    clf = FusionClassifier("cross_attention", n_inner=2).fit(blocks, y.astype(str))
    clf.save(tmp_path / "model")
    again = FusionClassifier.load(tmp_path / "model")
    for modalities in (None, ["image"], ["gene"]):
        np.testing.assert_array_equal(
            clf.predict_proba(blocks, modalities=modalities), again.predict_proba(blocks, modalities=modalities)
        )
    with pytest.raises(ValueError, match="cross_attention.*see all"):
        clf.modality_weights()
