"""Sections and spots unlike the training ones: stated rates on draws of known distribution, planted strangers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import RegionClassifier
from histoweave.models._novelty import SPOT_RATE, Novelty, NoveltyCheck, _parts, raw_features
from histoweave.models.fusion import _inner
from histoweave.models.fusion._heads import ForestHead
from histoweave.models.image_encoder._model import FEATURES
from histoweave.models.image_encoder._statistics import feature_names


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_inner, "ForestHead", partial(ForestHead, 5))
        yield


# ------------------------------------------------------------------ rates


def test_rate_of_spots_is_the_stated_one():
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(20, 20))
    X = rng.normal(size=(3000, 20)) @ mixing
    novelty = Novelty.fit(X, np.full(3000, "s"), rng.integers(0, 4, 3000), scale=True, random_state=0)
    new = rng.normal(size=(20_000, 20)) @ mixing
    beyond = (novelty.cloud.distance(new) > novelty.limit).mean()
    assert beyond == pytest.approx(SPOT_RATE, abs=0.005)
    assert (novelty.cloud.distance(3 * new) > novelty.limit).mean() > 0.9


def test_one_section_is_judged_by_its_spots():
    novelty = Novelty(None, 1.0, None)
    assert novelty.section(np.zeros((3, 1)), np.array([0.2, 1.5, 1.6]), None, 0.05) > 1
    assert novelty.section(np.zeros((3, 1)), np.array([0.2, 0.3, 1.6]), None, 0.05) < 1


# ------------------------------------------------------------------ simulated sections


SHAPE = {"n_rows": 10, "n_cols": 10, "n_regions": 3, "n_genes": 120, "um_per_px": 2.0}
CROPS = {"crops": 110}


def simulated(n, seed, **knobs):
    table = hw.datasets.simulate_sections(n, random_state=seed, **SHAPE | knobs)
    hw.pp.crops(table, size_um=CROPS, out_px=16)
    return table


def part(table, *names):
    return table[table.obs["library_id"].isin([f"section_{n}" for n in names])].copy()


@pytest.fixture(scope="module")
def table():
    return simulated(10, 0)


@pytest.fixture(scope="module")
def clf(table):
    return RegionClassifier(crop_um=CROPS, n_rings=0).fit(part(table, *range(1, 8)))


@pytest.fixture(scope="module")
def strangers():
    """Another stain, other textures, other genes."""
    return {
        "stain": simulated(2, 1, stain_shift=2.0),
        "texture": simulated(2, 2, image_regions=[4, 5, 7]),
    }


def test_donors_of_the_named_column_are_held_out_together(table):
    table = table.copy()
    table.obs["patient"] = table.obs["library_id"].astype(str).str[-1].astype(int) % 2
    assert (_parts(table, "patient") == table.obs["patient"].astype(str)).all()
    assert (_parts(table, "nobody") == table.obs["library_id"]).all()


def test_usual_sections_are_not_flagged(clf, table):
    verdict = clf.novelty(part(table, 8, 9, 10))
    assert verdict.groupby("modality").size().to_dict() == {"gene": 3, "image": 3}
    assert not verdict["out_of_distribution"].any()
    assert (verdict["novelty"] < 1).all()
    spots = clf.predict(part(table, 8, 9, 10))
    assert spots["out_of_distribution"].mean() < 0.08


@pytest.mark.parametrize("kind", ["stain", "texture"])
def test_strange_images_are_flagged(clf, strangers, kind):
    verdict = clf.novelty(strangers[kind], modalities=["image"]).set_index("section")
    assert verdict["out_of_distribution"].all()


def test_what_lies_next_to_what_is_not_strange(clf, table):
    new = part(table, 8, 9)
    before = clf.novelty(new)
    image = clf._encoders["image"]
    new.obsm[FEATURES] = image.features(new)
    strips = [name for name in range(new.obsm[FEATURES].shape[1]) if "_strip" in feature_names()[name]]
    new.obsm[FEATURES][:, strips] += 10.0
    after = NoveltyCheck(clf._novelty.parts).apply(clf._encoders, new)[1]
    pd.testing.assert_frame_equal(
        after.query("modality == 'image'").reset_index(drop=True),
        before.query("modality == 'image'").reset_index(drop=True),
    )
    new.obsm[FEATURES] += 10.0
    shifted = NoveltyCheck(clf._novelty.parts).apply(clf._encoders, new)[1]
    assert shifted.query("modality == 'image'")["out_of_distribution"].all()


def test_strange_genes_are_flagged_and_told(clf, table):
    """Genes change places: the depth of every spot and the counts themselves stay."""
    other = part(table, 8, 9)
    rows = (other.obs["library_id"] == "section_9").to_numpy()
    counts = other.layers["counts"].toarray()
    counts[rows] = counts[rows][:, np.random.default_rng(0).permutation(other.n_vars)]
    other.layers["counts"] = other.X = type(other.X)(counts)
    with pytest.warns(HistoweaveWarning, match=r"'section_9' by gene\. .*stain_normalize") as told:
        spots = clf.predict(other)
    assert "section_8" not in str(told[0].message)
    assert spots.loc[rows, "out_of_distribution"].all()
    hw.tl.predict_regions(other, clf)
    np.testing.assert_array_equal(other.obs["region_novelty"], spots["novelty"])
    np.testing.assert_array_equal(other.obs["region_out_of_distribution"], spots["novelty"] > 1)
    verdict = other.uns["region_novelty"].set_index(["section", "modality"])["out_of_distribution"]
    assert verdict[verdict].index.tolist() == [("section_9", "gene")]


def test_missing_genes_are_not_strange_genes(clf, table):
    new = part(table, 8)
    kept = np.random.default_rng(0).permutation(new.n_vars)[: int(0.7 * new.n_vars)]
    verdict = clf.novelty(new[:, np.sort(kept)].copy(), modalities=["gene"]).iloc[0]
    assert verdict["genes_found"] == pytest.approx(0.7, abs=0.01)
    assert not verdict["out_of_distribution"]
    few = clf.novelty(new[:, kept[: int(0.4 * new.n_vars)]].copy(), modalities=["gene"]).iloc[0]
    assert few["out_of_distribution"]


def test_saved_with_the_model(clf, table, tmp_path):
    again = RegionClassifier.load(clf.save(tmp_path / "clf"))
    new = part(table, 9)
    pd.testing.assert_frame_equal(again.novelty(new), clf.novelty(new))
    pd.testing.assert_series_equal(again.predict(new)["novelty"], clf.predict(new)["novelty"])


def test_one_training_section_says_what_it_cannot_tell(table, strangers):
    clf = RegionClassifier(genes=None, crop_um=CROPS, n_rings=0).fit(part(table, 1))
    assert not clf.novelty(part(table, 1))["out_of_distribution"].any()
    with pytest.warns(HistoweaveWarning, match="fitted on one section"):
        clf.predict(strangers["texture"])


def test_spots_without_a_modality(clf, table):
    new = part(table, 8)
    new.layers["counts"][:5] = 0
    spots = clf.predict(new, modalities=["gene"])
    assert spots["novelty"].isna().to_numpy()[:6].tolist() == [True] * 5 + [False]
    assert not spots["out_of_distribution"][:5].any()


def test_cross_validation_does_not_pay_for_it(table, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(NoveltyCheck, "fit", never)
    few = part(table, 1, 2, 3)
    hw.pp.split(few, by="donor", n_folds=3)
    scores = hw.tl.cross_validate(few, model=RegionClassifier(image=None), nulls=False)
    assert len(scores) == 3


def test_arrangement_is_left_out_of_statistics_beside_a_network():
    table = hw.datasets.simulate_section(n_rows=8, n_cols=8, n_genes=60, um_per_px=2.0)
    hw.pp.crops(table, size_um=110, out_px=32)
    encoder = hw.models.ImageEncoder("simclr", backbone="tiny", max_epochs=1, n_components=4, batch_size=32,
                                     statistics=True, precision="float32").fit(table)  # fmt: skip
    found, _, _ = raw_features({"image": encoder}, table)["image"]
    width, kept = encoder._network.dim, ["_strip" not in name for name in feature_names()]
    features = encoder.features(table)
    np.testing.assert_array_equal(found[:, :width], features[:, :width])
    np.testing.assert_array_equal(found[:, width:], features[:, width:][:, kept])
