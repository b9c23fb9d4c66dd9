"""The whole chain: what it recovers, what it may miss, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from pandas.testing import assert_frame_equal

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import RegionClassifier
from histoweave.models.fusion import _inner
from histoweave.models.fusion._heads import ForestHead

CROPS = {"crops": 110, "crops_context": 300}


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    """Small forests: nothing here depends on how many trees there are, and time does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_inner, "ForestHead", partial(ForestHead, 25))
        yield


def rows(table: AnnData, *names: str) -> np.ndarray:
    return table.obs["library_id"].isin(names).to_numpy()


@pytest.fixture(scope="module")
def both(_sections) -> tuple[AnnData, AnnData]:
    """Three sections to learn from, crops cut, and a fourth to map."""
    table = _sections.copy()
    hw.pp.crops(table, size_um=CROPS, out_px=32)
    return table[~rows(table, "section_4")].copy(), table[rows(table, "section_4")].copy()


@pytest.fixture(scope="module")
def clf(both) -> RegionClassifier:
    return RegionClassifier(out_px=32).fit(both[0])


@pytest.fixture
def train(both):
    return both[0].copy()


@pytest.fixture
def new(both):
    return both[1].copy()


def accuracy(prediction: pd.DataFrame, table: AnnData) -> float:
    return (prediction["predicted"].to_numpy() == table.obs["region_truth"].astype(str).to_numpy()).mean()


def without_image(table: AnnData) -> AnnData:
    table = table.copy()
    for key in CROPS:
        del table.obsm[key]
    for entry in table.uns["spatial"].values():
        entry.pop("images", None)
    return table


def without_counts(table: AnnData) -> AnnData:
    out = AnnData(obs=table.obs.copy(), obsm=dict(table.obsm), uns=table.uns.copy())
    return out


def snapshot(table: AnnData) -> dict:
    return {
        "obs": table.obs.copy(),
        "var": table.var.copy(),
        "X": table.X.copy(),
        "counts": table.layers["counts"].copy(),
        "obsm": {k: np.array(v) for k, v in table.obsm.items()},
        "uns": json.dumps(table.uns, default=lambda v: sha256(np.asarray(v).tobytes()).hexdigest(), sort_keys=True),
        "obsp": list(table.obsp),
    }


def assert_same(before: dict, after: dict) -> None:
    for frame in ("obs", "var"):
        assert_frame_equal(before[frame], after[frame])
    for matrix in ("X", "counts"):
        assert (before[matrix] != after[matrix]).nnz == 0
    assert before["obsm"].keys() == after["obsm"].keys()
    assert all(np.array_equal(v, after["obsm"][k]) for k, v in before["obsm"].items())
    assert before["uns"] == after["uns"]
    assert before["obsp"] == after["obsp"]


# ------------------------------------------------------------------ the path through


def test_new_patient_is_mapped(clf, new):
    prediction = clf.predict(new)
    scores = ["predicted", "confidence", "abstain", "modalities"]
    assert list(prediction.columns) == [*scores, "novelty", "out_of_distribution"]
    assert prediction.index.equals(new.obs_names)
    assert accuracy(prediction, new) > 0.9
    assert set(prediction["modalities"]) == {"gene+image"}
    p = clf.predict_proba(new)
    assert list(p.columns) == clf.classes == ["region_1", "region_2", "region_3"]
    np.testing.assert_allclose(p.sum(axis=1), 1)
    stated = p.to_numpy()[np.arange(len(p)), p.columns.get_indexer(prediction["predicted"])]
    np.testing.assert_array_equal(stated, prediction["confidence"])


def test_what_it_learned_from_is_stated(clf):
    assert clf.sections_seen == ["section_1", "section_2", "section_3"]
    assert clf.inner_groups == "donor"
    assert set(clf.history["modalities"]) == {"gene", "image", "gene+image"}
    assert (clf.modality_weights() > 0).all()


def test_input_is_not_changed(sections):
    table = sections[rows(sections, "section_1", "section_2")].copy()  # no crops yet: they are cut inside
    before = snapshot(table)
    model = RegionClassifier(out_px=16, crop_um={"crops": 110}).fit(table)
    assert_same(before, snapshot(table))
    model.predict(table)
    assert_same(before, snapshot(table))


