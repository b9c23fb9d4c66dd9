"""Likelihoods against SciPy, and against scvi-tools' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from histoweave.models.gene_autoencoder._losses import masked_mean, nb_log_prob, zinb_log_prob


@pytest.fixture
def case() -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(0)
    mu, theta = rng.gamma(2, 3, (40, 7)) + 0.05, rng.gamma(3, 1, 7) + 0.1
    x = rng.poisson(mu) * (rng.random(mu.shape) > 0.4)
    return tuple(torch.tensor(v, dtype=torch.float64) for v in (x, mu, theta, rng.normal(size=mu.shape)))


def test_negative_binomial_is_scipys(case):
    x, mu, theta, _ = case
    truth = stats.nbinom.logpmf(x.numpy(), theta.numpy(), (theta / (theta + mu)).numpy())
    np.testing.assert_allclose(nb_log_prob(x, mu, theta).numpy(), truth, atol=1e-5)


def test_large_counts_are_not_looked_up():
    x = torch.tensor([[0.0, 1.0, 31.0, 32.0, 33.0, 5000.0]], dtype=torch.float64)
    mu, theta = torch.linspace(0.1, 900, 6, dtype=torch.float64)[None], torch.linspace(0.2, 4, 6, dtype=torch.float64)
    truth = stats.nbinom.logpmf(x.numpy(), theta.numpy(), (theta / (theta + mu)).numpy())
    np.testing.assert_allclose(nb_log_prob(x, mu, theta).numpy(), truth, rtol=1e-6, atol=1e-5)


def test_gradients_are_those_of_the_formula(case):
    x, mu, theta, logits = case
    x = torch.where(torch.arange(7) == 3, x * 20, x)  # some beyond the table
    leaves = [v.clone().requires_grad_() for v in (mu, theta, logits)]

    def plain(x, mu, theta):
        kernel = theta * (theta.log() - (theta + mu).log()) + x * (mu.log() - (theta + mu).log())
        return kernel + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)

    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.autograd.grad((plain(x, *leaves[:2]) * weight).sum(), leaves[:2])
    found = torch.autograd.grad((nb_log_prob(x, *leaves[:2]) * weight).sum(), leaves[:2])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda *at: zinb_log_prob(x, *at), leaves, atol=1e-4)


def test_zero_inflated_is_the_mixture(case):
    x, mu, theta, logits = case
    extra = torch.sigmoid(logits)
    mixture = extra * (x == 0) + (1 - extra) * nb_log_prob(x, mu, theta).exp()
    np.testing.assert_allclose(zinb_log_prob(x, mu, theta, logits).numpy(), mixture.log().numpy(), atol=1e-6)


def test_masked_mean_counts_hidden_genes_only():
    values = torch.tensor([[1.0, 100.0], [3.0, 100.0]])
    mask = torch.tensor([[True, False], [True, False]])
    assert masked_mean(values, mask).item() == 2
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_likelihoods_are_those_of_scvi_tools(case):
    distributions = pytest.importorskip("scvi.distributions", reason="the extra scvi is not installed")
    x, mu, theta, logits = case
    nb = distributions.NegativeBinomial(mu=mu, theta=theta).log_prob(x)
    zinb = distributions.ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits).log_prob(x)
    torch.testing.assert_close(nb_log_prob(x, mu, theta), nb, atol=1e-5, rtol=0)
    torch.testing.assert_close(zinb_log_prob(x, mu, theta, logits), zinb, atol=1e-5, rtol=0)
