"""A new section without some genes: predicting them loses less than filling them with zeros."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import histoweave as hw
from histoweave.models import GeneAutoencoder, GeneClassifier


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads, hw.settings.progress = torch.get_num_threads(), False
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    hw.settings.progress = True


@pytest.fixture(scope="module")
def three():
    return hw.datasets.simulate_sections(3, n_rows=14, n_cols=14, n_genes=120, n_regions=4, image=False, depth=1500)


def scores(model, table) -> tuple[float, float]:
    """Accuracy and log loss against the simulator's regions."""
    p = model.predict_proba(table)
    truth = table.obs["region_truth"].astype(str)
    own = p.to_numpy()[np.arange(len(p)), p.columns.get_indexer(truth)]
    return float((p.idxmax(axis=1) == truth).mean()), float(-np.log(np.clip(own, 1e-6, None)).mean())


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.filterwarnings("ignore:.*are not in the table")
def test_a_third_of_the_genes_missing_loses_less_than_zeros(three, centre):
    new = three[three.obs["library_id"] == "section_3"].copy()
    known = three[three.obs["library_id"] != "section_3"].copy()
    encoder = GeneAutoencoder(8, widths=(32,), batch_size=32, max_epochs=60, patience=None, centre=centre).fit(known)
    model = GeneClassifier(encoder, n_rings=0).fit(known)
    rows = []
    for draw in range(5):
        lost = np.random.default_rng(draw).random(new.n_vars) < 0.3
        filled = new.copy()
        filled.layers["counts"] = filled.layers["counts"].multiply(~lost).tocsr()
        for kind, table in (("missing", new[:, ~lost].copy()), ("zeros", filled)):
            rows.append((kind, *scores(model, table)))
    mean = pd.DataFrame(rows, columns=["kind", "accuracy", "loss"]).groupby("kind").mean()
    complete, _ = scores(model, new)
    assert complete > mean.loc["missing", "accuracy"] > 0.6
    assert mean.loc["missing", "loss"] < 0.9 * mean.loc["zeros", "loss"]
    gain = mean.loc["missing", "accuracy"] - mean.loc["zeros", "accuracy"]
    # centring each gene within its section takes a column of zeros for one at its mean: what is left is the prediction
    assert abs(gain) < 0.03 if centre else gain > 0.05


@pytest.mark.parametrize("likelihood", ["mse", "nb"])
@pytest.mark.filterwarnings("ignore:.*are not in the table")
def test_missing_genes_are_embedded_as_predicted_from_the_others(three, likelihood):
    known = three[three.obs["library_id"] != "section_3"].copy()
    model = GeneAutoencoder(8, widths=(32,), likelihood=likelihood, max_epochs=5).fit(known)
    new = three[three.obs["library_id"] == "section_3"].copy()
    counts = new.layers["counts"].toarray()
    log = np.log1p(counts / counts.sum(axis=1, keepdims=True) * model._target)[
        :, [new.var_names.get_loc(g) for g in model.genes]
    ]
    x = torch.from_numpy(log - log.mean(axis=0)).float()
    lost = np.random.default_rng(0).random(len(model.genes)) < 0.4
    x[:, lost] = 0
    if likelihood == "mse":
        hidden = torch.from_numpy(lost).expand(len(x), -1)
        x[:, lost] = model._net(x, hidden, torch.full((len(x),), -1))["value"][:, lost]
    expected = model._net.encode(x, torch.full((len(x), 1), x.shape[1]))
    # depth counts all genes of a table: without the columns it would be another
    table = new.copy()
    names = [g if g not in set(np.array(model.genes)[lost]) else f"not {g}" for g in new.var_names]
    table.var_names = names
    np.testing.assert_allclose(model.embed(table), expected.numpy(), atol=1e-4)
