"""The image classifier on tables: the same as scikit-learn, as its own network, as saved; what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import ImageClassifier, ImageEncoder
from histoweave.models.image_classifier import _linear
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs

SCALES = ("crops", "crops_context")
TINY = {"backbone": "tiny", "precision": "float32"}
SHORT = {"n_steps": 4, "batch_size": 6}


@pytest.fixture(scope="module")
def _table(_sections):
    table = _sections.copy()
    hw.pp.crops(table, size_um={"crops": 110, "crops_context": 250}, out_px=16)
    return table


@pytest.fixture
def table(_table):
    return _table.copy()


@pytest.fixture(scope="module")
def encoder(_table):
    return ImageEncoder("simclr", crops_keys=SCALES, max_epochs=1, n_components=12, batch_size=200, **TINY).fit(_table)


@pytest.fixture(scope="module")
def fitted(_table, encoder):
    scratch = ImageClassifier(strategy="scratch", crops_keys=SCALES, **TINY, **SHORT)
    classifiers = {
        "linear": ImageClassifier(encoder, n_rings=1),
        "fine_tune": ImageClassifier(encoder, strategy="fine_tune", augmentation="histology", **SHORT),
        "scratch": scratch,
    }
    return {name: clf.fit(_table) for name, clf in classifiers.items()}


def test_linear_is_scikit_learn_on_the_same_features(table, encoder, monkeypatch):
    monkeypatch.setattr(_linear, "STRENGTHS", (0.1,))
    table.obs.loc[table.obs_names[::3], "region"] = None
    X = context_features(encoder.embed(table), ring_graphs(table, n_rings=1))
    rows = table.obs["region"].notna().to_numpy()
    scaled = StandardScaler().fit(X[rows].astype(float))
    peer = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    peer.fit(scaled.transform(X[rows]), table.obs["region"][rows].astype(str))
    found = ImageClassifier(encoder, n_rings=1).fit(table).predict_proba(table)
    assert list(found.columns) == list(peer.classes_)
    np.testing.assert_allclose(found, peer.predict_proba(scaled.transform(X)), atol=1e-6)


def test_strength_is_the_best_on_inner_folds_of_whole_donors(table):
    """Leave one donor out by hand, with every strength: the chosen one has the lowest log loss."""
    table.obs["donor"] = table.obs["library_id"]
    clf = ImageClassifier(ImageEncoder(n_components=20)).fit(table)
    X, y = clf.embed(table).astype(float), table.obs["region"].astype(str).to_numpy()
    loss = {}
    for c in _linear.STRENGTHS:
        p = np.full(len(y), np.nan)
        for donor in table.obs["donor"].unique():
            test = (table.obs["donor"] == donor).to_numpy()
            scaled = StandardScaler().fit(X[~test])
            peer = LogisticRegression(C=c, class_weight="balanced", max_iter=1000)
            peer.fit(scaled.transform(X[~test]), y[~test])
            found = peer.predict_proba(scaled.transform(X[test]))
            p[test] = found[np.arange(test.sum()), np.searchsorted(peer.classes_, y[test])]
        loss[c] = pd.Series(-np.log(p)).groupby(y).mean().mean()
    assert clf.history["C"].tolist() == [min(loss, key=loss.get)]
    assert clf.history["inner_groups"].tolist() == ["donor"]


def test_network_gives_the_predictions_of_a_picture_on_its_own(table, encoder, fitted):
    """A section of too few rows is standardised with the pooled statistics, as the network does."""
    few = table[table.obs["library_id"] == "section_1"][:10].copy()
    del few.obsm["spatial"], few.obs["array_row"], few.obs["array_col"]
    one_scale = ImageEncoder("pretrained", n_components=9, **TINY)
    one_scale._network = encoder._network
    for clf in (
        ImageClassifier(one_scale, n_rings=0).fit(table),
        ImageClassifier(one_scale, strategy="fine_tune", **SHORT).fit(table),
        ImageClassifier(strategy="scratch", **TINY, **SHORT).fit(table),
    ):
        pictures = torch.from_numpy(few.obsm["crops"]).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            found = clf.network(pictures).softmax(dim=1)
        assert not clf.network.training
        with pytest.warns(HistoweaveWarning, match="pooled|training sections"):
            expected = clf.predict_proba(few)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    grown = fitted["linear"].network_of("crops_context")
    pictures = pictures.requires_grad_()
    grown(pictures)[:, 0].sum().backward()
    assert pictures.grad.abs().sum() > 0


def test_logits_of_scales_add_up(table, fitted):
    """Both scales and no neighbours: the sum of the networks' logits, but for the constant counted twice."""
    few = table[:10].copy()
    clf = fitted["fine_tune"]
    with torch.no_grad():
        logits = [clf.network_of(key)(torch.from_numpy(few.obsm[key]).permute(0, 3, 1, 2) / 255) for key in SCALES]
    with pytest.warns(HistoweaveWarning, match="training sections"):
        expected = clf.predict_proba(few)
    found = (sum(logits) - clf.network.bias).softmax(dim=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("strategy", ["linear", "fine_tune", "scratch"])
def test_loaded_is_the_same_to_the_last_bit(table, fitted, tmp_path, strategy):
    clf = fitted[strategy]
    again = ImageClassifier.load(clf.save(tmp_path / "clf"))
    again.encoder.precision = "float32"  # follows the machine, and is not saved
    pd.testing.assert_frame_equal(again.predict_proba(table), clf.predict_proba(table), check_exact=True)
    assert again.history.equals(clf.history)
    assert (again.sections_seen, again.crops_keys) == (clf.sections_seen, SCALES)
    assert again.augmentation == clf.augmentation
    assert strategy in (tmp_path / "clf" / "README.md").read_text()


def test_the_seed_decides_every_bit_and_the_encoder_is_not_changed(table, encoder, fitted):
    before = {k: v.clone() for k, v in encoder._network.state_dict().items()}
    state = torch.get_rng_state()
    again = ImageClassifier(encoder, strategy="fine_tune", augmentation="histology", **SHORT).fit(table)
    pd.testing.assert_frame_equal(again.predict_proba(table), fitted["fine_tune"].predict_proba(table))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, encoder._network.state_dict()[k]) for k, v in before.items())
    other = ImageClassifier(encoder, strategy="fine_tune", random_state=1, **SHORT).fit(table)
    assert not np.allclose(other.predict_proba(table), again.predict_proba(table))


