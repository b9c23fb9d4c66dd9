"""The runner of folds: embedded once, fitted in many ways, each as by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave.models import ImageEncoder, RegionClassifier
from histoweave.tl._fold_runner import FoldRunner

TINY = {"backbone": "tiny", "max_epochs": 1, "n_components": 6, "batch_size": 100, "precision": "float32"}


@pytest.fixture(scope="module")
def table(_sections):
    table = _sections.copy()
    hw.pp.crops(table, size_um={"crops": 110, "crops_context": 250}, out_px=16)
    hw.pp.split(table, by="donor", n_folds=2)
    return table


@pytest.fixture(scope="module")
def runner(table):
    return FoldRunner(table, RegionClassifier())


@pytest.fixture
def count_fits(monkeypatch):
    seen, fit = [], RegionClassifier._fit_encoders
    monkeypatch.setattr(RegionClassifier, "_fit_encoders", lambda self, light: seen.append(self) or fit(self, light))
    return seen


def test_a_fold_is_embedded_once_for_all_that_is_asked_of_it(table, count_fits, monkeypatch):
    described, features = [], ImageEncoder._describe

    def spy(self, crops, available, key, **how):
        described.append(key)
        return features(self, crops, available, key, **how)

    monkeypatch.setattr(ImageEncoder, "_describe", spy)
    runner = FoldRunner(table, RegionClassifier())
    folds, leak = runner.folds()
    for fold in folds:
        found = runner.embed(fold)
        for n_rings, seed in ((0, 0), (1, 1)):
            clf = runner.fit(found, runner.labels.where(fold.train), n_rings=n_rings, seed=seed)
            runner.predict(clf, runner.embed(fold), fold.test)
        runner.embed(fold, crops_key="crops")
    assert leak == ""
    assert len(count_fits) == 2
    assert described == ["crops", "crops_context"]
    runner.embed(folds[-1], seed=7)
    assert len(count_fits) == 3


@pytest.mark.parametrize("n_rings", [0, 1])
def test_fewer_labels_other_rings_and_seeds_are_those_of_a_fit_by_hand(table, runner, n_rings):
    fold = runner.folds()[0][0]
    few = runner.labels.where(fold.train & (np.arange(table.n_obs) % 3 == 0))
    found = runner.embed(fold)
    clf = runner.fit(found, few, n_rings=n_rings, seed=3)
    train = table[fold.train].copy()
    train.obs["few"] = few[fold.train]
    options = {"n_rings": n_rings, "fusion_options": {"random_state": 3}}
    hand = RegionClassifier(**options).fit(train, labels_key="few")
    test = table[fold.test].copy()
    for modalities in (None, ["image"], ["gene"]):
        p, prediction = runner.predict(clf, found, fold.test, modalities)
        np.testing.assert_allclose(p, hand.predict_proba(test, modalities=modalities), atol=1e-5)
        assert prediction.index.tolist() == np.flatnonzero(fold.test).tolist()
        same = prediction["predicted"].to_numpy() == hand.predict(test, modalities=modalities)["predicted"].to_numpy()
        assert same.all()


def test_one_modality_alone_and_rows_of_other_folds(table, runner):
    fold = runner.folds()[0][0]
    found = runner.embed(fold)
    assert {name: len(values) for name, values in found.items()} == {"image": 400, "gene": 400}
    clf = runner.fit({"gene": found["gene"]}, runner.labels.where(fold.train))
    p, _ = runner.predict(clf, found, fold.train | fold.test)
    assert p.shape == (400, 3)
    assert clf._fusion.modalities == ["gene"]


@pytest.mark.parametrize("image", ["statistics", "simclr"])
def test_one_scale_is_an_encoder_of_that_scale(table, image):
    options = {"image": image, "image_options": TINY if image == "simclr" else {}}
    runner = FoldRunner(table, RegionClassifier(**options))
    fold = runner.folds()[0][0]
    found = runner.embed(fold, crops_key="crops_context")["image"]
    train, test = table[fold.train].copy(), table[fold.test].copy()
    if image == "statistics":
        encoder = ImageEncoder(crops_keys="crops_context")
        expected = {"train": encoder.fit_embed(train), "test": encoder.embed(test)}
    else:  # the network of both scales, its features of one
        whole = runner._embeddings._encoders[0]["image"]
        encoder = ImageEncoder("simclr", crops_keys="crops_context", n_components=6, random_state=whole.random_state)
        half = {name: whole.features(part) for name, part in {"train": train, "test": test}.items()}
        train.obsm["_histoweave_image_features"] = half["train"][:, half["train"].shape[1] // 2 :]
        test.obsm["_histoweave_image_features"] = half["test"][:, half["test"].shape[1] // 2 :]
        expected = {"train": encoder.fit_embed(train), "test": encoder.embed(test)}
    np.testing.assert_allclose(found[fold.train], expected["train"], atol=1e-4)
    np.testing.assert_allclose(found[fold.test], expected["test"], atol=1e-4)
    with pytest.raises(ValueError, match="`crops_key` must be one of 'crops', 'crops_context'"):
        runner.embed(fold, crops_key="crops_detail")


def test_twin_has_other_arguments_and_the_same_rows(table, runner, count_fits):
    fold = runner.folds()[0][0]
    twin = runner.twin(genes=None)
    assert set(twin.embed(fold)) == {"image"}
    np.testing.assert_array_equal(twin.embed(fold)["image"], runner.embed(fold)["image"])
    assert not twin.has("gene")
    assert runner.has("gene", "image")
    black = runner.light.copy()
    black.obsm["crops"] = np.zeros_like(black.obsm["crops"])
    other = runner.twin(black, genes=None).embed(fold)["image"]
    assert not np.allclose(other[fold.test], runner.embed(fold)["image"][fold.test])


def test_scores_of_rows_that_nobody_predicted(runner):
    fold = runner.folds()[0][0]
    p, nobody = np.full((200, 3), np.nan), pd.Series([None] * 200)
    assert runner.score(fold.test, p, nobody) == {"n": 0.0, "n_not_predicted": 200}


def test_nulls_have_a_row_a_test_row_labelled_or_not(table):
    table = table.copy()
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(table.n_obs) % 2 == 0)
    runner = FoldRunner(table, RegionClassifier(image=None))
    fold = runner.folds()[0][0]
    for name, (p, prediction) in runner.nulls(fold, 0).items():
        assert p.shape == (200, 3), name
        scores = runner.score(fold.test, p, prediction["predicted"])
        truth = table.obs["region"][fold.test]
        rows = truth.notna().to_numpy()
        assert scores["accuracy"] == pytest.approx((prediction["predicted"].to_numpy()[rows] == truth[rows]).mean())
