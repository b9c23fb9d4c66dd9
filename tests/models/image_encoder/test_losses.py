from __future__ import annotations

import numpy as np
import pytest
import torch

from histoweave.models.image_encoder._losses import class_pairs, negative_cosine, nt_xent, sup_con, triplet, vicreg

N, D = 9, 5


def draw(seed: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(z: torch.Tensor) -> np.ndarray:
    z = z.numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def naive_contrast(z: np.ndarray, positives: list[list[int]], temperature: float) -> float:
    """Mean over anchors with positives of the mean over positives of -log softmax, in loops."""
    losses = []
    for i in range(len(z)):
        others = [np.exp(z[i] @ z[j] / temperature) for j in range(len(z)) if j != i]
        terms = [-np.log(np.exp(z[i] @ z[p] / temperature) / sum(others)) for p in positives[i]]
        losses += [np.mean(terms)] if terms else []
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_nt_xent_is_the_loop(temperature):
    a, b = draw(0), draw(1)
    positives = [[(i + N) % (2 * N)] for i in range(2 * N)]
    expected = naive_contrast(unit(torch.cat([a, b])), positives, temperature)
    assert nt_xent(a, b, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_sup_con_is_the_loop_and_with_pairs_it_is_nt_xent():
    z, labels = draw(2), torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 3])  # 3 occurs once
    positives = [[j for j in range(N) if j != i and labels[j] == labels[i]] for i in range(N)]
    assert sup_con(z, *class_pairs(labels)).item() == pytest.approx(naive_contrast(unit(z), positives, 0.2), rel=1e-5)
    pairs = sup_con(torch.cat([draw(0), draw(1)]), *class_pairs(torch.arange(N).repeat(2)))
    assert pairs.item() == pytest.approx(nt_xent(draw(0), draw(1)).item(), rel=1e-5)


def test_vicreg_is_its_definition():
    a, b = draw(0).numpy() / 2, draw(1).numpy() / 2
    expected = 25 * np.mean((a - b) ** 2)
    for z in (a, b):
        expected += 25 / 2 * np.mean([max(0, 1 - np.sqrt(np.var(z[:, j], ddof=1) + 1e-4)) for j in range(D)])
        covariance = np.cov(z.T)
        expected += sum(covariance[i, j] ** 2 for i in range(D) for j in range(D) if i != j) / D
    assert vicreg(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected, rel=1e-5)


def test_negative_cosine_gives_the_target_no_gradient():
    p, z = draw(0).requires_grad_(), draw(1).requires_grad_()
    loss = negative_cosine(p, z)
    assert loss.item() == pytest.approx(-np.mean(np.sum(unit(p.detach()) * unit(z.detach()), axis=1)), rel=1e-5)
    loss.backward()
    assert p.grad.abs().max() > 0
    assert z.grad is None
    assert negative_cosine(z, 3 * z).item() == pytest.approx(-1)


@pytest.mark.parametrize("margin", [0.2, 1.0])
@pytest.mark.parametrize("mining", ["all", "semi_hard", "batch_hard"])
def test_triplet_is_the_loop(mining, margin):
    z, labels = draw(3), [0, 0, 1, 1, 1, 2, 2, 0, 3]
    u = unit(z)
    d = np.array([[np.linalg.norm(x - y) for y in u] for x in u])
    losses = []
    for i in range(N):
        positives = [d[i, j] for j in range(N) if j != i and labels[j] == labels[i]]
        negatives = [d[i, j] for j in range(N) if labels[j] != labels[i]]
        if mining == "batch_hard":
            losses += [max(0, max(positives) - min(negatives) + margin)] if positives else []
            continue
        for ap in positives:
            for an in negatives:
                if ap - an + margin > 0 and (mining == "all" or an > ap):
                    losses.append(ap - an + margin)
    expected = np.mean(losses) if losses else 0.0
    found = triplet(z, *class_pairs(torch.tensor(labels)), margin=margin, mining=mining)
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_gradients_are_finite_for_equal_embeddings():
    z = torch.ones(6, 4, requires_grad=True)
    pairs = class_pairs(torch.tensor([0, 0, 1, 1, 2, 2]))
    for mining in ("all", "semi_hard", "batch_hard"):
        (triplet(z, *pairs, mining=mining) + sup_con(z, *pairs) + vicreg(z, z) + nt_xent(z, z)).backward()
        assert torch.isfinite(z.grad).all()


def test_pairs_that_are_neither_do_not_matter():
    z, labels = draw(4), torch.tensor([0, 0, 1, 1, 1, 2, 2, -1, -1])
    for loss in (triplet, sup_con):
        assert loss(z, *class_pairs(labels)).item() == pytest.approx(loss(z[:7], *class_pairs(labels[:7])).item())


@pytest.mark.parametrize("labels", [torch.zeros(N), torch.arange(N), torch.full((N,), -1)])
def test_without_anchors_the_loss_is_0_and_has_a_gradient(labels):
    for mining in ("all", "semi_hard", "batch_hard"):
        z = draw(0).requires_grad_()
        loss = triplet(z, *class_pairs(labels), mining=mining) + sup_con(z, *class_pairs(labels))
        loss.backward()
        assert loss.item() == 0
        assert z.grad.abs().max() == 0
    with pytest.raises(ValueError, match="semi_hard"):
        triplet(draw(0), *class_pairs(torch.arange(N) % 3), mining="hardest")


def test_losses_stay_exact_where_training_is_in_bfloat16():
    """Points that are near to each other: in bfloat16 their distances would come in steps of a tenth."""
    z = torch.nn.functional.normalize(torch.randn(1, D) + 0.05 * draw(5, 12).float())
    positive, negative = class_pairs(torch.arange(12) % 3)
    a, b = z.chunk(2)
    losses = {
        "simclr": lambda: nt_xent(a, b), "vicreg": lambda: vicreg(a, b), "byol": lambda: negative_cosine(a, b),
        "supcon": lambda: sup_con(z, positive, negative),
        "triplet": lambda: triplet(z, positive, negative, mining="all"),
    }  # fmt: skip
    for loss in losses.values():
        expected = loss()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(), expected)
