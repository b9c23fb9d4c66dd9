"""Attributions: exact where the model is linear, complete where it is not, and at the simulator's markers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import histoweave as hw
from histoweave.models import GeneAutoencoder, GeneClassifier, GenePCA
from histoweave.models.gene_autoencoder._attribution import agreement, integrated_gradients, region_importance


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads, hw.settings.progress = torch.get_num_threads(), False
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    hw.settings.progress = True


@pytest.fixture(scope="module")
def two():
    return hw.datasets.simulate_sections(
        2, n_rows=12, n_cols=12, n_genes=100, n_regions=3, n_markers=12, image=False, gene_signal=1.5
    )


@pytest.fixture(scope="module")
def linear(two):
    return GeneClassifier(GenePCA(10).fit(two), n_rings=1).fit(two)


@pytest.fixture(scope="module")
def network(two):
    encoder = GeneAutoencoder(8, widths=(32,), batch_size=32, max_epochs=60, patience=None).fit(two)
    return GeneClassifier(encoder, strategy="full", n_rings=0, max_epochs=3, n_inner=2).fit(two)


def test_linear_models_give_weight_times_centred_value_and_captum_agrees(two, linear):
    from captum.attr import IntegratedGradients

    views = linear.views(two)
    x, target = views.batch(np.arange(20)), torch.arange(20) % 3
    ours, delta = integrated_gradients(linear.network, x, views.present, target, 8)
    W = linear.network.head.weight.numpy().astype(float)
    W = (W - W.mean(axis=0)).reshape(3, 2, -1) @ linear.encoder._map.weights()
    np.testing.assert_allclose(ours, W[target.numpy()] * x.numpy(), atol=1e-4)
    captum = IntegratedGradients(lambda v: linear.network(v, views.present))
    theirs = captum.attribute(x, baselines=torch.zeros_like(x), target=target, n_steps=8)
    torch.testing.assert_close(ours, theirs.to(ours), atol=1e-4, rtol=0)
    assert delta.abs().max() == 0


def test_contributions_add_up_to_the_rise_of_the_logit(two, network):
    views = network.views(two)
    x, target = views.batch(np.arange(30)), torch.arange(30) % 3
    found, delta = integrated_gradients(network.network, x, views.present, target, 64)
    with torch.no_grad():
        rise = network.network(x, views.present) - network.network(torch.zeros_like(x), views.present)
    rise = rise.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(found.sum(dim=(1, 2)).float(), rise, atol=0.02, rtol=0.02)
    assert delta.abs().max() < 0.05
    assert rise.abs().max() > 0.5


@pytest.mark.parametrize("kind", ["linear", "network"])
def test_markers_of_every_region_come_first(two, kind, request):
    result = hw.tl.gene_importance(two, model=request.getfixturevalue(kind))
    for name, frame in result.groupby("region"):
        marker_of = two.var.loc[frame["gene"], "marker_of"]
        own = (marker_of == name.replace("region", "programme")).to_numpy()
        assert own[:12].mean() > 0.5  # 0.12 by chance; what tells against other regions comes high as well
        others = own | (marker_of == "").to_numpy()
        assert roc_auc_score(own[others], frame["importance"][others]) > 0.85
    assert result.groupby("region")[["rank", "de_rank"]].corr().iloc[::2, 1].min() > 0.3
    pd.testing.assert_frame_equal(two.uns["gene_importance"], result)


def test_pooled_is_the_mean_over_spots_of_the_sections(two, linear):
    result = hw.tl.gene_importance(two, model=linear, labels_key="region_truth", per_section=True, max_spots=None)
    wide = result.query("region == 'region_1'").pivot(index="gene", columns="section", values="importance")
    n = two.obs.groupby("library_id", observed=True)["region_truth"].agg(lambda r: (r == "region_1").sum())
    mean = (wide["section_1"] * n["section_1"] + wide["section_2"] * n["section_2"]) / n.sum()
    np.testing.assert_allclose(wide["all"], mean, atol=1e-8)
    assert set(result["section"]) == {"all", "section_1", "section_2"}


def test_de_score_is_welchs_t(two, linear):
    from scipy.stats import ttest_ind

    result = hw.tl.gene_importance(two, model=linear, labels_key="region_truth").query("region == 'region_2'")
    counts = two.layers["counts"].toarray()
    log = np.log1p(counts / counts.sum(axis=1, keepdims=True) * np.median(counts.sum(axis=1)))
    here = (two.obs["region_truth"] == "region_2").to_numpy()
    t = pd.Series(ttest_ind(log[here], log[~here], equal_var=False).statistic, index=two.var_names)
    np.testing.assert_allclose(result["de_score"], t[result["gene"]], rtol=0.02, atol=0.02)


def test_stability_is_the_rank_correlation_between_models(two, linear):
    others = [GeneClassifier(GenePCA(k).fit(two)).fit(two) for k in (4, 25)]
    result = hw.tl.gene_importance(two, model=[linear, *others], labels_key="region_truth")
    each = [hw.tl.gene_importance(two, model=m, labels_key="region_truth") for m in (linear, *others)]
    assert each[0]["stability"].isna().all()
    for name, frame in result.groupby("region"):
        wide = pd.concat([e[e["region"] == name].set_index("gene")["importance"] for e in each], axis=1)
        rho = wide.corr(method="spearman").to_numpy()[np.triu_indices(3, 1)].mean()
        np.testing.assert_allclose(frame["stability"], rho)
        np.testing.assert_allclose(frame["importance"], wide.mean(axis=1)[frame["gene"]])
    assert np.isnan(agreement([np.ones(3)]))


def test_genes_that_are_missing_are_left_out(two, linear):
    with pytest.warns(UserWarning, match="10 of the model's 100 genes"):
        result = hw.tl.gene_importance(two[:, 10:].copy(), model=linear)
    assert set(result["gene"]) == set(two.var_names[10:])


def test_genes_under_other_names_are_compared_too_and_lacking_ones_are_not(two, linear):
    expected = hw.tl.gene_importance(two, model=linear)
    other = two[:, 10:].copy()
    other.var["gene_name"], other.var_names = other.var_names, [f"ENSG{i:011d}" for i in range(other.n_vars)]
    with pytest.warns(UserWarning, match="under other names"):
        found = hw.tl.gene_importance(other, model=linear, labels_key="region_truth")
    same = hw.tl.gene_importance(two[:, 10:].copy(), model=linear, labels_key="region_truth")
    pd.testing.assert_frame_equal(found, same)
    assert found["de_score"].abs().max() > 3
    assert len(found) < len(expected)


def test_the_error_is_told_when_steps_are_too_few(two, network):
    views = network.views(two)
    rows = {("s", "region_1"): np.arange(20)}
    assert region_importance(network, views, rows, 64)[1] < region_importance(network, views, rows, 1)[1]


def test_bad_input_changes_nothing(two, linear):
    table = two[:50].copy()
    table.obs["none"] = "elsewhere"
    table.uns.pop("gene_importance", None)
    with pytest.raises(ValueError, match="No spot belongs to a region that the model knows"):
        hw.tl.gene_importance(table, model=linear, labels_key="none")
    with pytest.raises(ValueError, match="must be a fitted GeneClassifier, got GenePCA"):
        hw.tl.gene_importance(table, model=linear.encoder)
    with pytest.raises(ValueError, match="`model` is empty"):
        hw.tl.gene_importance(table, model=[])
    other = GeneClassifier(GenePCA(4).fit(two[:, :50])).fit(two)
    with pytest.raises(ValueError, match="differ in their classes or genes"):
        hw.tl.gene_importance(table, model=[linear, other])
    assert "gene_importance" not in table.uns
