"""The runner of folds: embedded once, fitted in many ways, each as by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import ImageEncoder, RegionClassifier
from histoweave.tl._fold_runner import FoldRunner

GENES = RegionClassifier(image=None)
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


@pytest.mark.parametrize("image", ["statistics", "simclr", "simclr beside statistics"])
def test_one_scale_is_an_encoder_of_that_scale(table, image):
    image, both = image.split()[0], "beside" in image
    options = {"image": image, "image_options": TINY | {"statistics": both} if image == "simclr" else {}}
    runner = FoldRunner(table, RegionClassifier(**options))
    fold = runner.folds()[0][0]
    found = runner.embed(fold, crops_key="crops_context")["image"]
    train, test = table[fold.train].copy(), table[fold.test].copy()
    if image == "statistics":
        encoder = ImageEncoder(crops_keys="crops_context")
        expected = {"train": encoder.fit_embed(train), "test": encoder.embed(test)}
    else:  # the network of both scales, its features of one
        whole = runner._embeddings._encoders[0]["image"]
        expect = {"crops_keys": "crops_context", "n_components": 6, "random_state": whole.random_state}
        encoder = ImageEncoder("simclr", statistics=both, **expect)
        plain = ImageEncoder(crops_keys=("crops", "crops_context"))
        for part in (train, test):
            own, beside = whole.features(part), plain.features(part)
            n = own.shape[1] - both * beside.shape[1]
            blocks = [own[:, n // 2 : n], beside[:, beside.shape[1] // 2 :]][: 1 + both]
            part.obsm["_histoweave_image_features"] = np.concatenate(blocks, axis=1)
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
    masked = FoldRunner(table, RegionClassifier(genes="masked", gene_options={"n_latent": 4, "max_epochs": 1}))
    np.testing.assert_array_equal(masked.twin(genes=None).embed(fold)["image"], runner.embed(fold)["image"])


@pytest.mark.parametrize("options", [{"method": "triplet"}, {"method": "simclr", "probe": "linear"}])
def test_an_encoder_that_knows_labels_of_test_sections_leaks(table, options):
    known = (table.obs["fold"] == "1").to_numpy()  # which fold "0" trains on
    encoder = ImageEncoder(crops_keys="crops", labels_key="region", **TINY | options).fit(table[known].copy())
    runner = FoldRunner(table, RegionClassifier(image=encoder))
    assert [fold.name for fold in runner.folds(["0"])[0]] == ["0"]
    with pytest.raises(ValueError, match="trained with labels of 'section_.*name only other `folds=`.*allow_leakage"):
        runner.folds()
    folds, leak = runner.folds(allow_leakage=True)
    assert len(folds) == 2
    assert "trained with labels" in leak
    with pytest.warns(HistoweaveWarning, match="trained with labels of .* which inner folds test on"):
        runner.fit(runner.embed(folds[0]), runner.labels.where(folds[0].train))
    plain = ImageEncoder(crops_keys="crops", **TINY, method="simclr").fit(table[known].copy())
    folds, leak = FoldRunner(table, RegionClassifier(image=plain)).folds()
    assert leak == ""


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


def test_donors_of_another_column_are_kept_together(table):
    other = table.copy()
    other.obs["patient"] = other.obs.pop("donor")
    runner = FoldRunner(other, GENES, donor_key="patient")
    folds, _ = runner.folds()
    clf = runner.fit(runner.embed(folds[0]), runner.labels)
    assert clf.inner_groups == "donor"
    shared = other.copy()
    shared.obs["patient"] = "one"
    with pytest.raises(ValueError, match=r"one donor \('one'\)"):
        FoldRunner(shared, GENES, donor_key="patient").folds()
    with pytest.raises(KeyError, match="`donor_key='patients'` is not in `adata.obs`.*Did you mean 'patient'"):
        FoldRunner(other, GENES, donor_key="patients")


@pytest.mark.parametrize("whole", [False, True])
def test_a_modality_that_no_training_row_has_answers_nothing(table, whole):
    lacking = table.copy()
    fold = FoldRunner(lacking, RegionClassifier()).folds()[0][0]
    labelled = np.arange(table.n_obs) % 3 == 0
    lacking.obs["known"] = lacking.obs["region"].astype(object).where(labelled | fold.test)
    without_genes = fold.train if whole else fold.train & labelled
    counts = lacking.layers["counts"].tolil()
    counts[np.flatnonzero(without_genes)] = 0
    lacking.layers["counts"] = counts.tocsr()
    runner = FoldRunner(lacking, RegionClassifier(), labels_key="known")
    found = runner.embed(fold)
    clf = runner.fit(found, runner.labels.where(fold.train))
    assert set(found) == ({"image"} if whole else {"image", "gene"})
    image, fused, gene = (runner.predict(clf, found, fold.test, m) for m in (["image"], ["image", "gene"], ["gene"]))
    np.testing.assert_array_equal(image[0], fused[0])
    assert np.isnan(gene[0]).all()
    assert gene[1]["abstain"].all()
    assert gene[1]["predicted"].isna().all()
    n = int((fold.test & (runner.y >= 0)).sum())
    assert runner.score(fold.test, gene[0], gene[1]["predicted"]) == {"n": 0.0, "n_not_predicted": n}
    for score in (hw.tl.cross_validate, partial(hw.tl.ablation, seeds=[0], n_resamples=50, ablate=[])):
        scores = score(lacking, labels_key="known", folds=[fold.name], model=RegionClassifier()).set_index("arm")
        assert scores.loc["image", "macro_f1"] == scores.loc["fused", "macro_f1"] > 0.5
        assert scores.loc["gene", "n_not_predicted"] == n
    if whole:
        with pytest.raises(ValueError, match="No section to train on has images or counts.*`folds=`"):
            hw.tl.cross_validate(lacking, labels_key="known", folds=[fold.name], model=GENES)


def test_scales_of_a_fold_without_images_to_train_on(table):
    lacking = table.copy()
    fold = FoldRunner(lacking, RegionClassifier()).folds()[0][0]
    for key in ("crops", "crops_context"):
        lacking.obs[f"{key}_available"] = ~fold.train
    options = {"folds": [fold.name], "seeds": [0], "n_resamples": 50, "reference": "gene"}
    with pytest.warns(HistoweaveWarning, match=f"Fold '{fold.name}': no section to train on has images;"):
        scores = hw.tl.ablation(lacking, model=RegionClassifier(), **options).set_index("arm")
    n = int((fold.test & (table.obs["region"].notna().to_numpy())).sum())
    assert (scores.filter(regex="^image", axis=0)["n_not_predicted"] == n).all()
    assert scores.loc["fused", "macro_f1"] == scores.loc["gene", "macro_f1"] > 0.5
