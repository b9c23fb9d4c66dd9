import dask.array as da
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from histoweave.pl import _draw

# What is left of linear RGB without one kind of cone (Machado, Oliveira & Fernandes 2009, severity 1)
VISIONS = {
    "normal": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                     [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                       [-0.011820, 0.042940, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                      [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("vision", VISIONS)
def test_palette_stays_apart(vision):
    colors = np.array([to_rgb(color) for color in (*_draw.PALETTE, _draw.MISSING)])
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISIONS[vision]), 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    apart = deltaE_ciede2000(lab[:, None], lab[None])
    assert apart[np.triu_indices(13, 1)].min() > 10


def test_more_classes_than_the_palette_still_differ():
    assert len(set(_draw.distinct_colors(30))) == 30


def test_numbers_as_labels_are_classes_once_predicted(table):
    table.obs["layer"] = np.arange(table.n_obs) % 3
    assert _draw.is_continuous(table, "layer")
    table.obs["layer_predicted"] = 1
    assert not _draw.is_continuous(table, "layer")
    assert list(_draw.class_colors(table, "layer")) == ["0", "1", "2"]
    assert not _draw.is_continuous(table, "region_abstain")


def test_class_names_are_trimmed_and_empty_ones_missing():
    names = _draw.class_names(pd.Series([" a", 1.0, None, "", np.nan, "b"]))
    assert list(names) == ["a", "1", None, None, None, "b"]
    for kind in ("string", object):
        assert list(_draw.class_names(pd.Series([" a", pd.NA, "b"], dtype=kind))) == ["a", None, "b"]
    assert list(_draw.class_names(pd.Series([True, pd.NA], dtype="boolean"))) == ["True", None]


@pytest.mark.parametrize("shape", [(1500, 900), (1501, 30), (4000, 7001)])
def test_reduced_is_small_and_keeps_the_mean(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    small = _draw._reduced(pixels, 1500)
    assert max(small.shape) <= 1500
    assert small.dtype == np.uint8
    assert small.mean() == pytest.approx(pixels.mean(), abs=1)


def test_reduced_averages_blocks():
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    pixels[:2, :2] = [[[10], [20]], [[30], [40]]]
    np.testing.assert_array_equal(_draw._reduced(pixels, 2)[..., 0], [[25, 0], [0, 0]])


def test_a_lazy_image_is_never_held_whole():
    largest = []

    def block(block_info=None):
        shape = block_info[None]["chunk-shape"]
        largest.append(np.prod(shape))
        return np.full(shape, 7, dtype=np.uint8)

    lazy = da.map_blocks(block, chunks=((1000,) * 20, (1000,) * 20, (3,)), dtype=np.uint8)  # 1.2 GB
    small = _draw._reduced(lazy, 1500)
    assert max(small.shape) <= 1500
    assert (small == 7).all()
    assert max(largest) == 3_000_000
