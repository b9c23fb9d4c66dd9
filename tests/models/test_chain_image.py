"""The chain on image encoders that are trained within it, or given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

import histoweave as hw
from histoweave._random import child_seeds
from histoweave.models import ImageEncoder, RegionClassifier

pytestmark = pytest.mark.usefixtures("few_trees")

OPTIONS = {"backbone": "tiny", "max_epochs": 1, "n_components": 6, "batch_size": 100, "precision": "float32"}
TRAINED = {"image": "simclr", "genes": None, "image_options": OPTIONS}


@pytest.fixture(scope="module")
def _cut(_sections):
    table = _sections.copy()
    hw.pp.crops(table, size_um={"crops": 110, "crops_context": 250}, out_px=16)
    hw.pp.split(table, by="donor", n_folds=2)
    return table


@pytest.fixture
def table(_cut):
    torch.set_num_threads(1)
    return _cut.copy()


def assert_same(a: ImageEncoder, b: ImageEncoder, *, same: bool = True) -> None:
    first, second = a._network.state_dict(), b._network.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first) is same


def test_a_method_that_trains_is_trained_on_the_sections_of_fit_and_saved(table, tmp_path):
    train = table[table.obs["fold"] == "0"].copy()
    clf = RegionClassifier(**TRAINED).fit(train)
    seed = child_seeds(0, 2)[0]
    by_hand = ImageEncoder("simclr", crops_keys=("crops", "crops_context"), random_state=seed, **OPTIONS).fit(train)
    assert_same(clf._encoders["image"], by_hand)
    again = RegionClassifier.load(clf.save(tmp_path / "clf"))
    again._encoders["image"].precision = "float32"  # follows the machine, and is not saved
    assert_frame_equal(again.predict_proba(table), clf.predict_proba(table), check_exact=True)


def test_an_encoder_that_is_given_is_used_as_it_is(table, tmp_path):
    given = ImageEncoder("simclr", crops_keys="crops_context", **OPTIONS).fit(table)
    train = table[table.obs["fold"] == "0"].copy()
    clf = RegionClassifier(image=given, genes=None).fit(train)
    assert_same(clf._encoders["image"], given)
    assert clf.sections_seen == given.sections_seen
    twin = RegionClassifier(**clf.arguments).fit(train)
    assert_frame_equal(twin.predict_proba(table), clf.predict_proba(table))
    again = RegionClassifier.load(clf.save(tmp_path / "clf"))
    again._encoders["image"].precision = "float32"
    assert_frame_equal(again.predict_proba(table), clf.predict_proba(table), check_exact=True)
    loaded = RegionClassifier(image=given.save(tmp_path / "encoder"), genes=None)
    loaded.image.precision = "float32"
    assert_frame_equal(loaded.fit(train).predict_proba(table), clf.predict_proba(table))
    assert RegionClassifier(**again.arguments).image.method == "simclr"


def test_cross_validation_trains_in_every_fold_without_the_test_sections(table, monkeypatch):
    fitted = []
    fit = RegionClassifier._fit_encoders

    def spy(self, light):
        fitted.append(self)
        return fit(self, light)

    monkeypatch.setattr(RegionClassifier, "_fit_encoders", spy)
    model = RegionClassifier(**TRAINED)
    scores = hw.tl.cross_validate(table, model=model, nulls=False)
    assert not scores["transductive"].any()
    first = fitted.copy()
    for clf, name in zip(first, ("0", "1"), strict=True):
        train = table[table.obs["fold"] != name].copy()
        assert_same(clf._encoders["image"], RegionClassifier(**TRAINED).fit(train)._encoders["image"])
    fitted.clear()
    noisy = table.copy()
    test = (noisy.obs["fold"] == "0").to_numpy()
    noise = np.random.default_rng(0).integers(0, 255, noisy.obsm["crops"][test].shape, dtype=np.uint8)
    noisy.obsm["crops"][test] = noise
    hw.tl.cross_validate(noisy, model=model, nulls=False)
    assert_same(first[0]._encoders["image"], fitted[0]._encoders["image"])
    assert_same(first[1]._encoders["image"], fitted[1]._encoders["image"], same=False)


def test_cross_validation_says_where_a_given_encoder_had_seen_the_test_sections(table):
    given = ImageEncoder(crops_keys="crops").fit(table[table.obs["fold"] == "0"].copy())
    model = RegionClassifier(image=given, genes=None)
    scores = hw.tl.cross_validate(table, model=model, nulls=False, key_added="cv")
    assert scores.set_index("fold")["transductive"].to_dict() == {"0": True, "1": False}
    assert table.uns["histoweave"]["cv_predicted"]["params"]["model"]["image"] == "given"


def test_bad_input_is_told(table, tmp_path):
    with pytest.raises(ValueError, match="`image` must be one of .*'simclr'"):
        RegionClassifier(image="magic")
    for image, options in (("supervised", {}), ("gene_contrast", {}), ("simclr", {"probe": "knn"})):
        with pytest.raises(ValueError, match="needs (labels|genes): fit such an `ImageEncoder`"):
            RegionClassifier(image=image, image_options=options)
    with pytest.raises(RuntimeError, match="not fitted"):
        RegionClassifier(image=ImageEncoder())
    with pytest.raises(FileNotFoundError, match="not a saved model"):
        RegionClassifier(image=tmp_path / "none")
    given = ImageEncoder(crops_keys="crops").fit(table)
    del table.obsm["crops"], table.obsm["crops_context"]
    table.uns["spatial"] = {}
    with pytest.raises((KeyError, ValueError), match="image|crops"):
        RegionClassifier(image=given, genes=None).fit(table)
