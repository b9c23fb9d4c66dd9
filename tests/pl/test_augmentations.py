import numpy as np
import pytest

import histoweave as hw


def test_each_line_is_a_crop_and_its_views(table):
    views = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) + np.zeros((2, 3, 16, 16, 3), dtype=np.uint8)
    table.uns["augmentations"] = {"views": views, "names": ["a", "b"]}
    ax = hw.pl.augmentations(table)
    np.testing.assert_array_equal(ax.images[0].get_array()[8::17, 8::17, 0], [[0, 1, 2], [3, 4, 5]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_missing_views_are_named(table):
    with pytest.raises(KeyError, match=r"Run `hw\.tl\.augmentations"):
        hw.pl.augmentations(table)