def test_crops_cut_inside_are_those_cut_outside(clf, new):
    bare = new.copy()
    for key in CROPS:
        del bare.obsm[key]
        del bare.uns["histoweave"][key]
    assert_frame_equal(clf.predict_proba(bare), clf.predict_proba(new))


def test_same_seed_same_result(train, new, clf):
    again = RegionClassifier(out_px=32).fit(train)
    assert_frame_equal(again.predict_proba(new), clf.predict_proba(new))
    other = RegionClassifier(out_px=32, random_state=1).fit(train)
    assert not np.array_equal(other.predict_proba(new), clf.predict_proba(new))


def test_labels_of_what_is_predicted_are_not_looked_at(clf, new):
    expected = clf.predict_proba(new)
    new.obs["region"] = np.random.default_rng(0).permutation(new.obs["region"].to_numpy())
    assert_frame_equal(clf.predict_proba(new), expected)
    del new.obs["region"], new.obs["region_truth"], new.obs["donor"]
    assert_frame_equal(clf.predict_proba(new), expected)


def test_hidden_labels_are_not_looked_at(train):
    labels = train.obs["region"].astype(object)
    hidden = train.obsm["spatial"][:, 0] > np.median(train.obsm["spatial"][:, 0])
    found = []
    for seed in (0, 1):
        train.obs["truth"] = np.random.default_rng(seed).permutation(labels.to_numpy())
        train.obs["known"] = labels.where(~hidden)
        model = RegionClassifier(image=None).fit(train, labels_key="known")
        found.append(model.predict_proba(train))
    assert_frame_equal(*found)


def test_spatialdata_gives_the_same(both, clf):
    train, new = both
    sdata = hw.io.from_anndata(new.copy())
    assert_frame_equal(clf.predict_proba(sdata), clf.predict_proba(new))
    image_only = {"genes": None, "out_px": 32, "crop_um": {"crops": 110}}
    a = RegionClassifier(**image_only).fit(train)
    b = RegionClassifier(**image_only).fit(hw.io.from_anndata(train.copy()))
    assert_frame_equal(a.predict_proba(new), b.predict_proba(new))


# ------------------------------------------------------------------ pieces that are missing


def test_image_only_and_genes_only(clf, new):
    alone = {"image": without_counts(new), "gene": without_image(new)}
    for name, table in alone.items():
        prediction = clf.predict(table)
        assert set(prediction["modalities"]) == {name}
        assert_frame_equal(prediction, clf.predict(new, modalities=[name]))
        assert_frame_equal(prediction, clf.predict(new, modalities=name))
        assert accuracy(prediction, new) > 0.8


def test_modality_that_is_not_asked_for_is_not_looked_at(clf, new):
    expected = clf.predict_proba(new, modalities="image")
    new.layers["counts"].data[:] = -1.5
    new.X = new.layers["counts"]
    assert_frame_equal(clf.predict_proba(new, modalities="image"), expected)
    with pytest.raises(ValueError, match="negative"):
        clf.predict_proba(new)


def test_section_without_image_among_others(train, new):
    del train.uns["spatial"]["section_2"]["images"]
    for key in CROPS:
        del train.obsm[key]
    model = RegionClassifier(out_px=16, crop_um={"crops": 110}).fit(train)
    prediction = model.predict(train)
    blind = rows(train, "section_2")
    assert set(prediction["modalities"][blind]) == {"gene"}
    assert set(prediction["modalities"][~blind]) == {"gene+image"}
    assert accuracy(prediction[blind], train[blind]) > 0.7
    assert accuracy(model.predict(new), new) > 0.8


def test_spots_without_counts_use_the_image(clf, new):
    counts = new.layers["counts"].tolil()
    counts[:10] = 0
    new.layers["counts"] = counts.tocsr()
    prediction = clf.predict(new)
    assert set(prediction["modalities"][:10]) == {"image"}
    assert set(prediction["modalities"][10:]) == {"gene+image"}
    assert prediction["predicted"].notna().all()


def test_spots_without_anything_are_not_guessed(clf, new):
    table = without_image(new)
    counts = table.layers["counts"].tolil()
    counts[:10] = 0
    table.layers["counts"] = counts.tocsr()
    prediction = clf.predict(table)
    assert prediction["predicted"][:10].isna().all()
    assert prediction["abstain"][:10].all()
    assert set(prediction["modalities"][:10]) == {""}
    assert prediction["predicted"][10:].notna().all()


