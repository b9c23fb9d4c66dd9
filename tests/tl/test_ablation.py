"""The ablation: rows are those of cross-validation, tests and intervals those of their formulas, embedded once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import RegionClassifier

QUICK = {"heads": "linear", "n_inner": 2}
MODEL = RegionClassifier(fusion_options=QUICK)
GENES = RegionClassifier(image=None, fusion_options=QUICK)
NULLS = ["majority", "depth", "coordinates", "neighbour vote", "permuted labels"]


@pytest.fixture(scope="module")
def _designed():
    """Four donors: the image tells regions 1 and 2 apart, the genes regions 3 and 4."""
    table = hw.datasets.simulate_sections(
        4, n_rows=10, n_cols=10, n_genes=100, um_per_px=2.0, image_regions=[0, 1, 2, 2], gene_regions=[0, 0, 1, 2]
    )
    hw.pp.crops(table, size_um={"crops": 110, "crops_context": 250}, out_px=16)
    hw.pp.split(table, by="donor", n_folds=2)
    return table


@pytest.fixture
def designed(_designed):
    return _designed.copy()


@pytest.fixture(scope="module")
def ablated(_designed):
    table = _designed.copy()
    with pytest.MonkeyPatch.context() as patch:
        fitted, fit = [], RegionClassifier._fit_encoders
        patch.setattr(RegionClassifier, "_fit_encoders", lambda self, t: fitted.append(self) or fit(self, t))
        scores = hw.tl.ablation(table, model=MODEL, seeds=(0, 1), n_resamples=200, key_added="ablation")
    return table, scores, fitted


@pytest.fixture(scope="module")
def arms(ablated):
    return ablated[1].drop_duplicates("arm").set_index("arm")


def test_one_row_a_fold_seed_and_arm(ablated):
    _, scores, fitted = ablated
    names = ["fused", "image", "gene", "fused, no context", "image, no context", "gene, no context"]
    names += [f"{arm}, {key} only" for key in ("crops", "crops_context") for arm in ("fused", "image")] + NULLS
    for _, rows in scores.groupby(["fold", "seed"]):
        assert rows["arm"].tolist() == names
    assert len(scores) == 2 * 2 * len(names)
    assert (scores["kind"] == np.where(scores["arm"].isin(NULLS), "null", "model")).all()
    assert (scores["leakage"] == "").all()
    assert (scores["n"] == 200).all()
    assert (scores["groups"] == "4 donors").all()
    assert len(fitted) == 2  # once a fold, for all arms and seeds


def test_rows_are_those_of_cross_validation(ablated, designed):
    _, scores, _ = ablated
    options = {"fold_key": "fold", "folds": ["1"]}
    for n_rings, suffix in ((1, ""), (0, ", no context")):
        model = RegionClassifier(n_rings=n_rings, fusion_options=QUICK)
        peer = hw.tl.cross_validate(designed, model=model, nulls=False, **options).set_index("arm")
        own = scores[(scores["fold"] == "1") & (scores["seed"] == 0)].set_index("arm")
        for arm in ("fused", "image", "gene"):
            for metric in ("macro_f1", "log_loss", "ece", "n_train"):
                assert own.loc[arm + suffix, metric] == pytest.approx(peer.loc[arm, metric], abs=1e-9)
    peer = hw.tl.cross_validate(designed, model=GENES, random_state=1)
    own = scores[scores["seed"] == 1]
    for null in NULLS[:-1]:
        a, b = (t.loc[t["arm"] == null, "macro_f1"].tolist() for t in (own, peer))
        assert a == pytest.approx(b)


def test_the_design_is_found(ablated, arms, designed):
    table, _, _ = ablated
    pooled = arms["pooled"]
    assert pooled["fused"] > max(pooled["image"], pooled["gene"]) + 0.1
    assert (arms.loc[["image", "gene"], "difference_high"] < 0).all()
    assert arms.loc[NULLS, "high"].max() < arms.loc["fused", "low"]
    truth = table.obs["region_truth"].astype(str)

    def recall(arm, region):
        guess = table.obsm["ablation"][f"{arm}, seed 0"].astype(str)
        return (guess[truth == region] == region).mean()

    def pair(arm, first):  # how well two regions are told apart
        return np.mean([recall(arm, f"region_{k}") for k in (first, first + 1)])

    assert pair("image", 1) > pair("gene", 1) + 0.15
    assert pair("gene", 3) > pair("image", 3) + 0.15
    assert min(pair("fused", 1), pair("fused", 3)) > 0.8


def test_intervals_and_tests_are_those_of_the_stored_predictions(ablated, arms):
    table, scores, _ = ablated
    truth, stored = table.obs["region"].astype(str), table.obsm["ablation"].astype(object)
    predicted = {arm: stored[[f"{arm}, seed 0", f"{arm}, seed 1"]].to_numpy() for arm in arms.index if arm != NULLS[-1]}
    found = hw.metrics.group_bootstrap(
        truth, predicted, table.obs["donor"], reference="fused", metrics=["macro_f1"], n_resamples=200
    ).set_index("arm")
    columns = {"value": "pooled", "low": "low", "difference": "difference", "difference_high": "difference_high"}
    for one, other in columns.items():
        np.testing.assert_allclose(arms.loc[found.index, other].astype(float), found[one], atol=1e-12)
    mean = scores.groupby(["arm", "fold"])["macro_f1"].mean().unstack("fold")
    gaps = mean.sub(mean.loc["fused"])
    p = {a: hw.metrics.corrected_t_test(gaps.loc[a], test_ratio=1)["p_value"] for a in arms.index if a != "fused"}
    np.testing.assert_allclose(arms.loc[list(p), "p_value"], list(p.values()))
    models = [a for a in p if a not in NULLS]
    np.testing.assert_allclose(arms.loc[models, "p_holm"], hw.metrics.holm([p[a] for a in models]))
    np.testing.assert_allclose(arms.loc[NULLS, "p_holm"], hw.metrics.holm([p[a] for a in NULLS]))
    assert np.isnan(arms.loc["fused", "p_holm"])


def test_permuted_labels_are_no_better_than_chance(arms):
    assert arms.loc["permuted labels", "pooled"] < 0.4  # four regions
    assert arms.loc["permuted labels", "pooled"] < arms.loc["fused", "pooled"] - 0.3


def test_the_same_call_gives_the_same_table_and_leaves_the_data_alone(designed):
    before = designed.copy()
    options = {"model": GENES, "reference": "gene", "seeds": [3], "n_resamples": 20, "folds": ["1"], "ablate": []}
    first = hw.tl.ablation(designed, **options)
    pd.testing.assert_frame_equal(first, hw.tl.ablation(designed, **options))
    assert first["fold"].unique().tolist() == ["1"]
    pd.testing.assert_frame_equal(designed.obs, before.obs)
    assert set(designed.obsm) == set(before.obsm)
    assert set(designed.uns["histoweave"]) == set(before.uns["histoweave"])


ONE = {"nulls": False, "folds": ["0"], "n_resamples": 20, "seeds": [0], "arms": ["image"], "reference": "image"}


@pytest.fixture(scope="module")
def image_score(_designed):
    scores = hw.tl.cross_validate(_designed, model=MODEL, folds=["0"], arms=["image"], nulls=False)
    return scores["macro_f1"].item()


@pytest.mark.slow
def test_without_self_supervision_there_are_statistics(designed, image_score):
    options = {"backbone": "tiny", "max_epochs": 1, "n_components": 6, "batch_size": 200, "precision": "float32"}
    model = RegionClassifier(image="simclr", image_options=options, fusion_options=QUICK)
    scores = hw.tl.ablation(designed, model=model, ablate=["self-supervision"], **ONE).set_index("arm")["macro_f1"]
    assert scores.index.tolist() == ["image", "image, no self-supervision"]
    assert scores["image, no self-supervision"] == pytest.approx(image_score)
    assert scores["image"] != pytest.approx(image_score)


@pytest.mark.slow
def test_stain_normalised_and_as_scanned(designed, image_score):
    options = {"model": MODEL, "ablate": ["stain"], "stain": "reinhard"} | ONE
    before = hw.tl.ablation(designed, **options).set_index("arm")["macro_f1"]
    assert before.index.tolist() == ["image", "image, reinhard stain"]
    for key in ("crops", "crops_context"):
        hw.pp.stain_normalize(designed, method="reinhard", crops_key=key)
    after = hw.tl.ablation(designed, **options).set_index("arm")["macro_f1"]
    assert after.index.tolist() == ["image", "image, stain as scanned"]
    assert before["image"] == after["image, stain as scanned"] == pytest.approx(image_score)
    assert before["image, reinhard stain"] == after["image"]
    designed.uns["spatial"] = {}
    with pytest.warns(HistoweaveWarning, match="no image to cut them from again"):
        assert hw.tl.ablation(designed, **options)["arm"].tolist() == ["image"]


def test_the_stain_of_one_section_has_no_arm(designed):
    one = designed[designed.obs["library_id"] == "section_1"].copy()
    one.obs["fold"] = np.where(one.obsm["spatial"][:, 0] > np.median(one.obsm["spatial"][:, 0]), "0", "1")
    options = {"model": MODEL, "ablate": ["stain"], "allow_leakage": True} | ONE
    with pytest.warns(HistoweaveWarning, match="There is one section"):
        assert hw.tl.ablation(one, **options)["arm"].tolist() == ["image"]


def test_retrained_encoders_have_the_seed(designed, monkeypatch):
    seeds, fit = [], RegionClassifier._fit_encoders
    monkeypatch.setattr(
        RegionClassifier, "_fit_encoders", lambda self, t: seeds.append(self.random_state) or fit(self, t)
    )
    options = {"model": GENES, "reference": "gene", "folds": ["0"], "nulls": False, "n_resamples": 20}
    hw.tl.ablation(designed, seeds=[4, 5], retrain=True, **options)
    assert seeds == [4, 5]


def test_leaking_folds_are_refused(designed):
    designed.obs["fold"] = np.arange(designed.n_obs) % 2
    with pytest.raises(ValueError, match="The folds leak: .*allow_leakage=True"):
        hw.tl.ablation(designed, model=GENES, reference="gene")
    options = {"seeds": [0], "nulls": False, "folds": ["0"], "n_resamples": 20, "ablate": []}
    scores = hw.tl.ablation(designed, model=GENES, reference="gene", allow_leakage=True, **options)
    assert scores["leakage"].str.contains("training rows lie").all()


def test_a_class_of_one_donor_is_stated(designed):
    region = designed.obs["region"].astype(object)
    designed.obs["region"] = region.where((region != "region_1") | (designed.obs["donor"] == "donor_1"))
    here = str(designed.obs["fold"][designed.obs["donor"] == "donor_1"].iloc[0])
    with pytest.warns(HistoweaveWarning, match=f"Fold {here!r}: no training row has 'region_1'"):
        scores = hw.tl.ablation(
            designed, model=GENES, reference="gene", seeds=[0], nulls=False, ablate=[], n_resamples=20
        )
    assert scores.set_index("fold")["unseen_classes"].to_dict() == {"0": "", "1": ""} | {here: "region_1"}


def test_bad_input_is_told(designed):
    for wrong, message in (
        ({"arms": ["protein"]}, "`arms` must be one of"),
        ({"ablate": ["rings"]}, "`ablate` must be one of 'context'"),
        ({"metric": "log_loss"}, "`metric` must be one of 'macro_f1'"),
        ({"seeds": [1, 1]}, "`seeds` must be one or more different integers"),
        ({"reference": "image"}, "`reference` must be one of 'gene', 'gene, no context', got 'image'"),
        ({"arms": ["image"]}, "None of the arms 'image'"),
    ):
        with pytest.raises(ValueError, match=message):
            hw.tl.ablation(designed, **{"model": GENES, "reference": "gene"} | wrong)
    del designed.obs["fold"]
    with pytest.raises(KeyError, match="hw.pp.split"):
        hw.tl.ablation(designed, model=GENES, reference="gene")


def test_an_encoder_guided_by_expression_is_set_against_statistics_and_keeps_its_scales(designed):
    hw.tl.gene_encoder(designed, n_components=5)
    seen = designed[designed.obs["fold"] == "0"].copy()
    given = hw.models.ImageEncoder("gene_regression", crops_keys=("crops", "crops_context")).fit(seen)
    model = RegionClassifier(image=given, genes=None, fusion_options=QUICK)
    found = hw.tl.ablation(
        designed, model=model, folds=["1"], seeds=(0,), nulls=False, arms=["image"], reference="image", n_resamples=20,
        ablate=["self-supervision", "scales"], allow_leakage=True,
    )  # fmt: skip
    assert found["arm"].tolist() == ["image", "image, no self-supervision"]
