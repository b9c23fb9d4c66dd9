"""Fine-tuning on few labels: it predicts new sections, repeats, saves, and never tunes into something worse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import GeneAutoencoder, GeneClassifier, GenePCA
from histoweave.models.gene_autoencoder._finetune import TunedEncoder


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads, hw.settings.progress = torch.get_num_threads(), False
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    hw.settings.progress = True


@pytest.fixture(scope="module")
def three():
    """Three sections of one tissue: 144 spots each, 100 genes, a tenth of the spots labelled."""
    return hw.datasets.simulate_sections(
        3, n_rows=12, n_cols=12, n_genes=100, n_regions=3, image=False, depth=1500, labelled_fraction=0.15
    )


@pytest.fixture(scope="module")
def known(three):
    return three[three.obs["library_id"] != "section_3"].copy()


@pytest.fixture(scope="module")
def new(three):
    return three[three.obs["library_id"] == "section_3"].copy()


@pytest.fixture(scope="module")
def encoder(known):
    return GeneAutoencoder(8, widths=(32,), max_epochs=30, patience=None).fit(known)


@pytest.fixture(scope="module")
def fitted(known, encoder):
    options = {"max_epochs": 4, "n_inner": 2, "n_rings": 1, "batch_size": 16}
    return {s: GeneClassifier(encoder, strategy=s, **options).fit(known) for s in ("frozen", "adapter", "full")}


def accuracy(model, adata) -> float:
    return float((model.predict(adata)["predicted"].astype(str) == adata.obs["region_truth"].astype(str)).mean())


@pytest.mark.parametrize("strategy", ["frozen", "adapter", "full"])
def test_a_new_section_is_predicted_from_few_labels(fitted, new, strategy):
    model = fitted[strategy]
    p = model.predict_proba(new)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    majority = new.obs["region_truth"].value_counts(normalize=True).max()
    assert accuracy(model, new) > majority + 0.25
    found = model.predict(new)
    assert set(found["predicted"]) <= set(model.classes) == {"region_1", "region_2", "region_3"}
    np.testing.assert_array_equal(found["confidence"], model.predict_proba(new).max(axis=1))


def test_frozen_is_logistic_regression_on_the_embedding(known, encoder):
    model = GeneClassifier(encoder, n_rings=0).fit(known)
    Z = encoder.embed(known)
    np.testing.assert_allclose(model.embed(known), Z, atol=1e-5)
    rows = known.obs["region"].notna().to_numpy()
    mean, sd = Z[rows].mean(axis=0), Z[rows].std(axis=0)
    head = LogisticRegression(C=model.C, class_weight="balanced", max_iter=1000)
    head.fit((Z[rows] - mean) / sd, known.obs["region"][rows].astype(str))
    np.testing.assert_allclose(model.predict_proba(known), head.predict_proba((Z - mean) / sd), atol=1e-3)


def test_principal_components_take_the_same_head(known, new):
    pca = GenePCA(8).fit(known)
    model = GeneClassifier(pca, n_rings=0).fit(known)
    np.testing.assert_allclose(model.embed(new), pca.embed(new), atol=1e-4)
    lacking = new[:, 30:].copy()
    with pytest.warns(HistoweaveWarning, match="are not in the table"):
        np.testing.assert_allclose(model.embed(lacking), pca.embed(lacking), atol=1e-4)


def test_adapters_start_as_the_encoder_and_alone_are_trained(fitted, encoder, known):
    network = fitted["adapter"]._network(3, 2)
    x = torch.randn(5, 2, len(encoder.genes))
    present = torch.ones(len(encoder.genes), dtype=torch.bool)
    plain = encoder._net.encode(x.flatten(0, 1), present.sum().view(1, 1)).reshape(5, -1)
    torch.testing.assert_close(network.embed(x, present), plain, atol=1e-5, rtol=0)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert all(".down." in n or ".up." in n or n.startswith("head.") for n in trained)
    assert any(".up." in n for n in trained)
    before = TunedEncoder(encoder._net, 0).state_dict()
    for name, value in fitted["frozen"].network.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize("strategy", ["adapter", "full"])
def test_epochs_are_those_with_the_least_loss_out_of_fold(fitted, encoder, strategy):
    history = fitted[strategy].history
    assert history.columns.tolist() == ["epoch", "validation_loss", "train_loss"]
    assert history["epoch"].tolist() == list(range(5))
    assert fitted[strategy].epochs_chosen == history["validation_loss"].argmin()
    assert history["train_loss"].notna().sum() == fitted[strategy].epochs_chosen


def test_tuning_learns_what_the_frozen_encoder_does_not_hold(known):
    """Labels of an untrained encoder's blind spot: a whole tuned encoder gets them, its frozen embedding less so."""
    bad = GeneAutoencoder(2, widths=(32,), max_epochs=1).fit(known)
    torch.manual_seed(0)
    torch.nn.init.normal_(bad._net.first.weight, std=known.n_vars**-0.5)  # it starts at principal components
    options = {"n_rings": 0, "n_inner": 2, "max_epochs": 40, "batch_size": 16, "learning_rate": 3e-3}
    frozen, full = (GeneClassifier(bad, strategy=s, **options).fit(known) for s in ("frozen", "full"))
    assert full.epochs_chosen > 0
    assert accuracy(full, known) > accuracy(frozen, known) + 0.05