def test_genes_in_another_order_and_more_of_them(clf, new):
    expected = clf.predict_proba(new)
    order = np.random.default_rng(0).permutation(new.n_vars)
    np.testing.assert_allclose(clf.predict_proba(new[:, order].copy()), expected, atol=1e-3)


def test_missing_genes_cost_less_than_zeros(clf, both):
    keep = np.random.default_rng(3).random(both[1].n_vars) < 0.7
    scores = {"dropped": [], "zeros": []}
    for table in (both[1], both[0]):
        truth = clf.predict_proba(table, modalities="gene")
        zeros = table.copy()
        zeros.layers["counts"] = (table.layers["counts"] @ sp.diags(keep.astype(np.float32))).tocsr()
        with pytest.warns(HistoweaveWarning, match="genes are not in the table"):
            dropped = clf.predict_proba(table[:, keep].copy(), modalities="gene")
        for name, p in (("dropped", dropped), ("zeros", clf.predict_proba(zeros, modalities="gene"))):
            scores[name].append(np.abs(p.to_numpy() - truth.to_numpy()).mean())
    assert np.mean(scores["dropped"]) < np.mean(scores["zeros"])


def test_other_genes_leave_the_image(clf, new):
    new.var_names = [f"OTHER{i}" for i in range(new.n_vars)]
    with pytest.warns(HistoweaveWarning, match="only 0% of the model's genes; its counts are left out"):
        prediction = clf.predict(new)
    assert set(prediction["modalities"]) == {"image"}
    with pytest.raises(ValueError, match="0 of the model's 120 genes"):
        clf.predict(without_image(new))


def test_new_section_at_another_scale(clf, new):
    """The same section photographed at half the pixel size: everything is measured in um."""
    fine = hw.datasets.simulate_section(n_rows=8, n_cols=8, n_genes=120, n_regions=3, um_per_px=1.0, image_signal=1)
    coarse = hw.datasets.simulate_section(n_rows=8, n_cols=8, n_genes=120, n_regions=3, um_per_px=2.0, image_signal=1)
    assert np.array_equal(fine.obs["region_truth"], coarse.obs["region_truth"])
    scores = [accuracy(clf.predict(t, modalities="image"), t) for t in (fine, coarse)]
    assert min(scores) > 0.75


def test_crops_of_another_size_are_not_mistaken_for_the_fitted_ones(clf, new):
    expected = clf.predict_proba(new)
    for change in ({"out_px": 64}, {"size_um": {"crops": 200, "crops_context": 500}}):
        other = new.copy()
        hw.pp.crops(other, **({"size_um": CROPS, "out_px": 32} | change))
        assert_frame_equal(clf.predict_proba(other), expected)  # cut anew from the image
        for entry in other.uns["spatial"].values():
            del entry["images"]
        with pytest.raises(KeyError, match="no image to cut crops from.*32 px"):
            clf.predict_proba(other)


def test_labelled_tiles_without_coordinates(both):
    train, new = both
    tiles = AnnData(obs=train.obs[["region"]].copy(), obsm={"crops": train.obsm["crops"]})
    model = RegionClassifier().fit(tiles)
    assert model.inner_groups == "row"
    unseen = AnnData(obs=pd.DataFrame(index=new.obs_names), obsm={"crops": new.obsm["crops"]})
    assert accuracy(model.predict(unseen), new) > 0.7
    with pytest.raises(ValueError, match="'modalities' must be|`modalities` must be one of 'image'"):
        model.predict(unseen, modalities="gene")


def test_a_model_without_coordinates_takes_tables_that_have_them(both):
    train, new = both
    clf = RegionClassifier(image=None, fusion_options={"smoothing": "similar", "heads": "linear"})
    clf.fit(AnnData(train.X, obs=train.obs[["library_id", "region"]], var=train.var))
    bare = AnnData(new.X, obs=new.obs[["library_id"]], var=new.var)
    assert_frame_equal(clf.predict_proba(new, modalities="gene"), clf.predict_proba(bare))


