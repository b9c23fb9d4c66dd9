import dask.array as da
import numpy as np
import pandas as pd
import pytest

from histoweave.pl import _draw


def test_palette_is_distinct():
    assert len(set(_draw.PALETTE)) == 12
    assert len(set(_draw._palette(30, taken=()))) >= 30


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
