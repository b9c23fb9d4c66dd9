"""The fusion classifier: subsets of modalities, calibration, abstention, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.metrics import expected_calibration_error
from histoweave.models import FusionClassifier
from histoweave.models.fusion._heads import ForestHead

NAMES = np.array(["dermis", "fat", "tumour"], dtype=object)


def simulate(n: int = 240, *, image: float = 2.0, gene: float = 2.0, seed: int = 0, n_groups: int = 6):
    """Two blocks of features of known strength."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    blocks = {
        name: np.concatenate([rng.normal(size=(n, 3)) + strength * np.eye(3)[y], rng.normal(size=(n, 5))], axis=1)
        for name, strength in (("image", image), ("gene", gene))
    }
    return blocks, NAMES[y], rng.integers(0, n_groups, n)


@pytest.fixture(scope="module")
def fitted():
    blocks, y, groups = simulate()
    return FusionClassifier(heads=("linear",)).fit(blocks, y, groups=groups)


def accuracy(clf, blocks, y, **kwargs):
    return (clf.predict(blocks, **kwargs)["predicted"].to_numpy() == y).mean()


def test_both_beat_each_alone(fitted):
    blocks, y, _ = simulate(900, seed=1)
    alone = [accuracy(fitted, {m: blocks[m]}, y) for m in ("image", "gene")]
    assert accuracy(fitted, blocks, y) > max(alone) + 0.02
    assert min(alone) > 0.75


@pytest.mark.parametrize("method", ["stack", "concat"])
def test_missing_rows_missing_modality_and_choice_agree(method):
    blocks, y, groups = simulate()
    clf = FusionClassifier(method, heads=("linear",)).fit(blocks, y, groups=groups)
    new, _, _ = simulate(30, seed=2)
    image_only = clf.predict_proba({"image": new["image"]})
    np.testing.assert_array_equal(image_only, clf.predict_proba(new, modalities=["image"]))
    gappy = {"image": new["image"].copy(), "gene": new["gene"].copy()}
    gappy["gene"][:10] = np.nan
    gappy["image"][5:15] = np.nan
    p = clf.predict_proba(gappy)
    np.testing.assert_allclose(p[:5], image_only[:5])
    np.testing.assert_allclose(p[10:15], clf.predict_proba({"gene": new["gene"]})[10:15])
    np.testing.assert_allclose(p[15:], clf.predict_proba(new)[15:])
    assert np.isnan(p[5:10]).all()
    frame = clf.predict(gappy)
    assert frame["predicted"][5:10].isna().all()
    assert frame["abstain"][5:10].all()


@pytest.mark.slow
def test_useless_modality_costs_little():
    blocks, y, groups = simulate(gene=0.0)
    clf = FusionClassifier().fit(blocks, y, groups=groups)
    new, truth, _ = simulate(1500, gene=0.0, seed=3)
    assert accuracy(clf, new, truth) > accuracy(clf, new, truth, modalities=["image"]) - 0.02
    weights = clf.modality_weights()
    assert weights["gene"] < 0.25 * weights["image"]


def test_probabilities_are_calibrated_and_abstention_pays(fitted):
    blocks, y, _ = simulate(3000, seed=4)
    p = fitted.predict_proba(blocks)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert expected_calibration_error(y, p, classes=fitted.classes) < 0.05
    frame = fitted.predict(blocks)
    kept = ~frame["abstain"].to_numpy()
    right = frame["predicted"].to_numpy() == y
    assert kept.mean() == pytest.approx(0.9, abs=0.05)
    assert right[kept].mean() > right.mean() + 0.01
    assert right[~kept].mean() < right[kept].mean() - 0.2
    decided = pd.Index(fitted.classes).get_indexer(frame["predicted"])
    np.testing.assert_array_equal(frame["confidence"], p[np.arange(len(p)), decided])


def test_history_is_honest_out_of_fold(fitted):
    blocks, y, _ = simulate(3000, seed=5)
    history = fitted.history.set_index("modalities")
    assert sorted(history.index) == ["gene", "gene+image", "image"]
    for name in history.index:
        assert history.loc[name, "accuracy"] == pytest.approx(
            accuracy(fitted, blocks, y, modalities=name.split("+")), abs=0.06
        )
        assert history.loc[name, "n"] == 240


def test_at_zero_signal_the_score_out_of_fold_is_chance():
    blocks, y, groups = simulate(600, image=0.0, gene=0.0)
    history = FusionClassifier(heads=("linear",)).fit(blocks, y, groups=groups).history
    spread = np.sqrt((1 / 3) * (2 / 3) / 600)
    assert np.abs(history["accuracy"] - 1 / 3).max() < 4 * spread