def test_donors_of_another_column_are_kept_together(sections):
    table = sections[:, :60].copy()
    table.obs["patient"] = table.obs["library_id"].map({f"section_{i}": "one" for i in (1, 2, 3, 4)})
    del table.obs["donor"]
    clf = RegionClassifier(image=None, fusion_options={"heads": "linear"})
    assert clf.fit(table).inner_groups == "section"
    assert clf.fit(table, donor_key="patient").inner_groups == "section"  # one donor tells nothing of others
    table.obs["patient"] = table.obs["library_id"].map(lambda name: "one" if name == "section_4" else name)
    assert clf.fit(table, donor_key="patient").inner_groups == "donor"
    with pytest.raises(KeyError, match="`donor_key='patients'` is not in `adata.obs`"):
        clf.fit(table, donor_key="patients")


def test_coordinates_are_needed_where_they_were_fitted_on(clf, new):
    del new.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial_key='spatial'"):
        clf.predict(new)


@pytest.mark.parametrize(("smoothing", "signal"), [("potts", 0.25), ("similar", 0.5)])
def test_smoothed_map_follows_the_neighbours_as_chosen(tmp_path, smoothing, signal):
    table = hw.datasets.simulate_sections(4, n_rows=14, n_cols=14, gene_signal=signal, n_regions=3, image=False)
    train, new = table[~rows(table, "section_4")].copy(), table[rows(table, "section_4")].copy()
    options = {"image": None, "n_rings": 0}
    plain, smooth = (
        RegionClassifier(**options, fusion_options={"heads": "linear", "smoothing": s}).fit(train)
        for s in (None, smoothing)
    )
    assert smooth.history["smoothing_strength"][0] > 0
    if smoothing == "potts":
        assert smooth.history["macro_f1"][0] > smooth.history["macro_f1_before"][0]
        assert accuracy(smooth.predict(new), new) > accuracy(plain.predict(new), new)
    smooth.save(tmp_path / "model")
    again = RegionClassifier.load(tmp_path / "model")
    pd.testing.assert_frame_equal(again.predict_proba(new), smooth.predict_proba(new))
    hw.pp.split(table, by="donor", n_folds=4)
    fold = table.obs.loc[new.obs_names, "fold"].iloc[0]
    hw.tl.cross_validate(table, model=smooth, folds=[str(fold)], arms=["gene"], nulls=False, key_added="cv")
    held_out = table.obsm["cv_probability"].loc[new.obs_names]
    np.testing.assert_allclose(held_out, smooth.predict_proba(new), atol=1e-5)


# ------------------------------------------------------------------ must show: truth where the knobs say so

MERGED = {"image": ["region_3", "region_4"], "gene": ["region_1", "region_2"]}


@pytest.mark.slow
def test_each_modality_recovers_what_it_can_and_both_recover_all():
    table = hw.datasets.simulate_sections(
        4, n_rows=12, n_cols=12, n_genes=120, image_regions=[0, 1, 2, 2], gene_regions=[0, 0, 1, 2], um_per_px=2.0
    )
    hw.pp.crops(table, size_um=CROPS, out_px=32)
    new = rows(table, "section_4")
    model = RegionClassifier().fit(table[~new].copy())
    held_out = table[new].copy()
    truth = held_out.obs["region_truth"].astype(str).to_numpy()
    fused = model.predict(held_out)["predicted"].to_numpy()
    scores = hw.metrics.classification(truth, fused)
    assert scores["macro_f1"] > 0.9
    for name, merged in MERGED.items():
        guess = model.predict(held_out, modalities=name)["predicted"].to_numpy()
        alike = np.isin(truth, merged)
        # between regions that look alike: no better than chance, beyond the spread of so few spots
        within = np.isin(guess, merged) & alike
        chance = np.mean([(truth[within] == m).mean() for m in merged])
        spread = np.sqrt(0.25 / within.sum())
        right = np.mean([(guess[within & (truth == m)] == m).mean() for m in merged])
        assert abs(right - chance) < 0.25 + 3 * spread
        # everything else is recovered: confusions stay within the merged regions
        collapsed = [np.where(np.isin(v, merged), "merged", v) for v in (truth, guess)]
        assert (collapsed[0] == collapsed[1]).mean() > 0.9
        assert hw.metrics.classification(truth, guess)["macro_f1"] < scores["macro_f1"] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_on_new_patients_probabilities_mean_what_they_say(seed):
    table = hw.datasets.simulate_sections(
        10, n_rows=14, n_cols=14, n_genes=120, gene_signal=0.4, image=False, random_state=seed
    )
    known = rows(table, *(f"section_{i}" for i in range(1, 6)))
    clf = RegionClassifier(image=None).fit(table[known].copy())
    new = table[~known].copy()
    truth = new.obs["region_truth"].astype(str).to_numpy()
    assert hw.metrics.expected_calibration_error(truth, clf.predict_proba(new), classes=clf.classes) < 0.05
    found = clf.predict(new)
    right, kept = found["predicted"].astype(str) == truth, ~found["abstain"]
    assert 0.6 < right.mean() < 0.95  # hard enough to be unsure of something
    assert abs(found["confidence"].mean() - right.mean()) < 0.05
    assert abs(kept.mean() - clf.coverage) < 0.07
    assert right[kept].mean() > right.mean()
    assert right[~kept].mean() < right.mean() - 0.1