def test_encoder_from_disk_or_not_yet_fitted(table, encoder, tmp_path):
    saved = encoder.save(tmp_path / "encoder")
    found = ImageClassifier(saved, precision="float32").fit(table).predict_proba(table)
    pd.testing.assert_frame_equal(found, ImageClassifier(encoder).fit(table).predict_proba(table))
    new = ImageEncoder(n_components=5)
    clf = ImageClassifier(new).fit(table)
    np.testing.assert_array_equal(clf.embed(table), ImageEncoder(n_components=5).fit_embed(table))
    assert new.sections_seen is None
    tuned = ImageClassifier(saved, strategy="fine_tune", precision="float32", **SHORT).fit(table)
    assert len(tuned.history) == 1


def test_sections_that_the_encoder_saw_count_as_seen(table, encoder):
    part = table[table.obs["library_id"] == "section_2"].copy()
    clf = ImageClassifier(encoder).fit(part)
    assert set(clf.sections_seen) == {"section_1", "section_2", "section_3", "section_4"}


@pytest.mark.parametrize("strategy", ["linear", "scratch"])
def test_rows_without_crops_or_labels(table, strategy):
    table.obs["crops_available"] = np.arange(table.n_obs) % 4 > 0
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(table.n_obs) % 2 == 0)
    before = table.obs.copy()
    source = {"linear": {"encoder": ImageEncoder(n_components=8)}, "scratch": TINY | SHORT}[strategy]
    found = ImageClassifier(strategy=strategy, **source).fit(table).predict(table)
    without = ~table.obs["crops_available"]
    assert found[without].isna().all(axis=None)
    assert found[~without].notna().all(axis=None)
    pd.testing.assert_frame_equal(table.obs, before)
    table.obs["region"] = np.where(table.obs["crops_available"], "one", "two")
    with pytest.raises(ValueError, match="At least 2 classes need labelled rows with crops, found 'one'"):
        ImageClassifier(strategy=strategy, **source).fit(table)


def test_one_label_a_class_is_enough(table):
    first = [table.obs_names[table.obs["region"] == r][0] for r in table.obs["region"].unique()]
    table.obs["region"] = table.obs["region"].astype(object).where(table.obs_names.isin(first))
    with pytest.warns(HistoweaveWarning, match="fewer than 5"):
        clf = ImageClassifier(ImageEncoder(n_components=8)).fit(table)
    assert clf.predict(table).loc[first, "predicted"].tolist() == table.obs.loc[first, "region"].tolist()


def test_bad_input_is_told(table, encoder):
    for wrong in ({"strategy": "magic"}, {"n_rings": -1}, {"n_steps": 0}, {"batch_size": 1}, {"label_smoothing": 1},
                  {"random_state": -1}, {"augmentation": "x"}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ImageClassifier(encoder, **wrong)
    for wrong in ({"learning_rate": -1}, {"learning_rate": 0}, {"first_layer": 2}, {"first_layer": 0}, {"n_rings": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ImageClassifier(encoder, strategy="fine_tune", **wrong)
    with pytest.raises(ValueError, match="needs an `encoder`"):
        ImageClassifier(strategy="fine_tune")
    with pytest.raises(ValueError, match="leave `encoder` out"):
        ImageClassifier(encoder, strategy="scratch")
    with pytest.raises(ValueError, match="needs an encoder with a network"):
        ImageClassifier(ImageEncoder(), strategy="fine_tune")
    with pytest.raises(ValueError, match="has no network"):
        _ = ImageClassifier(ImageEncoder()).fit(table).network
    with pytest.raises(RuntimeError, match="not fitted"):
        ImageClassifier(encoder).predict(table)
    with pytest.raises(FloatingPointError, match="`learning_rate`"):
        ImageClassifier(encoder, strategy="fine_tune", learning_rate=1e30, **SHORT).fit(table)
    with pytest.raises(KeyError, match="hw.io.read_labels"):
        ImageClassifier(encoder).fit(table, labels_key="none")
    del table.obsm["crops_context"]
    with pytest.raises(KeyError, match="crops_context.*hw.pp.crops"):
        ImageClassifier(encoder).fit(table)


def test_fine_tuning_starts_from_the_network_s_part_of_an_encoder_with_statistics(table):
    options = {"backbone": "tiny", "n_components": 4, "max_epochs": 1, "batch_size": 50, "precision": "float32"}
    encoder = ImageEncoder("simclr", statistics=True, **options).fit(table)
    start = ImageClassifier(encoder).fit(table)
    still = ImageClassifier(encoder, strategy="fine_tune", n_steps=1, learning_rate=1e-9, batch_size=4).fit(table)
    assert not still.encoder.statistics
    assert encoder.statistics
    width = encoder._network.dim
    expected = (start._head.coef / start._head.sd)[:, :4] @ encoder._map.weights()[:4, :width]
    np.testing.assert_allclose(still._head.coef, expected, rtol=1e-3, atol=1e-5)
    assert still.predict_proba(table).notna().all(axis=None)
