"""Views that are stored are those that training would draw."""

from __future__ import annotations

import numpy as np
import pytest

import histoweave as hw
from histoweave.loaders import Augmentation


def test_crops_come_first_and_views_differ(cut):
    hw.tl.augmentations(cut, n=3, n_views=2)
    found = cut.uns["augmentations"]
    assert found["views"].shape == (3, 3, 16, 16, 3)
    np.testing.assert_array_equal(found["views"][:, 0], cut[found["names"]].obsm["crops"])
    assert (found["views"][:, 1] != found["views"][:, 2]).any(axis=(1, 2, 3)).all()


def test_nothing_changes_where_nothing_is_drawn(cut):
    still = Augmentation(scale=(1.0, 1.0), rotation=0, flip=False)
    hw.tl.augmentations(cut, preset=still, n=4, n_views=3)
    views = cut.uns["augmentations"]["views"].astype(int)
    assert np.abs(views - views[:, :1]).max() <= 1


def test_flips_are_of_the_same_crop(cut):
    hw.tl.augmentations(cut, preset=Augmentation(scale=(1.0, 1.0), rotation=0), n=4, n_views=8)
    for crop, *views in cut.uns["augmentations"]["views"].astype(int):
        kinds = [[np.abs(view - other).max() <= 1 for other in (crop, crop[:, ::-1])] for view in views]
        assert np.any(kinds, axis=1).all()
        assert np.any(kinds, axis=0).all()


def test_seed_repeats_exactly(cut):
    drawn = []
    for seed in (0, 0, 1):
        hw.tl.augmentations(cut, random_state=seed)
        drawn.append(cut.uns["augmentations"]["views"])
    np.testing.assert_array_equal(*drawn[:2])
    assert (drawn[0] != drawn[2]).any()


def test_bad_input_is_named(cut):
    with pytest.raises(ValueError, match="must be one of 'histology'"):
        hw.tl.augmentations(cut, preset="strong")
    with pytest.raises(KeyError, match="crops_context"):
        hw.tl.augmentations(cut, crops_key="crops_context")
    cut.obs["crops_available"] = False
    with pytest.raises(ValueError, match="No row has crops"):
        hw.tl.augmentations(cut)
    assert "augmentations" not in cut.uns