def test_the_encoder_itself_is_not_changed(known, encoder):
    before = encoder.embed(known)
    GeneClassifier(encoder, strategy="full", max_epochs=2, n_inner=2).fit(known)
    np.testing.assert_array_equal(encoder.embed(known), before)


def test_an_encoder_that_is_fitted_again_leaves_earlier_classifiers_alone(known, new):
    for encoder in (GenePCA(5, n_top_genes=40), GeneAutoencoder(4, widths=(8,), max_epochs=1, n_top_genes=40)):
        clf = GeneClassifier(encoder.fit(known)).fit(known)
        before = clf.predict_proba(known)
        encoder.fit(new)
        pd.testing.assert_frame_equal(clf.predict_proba(known), before)


def test_neighbours_change_a_spot_only_with_rings(fitted, encoder, known, new):
    changed = new.copy()
    spot, others = 40, np.delete(np.arange(new.n_obs), 40)
    counts = new.layers["counts"].toarray()
    counts[others] = counts[others[::-1]]
    changed.layers["counts"] = sp.csr_matrix(counts)
    alone = GeneClassifier(encoder, n_rings=0).fit(known)
    np.testing.assert_allclose(alone.embed(changed)[spot], alone.embed(new)[spot], atol=1e-4)
    with_rings = fitted["frozen"]
    difference = np.abs(with_rings.embed(changed)[spot] - with_rings.embed(new)[spot])
    assert difference[:8].max() < 1e-4 < difference[8:].max()


def test_rows_without_counts_are_missing_and_add_nothing(fitted, new):
    empty = new.copy()
    counts = empty.layers["counts"].tolil()
    counts[10] = 0
    empty.layers["counts"] = counts.tocsr()
    model = fitted["adapter"]
    assert model.predict_proba(empty).iloc[10].isna().all()
    assert model.predict(empty).iloc[10].isna().all()
    assert np.isnan(model.embed(empty)[10]).all()
    assert model.predict_proba(empty).notna().to_numpy().sum() == 3 * (new.n_obs - 1)


@pytest.mark.parametrize("strategy", ["frozen", "adapter", "full"])
def test_saved_models_predict_the_same(fitted, new, tmp_path, strategy):
    model = fitted[strategy]
    loaded = GeneClassifier.load(model.save(tmp_path / strategy))
    pd.testing.assert_frame_equal(loaded.predict_proba(new), model.predict_proba(new))
    pd.testing.assert_frame_equal(loaded.history, model.history)
    assert loaded.sections_seen == model.sections_seen


def test_the_same_seed_gives_the_same_model(fitted, encoder, known, new):
    options = {"max_epochs": 4, "n_inner": 2, "n_rings": 1, "batch_size": 16}
    again = GeneClassifier(encoder, strategy="full", **options).fit(known)
    pd.testing.assert_frame_equal(again.predict_proba(new), fitted["full"].predict_proba(new))


def test_bad_arguments(encoder, known):
    around = GeneAutoencoder(4, widths=(8,), max_epochs=1, neighbours=True).fit(known)
    with pytest.raises(ValueError, match="trained with `neighbours=True`"):
        GeneClassifier(around)
    with pytest.raises(RuntimeError, match="not fitted"):
        GeneClassifier(GeneAutoencoder())
    with pytest.raises(TypeError, match="must be a fitted GeneAutoencoder or GenePCA, got str"):
        GeneClassifier("masked")
    with pytest.raises(ValueError, match="principal components go with 'frozen'"):
        GeneClassifier(GenePCA(4).fit(known), strategy="full")
    with pytest.raises(RuntimeError, match="not fitted"):
        GeneClassifier(encoder).predict(known)
    with pytest.raises(KeyError, match="niche"):
        GeneClassifier(encoder).fit(known, labels_key="niche")
    with pytest.raises(ValueError, match="strategy"):
        GeneClassifier(encoder, strategy="lora")
