"""Comparing ways to train: the same as by hand, nested labels, nothing seen of the test fold, going on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import ImageClassifier, ImageEncoder
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.tl._image_arms import ImageArms

TRAINED = {
    "methods": ["simclr"],
    "backbone": "tiny",
    "encoder_options": {"max_epochs": 1, "n_components": 6, "precision": "float32", "batch_size": 100},
    "classifier_options": {"n_steps": 2, "batch_size": 6},
}
PLAIN = {"methods": ["statistics"], "encoder_options": {"n_components": 10}}


@pytest.fixture
def table(cut):
    """Four sections: one a fold, the last without labels and in none."""
    cut.obs["fold"] = cut.obs["library_id"].astype(str).str[-1].replace("4", "-1")
    cut.obs["region"] = cut.obs["region"].astype(object).where(cut.obs["fold"] != "-1")
    return cut


def test_every_arm_method_fraction_and_seed_has_a_row(table):
    table = table[table.obs["fold"].isin(["1", "2"])].copy()
    before = table.copy()
    methods = ["statistics", "simclr"]
    scores = hw.tl.compare_image_training(
        table, **TRAINED | {"methods": methods}, fractions=[0.1, 1], seeds=[3], folds=["1"]
    )
    pairs = [("scratch", ""), ("linear", "statistics"), ("context", "statistics"), ("linear", "simclr"),
             ("context", "simclr"), ("combined", "simclr"), ("fine_tune", "simclr")]  # fmt: skip
    found = scores[["seed", "arm", "method", "fraction"]].to_numpy().tolist()
    assert found == [[3, a, m, f] for a, m in pairs for f in (0.1, 1)]
    counts = table.obs["region"][table.obs["fold"] == "2"].value_counts()
    assert scores["n_train"].tolist() == [sum(round(0.1 * n) for n in counts), counts.sum()] * 7
    assert (scores["n"] == 100).all()
    assert not scores["transductive"].any()
    assert scores["macro_f1"].notna().all()
    pd.testing.assert_frame_equal(table.obs, before.obs)
    assert set(table.obsm) == set(before.obsm)


@pytest.mark.parametrize("arm", ["linear", "context"])
def test_scores_are_those_of_a_fit_by_hand(table, arm):
    scores = hw.tl.compare_image_training(table, arms=[arm], folds=["2"], **PLAIN)
    name = table.obs["library_id"].astype(str)
    encoder = ImageEncoder("statistics", n_components=10).fit(table[name != "section_2"].copy())
    clf = ImageClassifier(encoder, n_rings=int(arm == "context"))
    clf.fit(table[name.isin(["section_1", "section_3"])].copy())
    test = table[name == "section_2"].copy()
    p = clf.predict_proba(test)
    expected = hw.metrics.classification(test.obs["region"].astype(str), p.idxmax(axis=1), p)
    for metric in ("n", "macro_f1", "log_loss", "adjusted_rand"):
        assert scores[metric].item() == pytest.approx(expected[metric], abs=1e-6)


def test_combined_is_an_encoder_with_statistics_whose_network_is_the_same(table):
    trained = {**TRAINED["encoder_options"], "random_state": 0, "backbone": "tiny"}
    scores = hw.tl.compare_image_training(table, arms=["combined"], folds=["2"], **TRAINED)
    name = table.obs["library_id"].astype(str)
    encoder = ImageEncoder("simclr", statistics=True, **trained).fit(table[name != "section_2"].copy())
    clf = ImageClassifier(encoder, n_rings=1).fit(table[name.isin(["section_1", "section_3"])].copy())
    test = table[name == "section_2"].copy()
    p = clf.predict_proba(test)
    expected = hw.metrics.classification(test.obs["region"].astype(str), p.idxmax(axis=1), p)
    assert scores["log_loss"].item() == pytest.approx(expected["log_loss"], abs=1e-4)


def weights(table, monkeypatch) -> dict[str, torch.Tensor]:
    found = []
    fitted = ImageArms._fitted
    with monkeypatch.context() as patch:
        patch.setattr(ImageArms, "_fitted", lambda *args: found.append(fitted(*args)) or found[0])
        hw.tl.compare_image_training(table, arms=["linear"], folds=["1"], **TRAINED)
    return found[0]._network.state_dict()


def test_pixels_of_the_test_section_leave_every_bit_of_the_encoder(table, monkeypatch):
    before = weights(table, monkeypatch)
    rng = np.random.default_rng(0)
    for section, same in (("section_1", True), ("section_4", False)):
        noisy = table.copy()
        here = (noisy.obs["library_id"] == section).to_numpy()
        noisy.obsm["crops"][here] = rng.integers(0, 255, noisy.obsm["crops"][here].shape, dtype=np.uint8)
        after = weights(noisy, monkeypatch)
        assert all(torch.equal(v, after[k]) for k, v in before.items()) is same


def test_sections_of_no_fold_are_seen_unless_their_donor_is_tested(table, monkeypatch):
    seen = []
    fit = ImageEncoder.fit

    def spy(self, data, **keys):
        seen.append(set(data.obs["library_id"]))
        return fit(self, data, **keys)

    monkeypatch.setattr(ImageEncoder, "fit", spy)
    hw.tl.compare_image_training(table, arms=["linear"], **PLAIN)
    every = {f"section_{i}" for i in range(1, 5)}
    assert seen == [every - {f"section_{i}"} for i in (1, 2, 3)]
    seen.clear()
    table.obs["donor"] = table.obs["donor"].astype(str).where(table.obs["library_id"] != "section_4", "donor_1")
    hw.tl.compare_image_training(table, arms=["linear"], folds=["1"], **PLAIN)
    assert seen == [{"section_2", "section_3"}]


def test_an_interrupted_comparison_goes_on(table, tmp_path, monkeypatch):
    options = TRAINED | {"arms": ["scratch", "linear"], "fractions": [0.2, 1], "folds": ["1"]}
    straight = hw.tl.compare_image_training(table, **options)
    fit, calls = ImageClassifier.fit, []

    def dies(self, *args, **keys):
        calls.append(1)
        if len(calls) == 4:
            raise ConnectionError("the machine goes down")
        return fit(self, *args, **keys)

    monkeypatch.setattr(ImageClassifier, "fit", dies)
    with pytest.raises(ConnectionError):
        hw.tl.compare_image_training(table, cache_dir=tmp_path, **options)
    resumed = hw.tl.compare_image_training(table, cache_dir=tmp_path, **options)
    assert len(calls) == 4 + 1
    pd.testing.assert_frame_equal(resumed, straight)
    monkeypatch.setattr(ImageEncoder, "fit", None)
    pd.testing.assert_frame_equal(hw.tl.compare_image_training(table, cache_dir=tmp_path, **options), straight)
    assert len(calls) == 4 + 1
    table.obsm["crops"][-1] = 0
    with pytest.raises(TypeError):  # other pixels need another encoder
        hw.tl.compare_image_training(table, cache_dir=tmp_path, **options)


@pytest.mark.filterwarnings("ignore:Expression can hardly be told")
def test_other_expression_is_another_comparison(table, tmp_path):
    options = {"methods": ["gene_regression"], "arms": ["linear"], "folds": ["1"]}
    table.obsm["X_gene"] = np.random.default_rng(0).normal(size=(table.n_obs, 3)).astype(np.float32)
    first = hw.tl.compare_image_training(table, cache_dir=tmp_path, **options)
    table.obsm["X_gene"] = table.obsm["X_gene"][::-1].copy()
    second = hw.tl.compare_image_training(table, cache_dir=tmp_path, **options)
    pd.testing.assert_frame_equal(second, hw.tl.compare_image_training(table, **options))
    assert second["log_loss"].item() != first["log_loss"].item()


def test_moved_spots_other_donors_and_other_weights_are_another_comparison(table, tmp_path):
    weights = tmp_path / "start.safetensors"
    options = TRAINED | {"arms": ["context"], "folds": ["1"], "allow_leakage": True}
    options["encoder_options"] = options["encoder_options"] | {"weights": weights}

    def scores(seed: int, table) -> float:
        torch.manual_seed(seed)
        save_file(Backbone("tiny", pretrained=False).network.state_dict(), weights)
        kept = hw.tl.compare_image_training(table, cache_dir=tmp_path / "kept", **options)
        pd.testing.assert_frame_equal(kept, hw.tl.compare_image_training(table, **options))  # not an older one's
        return kept["log_loss"].item()

    moved, other = table.copy(), table.copy()
    rows = np.flatnonzero(moved.obs["library_id"] == "section_2")
    order = np.arange(len(moved))
    order[rows] = np.random.default_rng(0).permutation(rows)
    moved.obsm["spatial"] = moved.obsm["spatial"][order]
    moved.obs[["array_row", "array_col"]] = moved.obs[["array_row", "array_col"]].to_numpy()[order]
    other.obs["donor"] = other.obs["donor"].astype(str).replace({"donor_2": "donor_3"})
    assert len({scores(0, table), scores(1, table), scores(1, moved)}) == 3
    scores(1, other)


def test_bad_input_is_told(table):
    with pytest.raises(ValueError, match="`arms` must be one of"):
        hw.tl.compare_image_training(table, arms=["magic"])
    with pytest.raises(ValueError, match="`method` must be one of"):
        hw.tl.compare_image_training(table, methods=["magic"])
    with pytest.raises(ValueError, match="'supervised'.* would see labels"):
        hw.tl.compare_image_training(table, methods=["supervised"])
    with pytest.raises(ValueError, match="`fractions` must be > 0"):
        hw.tl.compare_image_training(table, fractions=[0])
    with pytest.raises(KeyError, match="hw.pp.crops"):
        hw.tl.compare_image_training(table, crops_key="none", **PLAIN)
    leaking = table.copy()
    leaking.obs["donor"] = "one"
    with pytest.raises(ValueError, match="The folds leak: .*allow_leakage=True"):
        hw.tl.compare_image_training(leaking, **PLAIN)
    scores = hw.tl.compare_image_training(leaking, allow_leakage=True, arms=["linear"], folds=["1"], **PLAIN)
    assert scores["leakage"].str.contains("one donor").all()
    table.obs["region"] = table.obs["region"].where(table.obs["fold"] == "1")
    with (
        pytest.warns(HistoweaveWarning, match="is left out"),
        pytest.raises(ValueError, match="No fold has labelled rows"),
    ):
        hw.tl.compare_image_training(table, **PLAIN)
