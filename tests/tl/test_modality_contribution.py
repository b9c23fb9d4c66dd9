"""Contributions of image and genes: what the simulator planted, what is written, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._record import recorded
from histoweave._validate import HistoweaveWarning


@pytest.fixture(scope="module")
def fitted(few_trees):
    """The image tells regions 1 and 2 apart, the genes 3 and 4; section 3 is not trained on."""
    table = hw.datasets.simulate_sections(
        3, n_rows=12, n_cols=12, n_genes=120, um_per_px=2.0, image_regions=[0, 1, 2, 2], gene_regions=[0, 0, 1, 2]
    )
    hw.pp.crops(table, size_um=110, out_px=32)
    known = (table.obs["library_id"] != "section_3").to_numpy()
    clf = hw.models.RegionClassifier(crop_um={"crops": 110}, n_rings=0).fit(table[known].copy())
    found = hw.tl.modality_contribution(table, clf, labels_key="region")
    return table, clf, found


def test_each_modality_gets_the_regions_it_tells_apart(fitted):
    _, _, found = fitted
    for metric in ("f1", "recall"):
        shares = found[found["metric"] == metric].pivot(index="region", columns="modality", values="contribution")
        assert shares.loc[["region_3", "region_4"], "gene"].sum() > shares.loc[["region_3", "region_4"], "image"].sum()
    spots = found[found["metric"] == "log_probability"].pivot(index="region", columns="modality", values="contribution")
    more = spots["image"] - spots["gene"]
    assert more[["region_1", "region_2"]].min() > more[["region_3", "region_4"]].max()


def test_values_add_up(fitted):
    table, clf, found = fitted
    wide = found.pivot_table(index=["region", "metric"], columns="modality", values="contribution", sort=False)
    ends = found.groupby(["region", "metric"], sort=False)[["full", "empty"]].first()
    np.testing.assert_allclose(wide.sum(axis=1).loc[ends.index], ends["full"] - ends["empty"], atol=1e-12)
    p = clf.predict_proba(table).to_numpy()
    chosen = p.argmax(axis=1) if clf._fusion.decision == "accuracy" else pd.Categorical(
        clf.predict(table)["predicted"], categories=clf.classes).codes  # fmt: skip
    rows = np.arange(len(p))
    expected = p[rows, chosen] - np.array(clf._fusion.class_shares)[chosen]
    np.testing.assert_allclose(table.obsm["modality_contribution"].sum(axis=1), expected, atol=1e-6)
    expected = np.log(p[rows, chosen]) - np.log(np.array(clf._fusion.class_shares)[chosen])
    np.testing.assert_allclose(table.obsm["modality_contribution_log"].sum(axis=1), expected, atol=1e-5)


def test_scores_are_those_of_unseen_sections(fitted):
    table, clf, found = fitted
    new = (table.obs["library_id"] == "section_3").to_numpy()
    truth = table.obs["region"][new].astype(str)
    overall = found[(found["region"] == "overall") & (found["metric"] == "macro_f1")].iloc[0]
    assert overall["n"] == new.sum()
    guess = clf.predict(table)["predicted"][new]
    assert overall["full"] == pytest.approx(hw.metrics.classification(truth, guess)["macro_f1"])
    commonest = clf.classes[int(np.argmax(clf._fusion.class_shares))]
    nothing = hw.metrics.classification(truth, np.full(len(truth), commonest), classes=clf.classes)
    assert overall["empty"] == pytest.approx(nothing["macro_f1"])


def test_what_is_written(fitted):
    table, clf, found = fitted
    assert (table.obs["modality_contribution_class"].astype(str) == clf.predict(table)["predicted"]).all()
    assert list(table.obsm["modality_contribution"].columns) == ["gene", "image"]
    pd.testing.assert_frame_equal(table.uns["modality_contribution"], found)
    entry = recorded(table, "modality_contribution")
    assert entry["function"] == "tl.modality_contribution"
    assert list(entry["sections_seen"]) == ["section_1", "section_2"]
    assert entry["n_held_out"] == (table.obs["library_id"] == "section_3").sum()


def test_a_modality_that_nothing_was_learned_of_has_no_part(fitted):
    table, _, _ = fitted
    known = (table.obs["library_id"] != "section_3").to_numpy()
    train = table[known].copy()
    labelled = (train.obs["library_id"] == "section_1").to_numpy()
    train.obs["few"] = train.obs["region"].astype(object).where(labelled)
    counts = train.layers["counts"].tolil()
    counts[np.flatnonzero(labelled)] = 0
    train.layers["counts"] = counts.tocsr()
    with pytest.warns(HistoweaveWarning, match="gene is left out"):
        clf = hw.models.RegionClassifier(crop_um={"crops": 110}, n_rings=0).fit(train, labels_key="few")
    assert set(clf.predict(table)["modalities"]) == {"image"}
    with pytest.raises(
        ValueError, match=r"The table has 'image' only, of what the classifier answers from \('image'\)"
    ):
        hw.tl.modality_contribution(table, clf)


def test_embeddings_with_a_mask():
    rng = np.random.default_rng(0)
    table = hw.datasets.simulate_section(n_rows=10, n_cols=10, n_regions=2, n_genes=60, image=False)
    y = table.obs["region"].to_numpy()
    table.obsm["X_image"] = (rng.normal(size=(100, 3)) + 2 * (y == "region_2")[:, None]).astype(np.float32)
    table.obsm["X_gene"] = rng.normal(size=(100, 3)).astype(np.float32)
    table.obs["held_out"] = np.arange(100) % 2 == 0
    features = {"image": table.obsm["X_image"], "gene": table.obsm["X_gene"]}
    labels = np.where(table.obs["held_out"], None, y)
    clf = hw.models.FusionClassifier(heads="linear").fit(features, labels)
    with pytest.raises(ValueError, match="mask_key"):
        hw.tl.modality_contribution(table, clf, labels_key="region")
    found = hw.tl.modality_contribution(table, clf, labels_key="region", mask_key="held_out")
    found = found[(found["region"] == "overall") & (found["metric"] == "macro_f1")].set_index("modality")
    assert found.loc["image", "contribution"] > 4 * abs(found.loc["gene", "contribution"])
    assert (found["n"] == 50).all()


def test_refusals(fitted):
    table, clf, _ = fitted
    seen = table[table.obs["library_id"] != "section_3"].copy()
    del seen.obsm["modality_contribution"]
    with pytest.raises(ValueError, match="held out"):
        hw.tl.modality_contribution(seen, clf, labels_key="region")
    with pytest.raises(ValueError, match="labels_key"):
        hw.tl.modality_contribution(seen, clf, mask_key="fold")
    with pytest.raises(TypeError, match="RegionClassifier"):
        hw.tl.modality_contribution(seen, "clf")
    with pytest.raises(RuntimeError, match="not fitted"):
        hw.tl.modality_contribution(seen, hw.models.RegionClassifier())
    with pytest.raises(ValueError, match="`keys` is for"):
        hw.tl.modality_contribution(seen, clf, keys={"image": "X_image"})
    genes = hw.models.RegionClassifier(image=None).fit(seen)
    with pytest.raises(ValueError, match="two modalities"):
        hw.tl.modality_contribution(seen, genes)
    assert "modality_contribution" not in seen.obsm