@pytest.mark.slow
def test_at_zero_signal_the_score_sits_at_its_null():
    table = hw.datasets.simulate_sections(
        4, n_rows=10, n_cols=10, n_genes=120, n_regions=3, um_per_px=2.0, image_signal=0, gene_signal=0
    )
    hw.pp.crops(table, size_um=110, out_px=32)
    hw.pp.split(table, by="donor", n_folds=4)
    scores = hw.tl.cross_validate(table)
    # neighbouring spots share pixels, rings and region: 400 spots say as much as about 100 independent ones
    spread = np.sqrt(1 / 3 * 2 / 3 / 100)
    found = scores[scores["kind"] == "model"].groupby("arm")["balanced_accuracy"].mean()
    assert set(found.index) == {"fused", "image", "gene"}
    assert np.abs(found - 1 / 3).max() < 3 * spread
    majority = scores.loc[scores["arm"] == "majority", "balanced_accuracy"].mean()
    assert majority == pytest.approx(1 / 3, abs=1e-6)


# ------------------------------------------------------------------ labels


def test_labels_that_are_numbers_or_have_blanks(train, new, clf):
    codes = train.obs["region"].astype(str).str[-1].astype(float)
    train.obs["number"] = codes.where(np.arange(train.n_obs) % 2 == 0)
    model = RegionClassifier(image=None).fit(train, labels_key="number")
    assert model.classes == ["1", "2", "3"]
    train.obs["blank"] = [f" {int(c)} " if i % 2 == 0 else "" for i, c in enumerate(codes)]
    other = RegionClassifier(image=None).fit(train, labels_key="blank")
    assert_frame_equal(other.predict_proba(new), model.predict_proba(new))


def test_labels_that_cannot_be_learned(train):
    model = RegionClassifier(image=None)
    with pytest.raises(KeyError, match="hw.io.read_labels"):
        model.fit(train, labels_key="nothing")
    train.obs["region"] = None
    with pytest.raises(ValueError, match="holds no label"):
        model.fit(train)
    train.obs["region"] = "all"
    with pytest.raises(ValueError, match="at least 2 regions"):
        model.fit(train)
    with pytest.raises(RuntimeError, match="not fitted"):
        model.predict(train)


def test_class_with_one_spot_is_said_and_survived(train, new):
    train.obs["few"] = train.obs["region"].astype(object)
    train.obs.loc[train.obs_names[0], "few"] = "rare"
    with pytest.warns(HistoweaveWarning, match=r"fewer than 5 labelled spots.*'rare' \(1\)"):
        model = RegionClassifier(image=None).fit(train, labels_key="few")
    assert "rare" in model.classes
    assert (model.predict(new)["predicted"] != "rare").mean() > 0.9


def test_very_few_labels_on_one_section(sections):
    table = sections[rows(sections, "section_1")].copy()
    labels = table.obs["region"].astype(object)
    keep = labels.groupby(labels).sample(3, random_state=0).index
    table.obs["region"] = labels.where(labels.index.isin(keep))
    with pytest.warns(HistoweaveWarning, match="fewer than 5 labelled spots"):
        model = RegionClassifier(image=None).fit(table)
    assert model.inner_groups == "block"
    assert accuracy(model.predict(table), table) > 0.5