@pytest.mark.slow
def test_groups_matter_where_rows_repeat():
    """Features that only name the group look perfect between rows and are worth nothing between groups."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    X = rng.normal(size=(30, 20))[groups] + 0.01 * rng.normal(size=(300, 20))
    y = NAMES[rng.integers(0, 3, 30)][groups]
    grouped = FusionClassifier(heads=("forest",)).fit({"x": X}, y, groups=groups).history["accuracy"][0]
    leaking = FusionClassifier(heads=("forest",)).fit({"x": X}, y).history["accuracy"][0]
    assert leaking > 0.95
    assert grouped < 0.6


def test_unlabelled_rows_change_nothing(fitted):
    blocks, y, groups = simulate()
    padded = {m: np.concatenate([b, 1000 + b[:50]]) for m, b in blocks.items()}
    labels = np.concatenate([y, [None] * 25, [np.nan] * 20, [" "] * 5])
    clf = FusionClassifier(heads=("linear",)).fit(padded, labels, groups=np.concatenate([groups, np.arange(50) + 100]))
    np.testing.assert_array_equal(clf.predict_proba(blocks), fitted.predict_proba(blocks))


def test_same_seed_same_result_other_seed_other_trees(monkeypatch):
    monkeypatch.setattr(ForestHead.__init__, "__defaults__", (20, 2))
    blocks, y, groups = simulate(90)
    p = [
        FusionClassifier(heads=("forest",), random_state=s).fit(blocks, y, groups=groups).predict_proba(blocks)
        for s in (0, 0, 1)
    ]
    assert np.array_equal(p[0], p[1])
    assert not np.array_equal(p[0], p[2])


def test_labels_that_are_numbers_are_names():
    blocks, y, groups = simulate()
    codes = pd.Categorical(y).codes
    clf = FusionClassifier(heads=("linear",)).fit(blocks, codes + 1.0, groups=groups)
    assert clf.classes == ["1", "2", "3"]
    assert set(clf.predict(blocks)["predicted"]) == {"1", "2", "3"}


def test_class_of_one_group_is_still_predicted():
    blocks, y, groups = simulate(400, image=3.0, n_groups=5)
    only = (y == "tumour") & (groups == 0)
    keep = (y != "tumour") | only
    clf = FusionClassifier(heads=("linear",)).fit({"image": blocks["image"][keep]}, y[keep], groups=groups[keep])
    new, truth, _ = simulate(600, image=3.0, seed=6)
    found = clf.predict({"image": new["image"]})["predicted"].to_numpy()
    assert (found[truth == "tumour"] == "tumour").mean() > 0.5


def test_few_labels_warn_and_never_abstain():
    blocks, y, _ = simulate(40)
    few = np.full(40, None, dtype=object)
    for name in NAMES:
        few[np.flatnonzero(y == name)[:2]] = name
    with pytest.warns(HistoweaveWarning, match="Too few label"):
        clf = FusionClassifier(heads=("linear",)).fit(blocks, few)
    assert not clf.predict(blocks)["abstain"].any()
    assert accuracy(clf, blocks, y) > 0.6


def test_one_label_a_class_works():
    blocks, y, _ = simulate(40)
    few = np.full(40, None, dtype=object)
    few[[int(np.flatnonzero(y == name)[0]) for name in NAMES]] = NAMES
    with pytest.warns(HistoweaveWarning, match="Too few label"):
        clf = FusionClassifier().fit(blocks, few)
    assert clf.predict_proba(blocks).shape == (40, 3)


@pytest.mark.parametrize("method", ["stack", "concat"])
def test_modality_without_labelled_rows_is_left_out(method):
    blocks, y, groups = simulate()
    blocks["gene"][:200] = np.nan
    labels = y.copy()
    labels[200:] = None
    with pytest.warns(HistoweaveWarning, match="gene is left out"):
        clf = FusionClassifier(method, heads=("linear",)).fit(blocks, labels, groups=groups)
    new, _truth, _ = simulate(200, seed=7)  # rows that have both are classified from the one that was learned
    np.testing.assert_array_equal(clf.predict_proba(new), clf.predict_proba({"image": new["image"]}))
    with pytest.raises(ValueError, match=r"fitted \('image'\)"):
        clf.predict(new, modalities=["gene"])
    assert clf.answers_from == {"image"}
    assert set(clf.predict(new)["modalities"]) == {"image"}


def test_modalities_that_are_asked_for_by_name(fitted):
    blocks, _, _ = simulate(50, seed=3)
    np.testing.assert_array_equal(
        fitted.predict_proba(blocks, modalities="gene"), fitted.predict_proba({"gene": blocks["gene"]})
    )
    for ask in (fitted.predict, fitted.predict_proba):
        with pytest.raises(ValueError, match="`modalities` must be one of 'image', 'gene', got 'genes'"):
            ask(blocks, modalities=["image", "genes"])
    blocks["gene"][:20] = np.nan
    blocks["image"][10:30] = np.nan
    used = ["image"] * 10 + [""] * 10 + ["gene"] * 10 + ["gene+image"] * 20
    assert fitted.predict(blocks)["modalities"].tolist() == used


def test_modalities_never_seen_together_are_combined():
    blocks, y, groups = simulate()
    blocks["gene"][:120] = np.nan
    blocks["image"][120:] = np.nan
    with pytest.warns(HistoweaveWarning, match="gene\\+image are not calibrated"):
        clf = FusionClassifier(heads=("linear",)).fit(blocks, y, groups=groups)
    new, truth, _ = simulate(600, seed=8)
    assert accuracy(clf, new, truth) > max(accuracy(clf, new, truth, modalities=[m]) for m in blocks)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b, y: ({}, y), "one modality or more"),
        (lambda b, y: ({"a+b": b["image"]}, y), "without"),
        (lambda b, y: (b, ["a"] * len(y)), "At least 2 classes"),
        (lambda b, y: (b, [None] * len(y)), "At least 2 classes"),
        (lambda b, y: (b, y[:-1]), "shape"),
        (lambda b, y: ({"image": np.where(np.eye(len(y), 8) > 0, np.nan, b["image"])}, y), "NaN or infinite"),
        (lambda b, y: ({"image": np.full_like(b["image"], np.inf)}, y), "NaN or infinite"),
        (lambda b, y: ({"image": b["image"][:, 0]}, y), "shape"),
    ],
)
def test_bad_features_and_labels(change, said):
    blocks, y, _ = simulate(30)
    clf = FusionClassifier(heads=("linear",))
    with pytest.raises(ValueError, match=said):
        clf.fit(*change(blocks, y))
    with pytest.raises(RuntimeError, match="not fitted"):
        clf.predict(blocks)


def test_no_modality_has_two_classes():
    blocks, y, _ = simulate(30)
    for block in blocks.values():
        block[y != "fat"] = np.nan
    clf = FusionClassifier(heads=("linear",))
    with (
        pytest.warns(HistoweaveWarning, match="left out"),
        pytest.raises(ValueError, match="No modality has labelled rows"),
    ):
        clf.fit(blocks, y)
    with pytest.raises(RuntimeError, match="not fitted"):
        clf.predict(blocks)


def test_groups_of_another_length():
    blocks, y, _ = simulate(30)
    with pytest.raises(ValueError, match="`groups` has 3 entries for 30 labels"):
        FusionClassifier().fit(blocks, y, groups=[1, 2, 3])


def test_features_of_another_width(fitted):
    with pytest.raises(ValueError, match="has 5 columns, the classifier was fitted on 8"):
        fitted.predict({"image": np.zeros((3, 5))})


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "vote"},
        {"heads": ("svm",)},
        {"heads": ()},
        {"coverage": 0},
        {"decision": "fair"},
        {"calibration": "platt"},
        {"coverage": 1.5},
        {"n_inner": 1},
        {"random_state": -1},
        {"random_state": None},
    ],
)
def test_bad_arguments(wrong):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(wrong))}`"):
        FusionClassifier(**wrong)


def test_weights_of_concat_are_refused():
    blocks, y, groups = simulate(60)
    clf = FusionClassifier("concat", heads=("linear",)).fit(blocks, y, groups=groups)
    with pytest.raises(ValueError, match="method='stack'"):
        clf.modality_weights()


@pytest.mark.parametrize("method", ["stack", "concat", "gated"])
def test_loaded_is_the_same_to_the_last_bit(method, tmp_path, monkeypatch):
    monkeypatch.setattr(ForestHead.__init__, "__defaults__", (20, 2))
    blocks, y, groups = simulate(120)
    clf = FusionClassifier(method, coverage=0.8).fit(blocks, y, groups=groups)
    again = hw.models.FusionClassifier.load(clf.save(tmp_path / "model"))
    gappy = {m: b.astype(np.float32) for m, b in blocks.items()}
    gappy["gene"][:9] = np.nan
    assert np.array_equal(again.predict_proba(gappy), clf.predict_proba(gappy), equal_nan=True)
    pd.testing.assert_frame_equal(again.predict(gappy), clf.predict(gappy))
    pd.testing.assert_frame_equal(again.history, clf.history)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["classes"] == sorted(NAMES)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "macro_f1" in card
    assert "gene+image" in card
