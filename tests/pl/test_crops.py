import dask.array as da
import numpy as np
import pytest

import histoweave as hw


@pytest.fixture
def cropped(table):
    """Every crop is filled with its own row number."""
    table.obsm["crops"] = np.broadcast_to(
        np.arange(table.n_obs, dtype=np.uint8)[:, None, None, None], (table.n_obs, 16, 16, 3)
    ).copy()
    return table


def cells(ax):
    mosaic = ax.images[0].get_array()
    return mosaic[8::17, 8::17, 0]


def test_each_row_holds_crops_of_its_class(cropped):
    ax = hw.pl.crops(cropped, n=4)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["stroma", "tumour"]
    assert cells(ax).shape == (2, 4)
    for name, line in zip(names, cells(ax), strict=True):
        assert (cropped.obs["region"].iloc[line] == name).all()
        assert len(set(line)) == 4


def test_choice_follows_the_seed(cropped):
    same = [cells(hw.pl.crops(cropped, n=4, random_state=1)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (same[0] != cells(hw.pl.crops(cropped, n=4, random_state=2))).any()


def test_small_classes_show_all_and_leave_the_rest_white(cropped):
    cropped.obs.loc[cropped.obs_names[2:-1], "region"] = "stroma"
    ax = hw.pl.crops(cropped, n=4)
    assert list(cells(ax)[1]) == [1, 255, 255, 255]


def test_without_groups(cropped):
    ax = hw.pl.crops(cropped, n=3, groupby=None)
    assert cells(ax).shape == (3, 3)
    assert not ax.get_yticklabels()


def test_rows_without_a_crop_are_not_drawn(cropped):
    cropped.obs["crops_available"] = np.arange(cropped.n_obs) % 2 == 0
    for options in ({}, {"groupby": None}):
        assert (cells(hw.pl.crops(cropped, n=4, **options)) % 2 == 0).all()


def test_lazy_crops(cropped):
    eager = cells(hw.pl.crops(cropped, n=4))
    cropped.obsm["crops"] = da.from_array(cropped.obsm["crops"], chunks=(7, 16, 16, 3))
    np.testing.assert_array_equal(cells(hw.pl.crops(cropped, n=4)), eager)


def test_size_bar_where_recorded_and_equal(cropped):
    assert not hw.pl.crops(cropped).texts
    cropped.uns["histoweave"] = {"crops": {"size_um": {"s1": 110.0}}}
    ax = hw.pl.crops(cropped)
    assert [text.get_text() for text in ax.texts] == ["110 µm"]
    assert np.ptp(ax.lines[0].get_xdata()) == 16
    cropped.uns["histoweave"] = {"crops": {"size_um": {"s1": 110.0, "s2": 80.0}}}
    assert not hw.pl.crops(cropped).texts


def test_crops_of_the_package_are_read(table):
    hw.pp.crops(table, size_um=40, out_px=16)
    ax = hw.pl.crops(table, n=2)
    assert [text.get_text() for text in ax.texts] == ["40 µm"]


def test_bad_input(cropped):
    with pytest.raises(KeyError, match="Run `hw"):
        hw.pl.crops(cropped, crops_key="crops_context")
    with pytest.raises(KeyError, match="groupby"):
        hw.pl.crops(cropped, groupby="layer")
    with pytest.raises(ValueError, match="n"):
        hw.pl.crops(cropped, n=0)
    cropped.obs["region"] = None
    with pytest.raises(ValueError, match="groupby=None"):
        hw.pl.crops(cropped)
    cropped.obsm["crops"] = cropped.obsm["crops"].astype(float)
    with pytest.raises(ValueError, match="uint8"):
        hw.pl.crops(cropped)