def test_failed_fit_leaves_no_half_fitted_model(train, new):
    model = RegionClassifier(image=None).fit(train)
    bad = train.copy()
    bad.layers["counts"].data[0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model.fit(bad)
    with pytest.raises(RuntimeError, match="not fitted"):
        model.predict(new)


# ------------------------------------------------------------------ what is refused


def test_nothing_to_learn_from_or_predict(train, clf, new):
    empty = without_counts(without_image(train))
    with pytest.raises(ValueError, match="neither images, crops nor counts"):
        RegionClassifier().fit(empty)
    with pytest.raises(ValueError, match="nothing that this model was fitted on"):
        clf.predict(without_counts(without_image(new)))


def test_log_values_instead_of_counts(clf, new):
    new.layers["counts"] = new.layers["counts"].log1p()
    with pytest.raises(ValueError, match="fractional"):
        clf.predict(new)


def test_empty_and_repeated_rows(clf, new):
    with pytest.raises(ValueError, match="no rows"):
        clf.predict(new[:0].copy())
    new.obs_names = ["same"] * new.n_obs
    with pytest.raises(ValueError, match="row names occur more than once"):
        clf.predict(new)


def test_coordinates_that_are_missing_values_or_off_the_image(clf, new):
    for key in CROPS:
        del new.obsm[key]
    for value, error in ((np.nan, "NaN|missing"), (1e6, "outside")):
        bad = new.copy()
        bad.obsm["spatial"][:20] = value
        with pytest.raises(ValueError, match=error):
            clf.predict(bad)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image": "magic"}, "`image`"),
        ({"genes": "magic"}, "`genes`"),
        ({"image": None, "genes": None}, "nothing to learn from"),
        ({"fusion": "magic"}, "`method`"),
        ({"coverage": 0}, "`coverage`"),
        ({"n_rings": -1}, "`n_rings`"),
        ({"out_px": 8}, "`out_px`"),
        ({"crop_um": {"crops": -5}}, r"crop_um\['crops'\]"),
        ({"random_state": -1}, "`random_state`"),
        ({"image_options": {"batch_size": 0}}, "`batch_size`"),
        ({"image_options": {"bogus": 1}}, "bogus"),
        ({"gene_options": {"n_components": 0}}, "`n_components`"),
    ],
)
def test_bad_arguments_are_told_before_any_work(wrong, said):
    with pytest.raises((ValueError, TypeError), match=said):
        RegionClassifier(**wrong)


def test_not_fitted(new):
    for call in (RegionClassifier().predict, RegionClassifier().predict_proba):
        with pytest.raises(RuntimeError, match="not fitted"):
            call(new)
    with pytest.raises(RuntimeError, match="not fitted"):
        RegionClassifier().modality_weights()


def test_unknown_modality(clf, new):
    with pytest.raises(ValueError, match="`modalities` must be one of"):
        clf.predict(new, modalities=["proteins"])


# ------------------------------------------------------------------ saving


def test_loaded_is_the_same_to_the_last_bit(clf, new, tmp_path):
    path = clf.save(tmp_path / "modèle")
    again = RegionClassifier.load(path)
    assert_frame_equal(again.predict_proba(new), clf.predict_proba(new), check_exact=True)
    assert_frame_equal(again.predict(new), clf.predict(new), check_exact=True)
    bare = new.copy()
    for key in CROPS:
        del bare.obsm[key]
    assert_frame_equal(again.predict_proba(bare), clf.predict_proba(bare), check_exact=True)
    assert again.arguments == clf.arguments
    assert again.sections_seen == clf.sections_seen
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert config["arguments"]["random_state"] == 0
    assert config["sizes_um"] == CROPS
    card = (path / "README.md").read_text(encoding="utf-8")
    for said in ("section_3", "crops 110 um", "Intended use", "macro_f1", "region_1, region_2, region_3"):
        assert said in card


def test_saved_again_is_the_same(clf, tmp_path):
    first = clf.save(tmp_path / "a")
    second = RegionClassifier.load(first).save(tmp_path / "b")
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_twin_is_unfitted(clf):
    twin = RegionClassifier(**clf.arguments)
    assert twin.classes is None
    assert twin.arguments == clf.arguments
