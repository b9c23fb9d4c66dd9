import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba

import histoweave as hw
from histoweave._validate import HistoweaveWarning


def spots(ax):
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


def centres(collection):
    return np.array([path.vertices[:-1].mean(axis=0) for path in collection.get_paths()])


def fill(ax, xy):
    """Face colour of the spot at a place, without its opacity."""
    for collection in spots(ax):
        where = np.abs(centres(collection) - xy).sum(axis=1) < 1e-6
        if where.any():
            faces = collection.get_facecolors()
            return tuple(faces[where.argmax()][:3]) if len(faces) else None
    raise AssertionError(f"no spot at {xy}")


def legend_names(ax):
    legend = ax.get_legend() or (ax.figure.legends[0] if ax.figure.legends else None)
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_default_is_labels_prediction_and_confidence(table):
    axes = hw.pl.regions(table)
    assert axes.shape == (1, 3)
    assert [ax.get_title() for ax in axes[0]] == ["region", "region, predicted", "region, confidence"]
    for ax in axes[0]:
        xy = np.concatenate([centres(c) for c in spots(ax)])
        assert sorted(map(tuple, xy.round(6))) == sorted(map(tuple, table.obsm["spatial"]))


def test_only_what_exists_is_drawn(table):
    del table.obs["region_predicted"], table.obs["region_confidence"]
    ax = hw.pl.regions(table)
    assert isinstance(ax, plt.Axes)
    assert ax.get_title() == "region"


def test_one_colour_a_class_in_all_pictures(table):
    axes = hw.pl.regions(table)[0]
    tumour, stroma = table.obsm["spatial"][7], table.obsm["spatial"][11]
    assert fill(axes[0], tumour) == fill(axes[1], tumour)
    assert fill(axes[0], stroma) == fill(axes[1], stroma)
    assert fill(axes[0], tumour) != fill(axes[0], stroma)
    assert fill(axes[0], table.obsm["spatial"][0]) == to_rgba("#B8B8B8")[:3]  # unlabelled


def test_colours_do_not_depend_on_the_section(two):
    together = hw.pl.regions(two, color="region")
    alone = hw.pl.regions(two, color="region", library_id="s2")
    where = two.obsm["spatial"][-1]
    assert fill(together[1, 0], where) == fill(alone, where)
    assert [ax.get_ylabel() for ax in together[:, 0]] == ["s1", "s2"]


def test_stored_colours_follow_the_labels_not_the_order_of_predictions(table):
    table.obs["region"] = table.obs["region"].astype(pd.CategoricalDtype(["tumour", "stroma"]))
    table.uns["region_colors"] = ["#ff0000", "#00ff00"]
    axes = hw.pl.regions(table)[0]
    for ax in axes[:2]:
        assert fill(ax, table.obsm["spatial"][7]) == (1, 0, 0)
        assert fill(ax, table.obsm["spatial"][11]) == (0, 1, 0)
    fat = fill(axes[1], table.obsm["spatial"][-1])
    assert fat not in {(1, 0, 0), (0, 1, 0)}


def test_too_few_stored_colours_are_left_aside(table):
    table.uns["region_colors"] = ["#ff0000"]
    with pytest.warns(HistoweaveWarning, match="1 colours for 2 classes"):
        hw.pl.regions(table, color="region")


def test_many_classes_all_differ(table):
    table.obs["region"] = [f"r{i:02d}" for i in range(table.n_obs)]
    ax = hw.pl.regions(table, color="region")
    assert len(np.unique(spots(ax)[0].get_facecolors(), axis=0)) == table.n_obs


def test_palette_is_used_and_must_be_complete(table):
    ax = hw.pl.regions(table, color="region", palette={"tumour": "red", "stroma": "blue", "fat": "gold"})
    assert fill(ax, table.obsm["spatial"][5]) == (0, 0, 1)
    with pytest.raises(KeyError, match="no colour for 'fat'"):
        hw.pl.regions(table, color="region", palette={"tumour": "red", "stroma": "blue"})


def test_abstained_spots_are_rings(table):
    ax = hw.pl.regions(table, color="region_predicted")
    discs, rings = spots(ax)
    assert len(rings.get_paths()) == table.obs["region_abstain"].sum()
    assert len(rings.get_facecolors()) == 0
    assert (rings.get_linewidths() > 0).all()
    assert len(discs.get_paths()) == (~table.obs["region_abstain"]).sum()
    assert "abstained" in legend_names(ax)


def test_legend_names_what_is_drawn(table):
    assert legend_names(hw.pl.regions(table)[0, 2]) == ["stroma", "tumour", "fat", "no label", "abstained"]
    assert legend_names(hw.pl.regions(table, color="region")) == ["stroma", "tumour", "no label"]
    assert legend_names(hw.pl.regions(table, color="region", legend=False)) == []


def test_confidence_runs_from_zero_to_one(table):
    ax = hw.pl.regions(table, color="region_confidence")
    viridis = plt.colormaps["viridis"]
    assert fill(ax, table.obsm["spatial"][-1]) == viridis(1.0)[:3]
    assert fill(ax, table.obsm["spatial"][0]) == viridis(0.4)[:3]
    table.obs.loc[table.obs_names[0], "region_confidence"] = np.nan
    ax = hw.pl.regions(table, color="region_confidence")
    assert fill(ax, table.obsm["spatial"][0]) == to_rgba("#B8B8B8")[:3]


def test_image_lies_under_the_spots(table):
    ax = hw.pl.regions(table, color="region")
    (picture,) = ax.images
    pixels, (left, right, bottom, top) = picture.get_array(), picture.get_extent()
    assert bottom > top  # y runs down
    for xy, label in zip(table.obsm["spatial"], table.obs["region"], strict=True):
        column = int((xy[0] - left) / (right - left) * pixels.shape[1])
        row = int((xy[1] - top) / (bottom - top) * pixels.shape[0])
        if isinstance(label, str):
            assert tuple(pixels[row, column]) == ((255, 0, 0) if label == "tumour" else (0, 255, 0))


def test_crop_frames_the_spots_and_no_crop_the_image(table):
    table.obsm["spatial"] = 100 + table.obsm["spatial"] / 2
    ax = hw.pl.regions(table, color="region")
    margin = 1.5 * 55
    assert ax.get_xlim() == (150 - margin, 400 + margin)
    assert ax.get_ylim() == (400 + margin, 150 - margin)
    ax = hw.pl.regions(table, color="region", crop=False)
    assert ax.get_xlim() == (0, 700)
    assert ax.get_ylim() == (700, 0)


def test_spots_have_the_recorded_diameter_in_pixels(table):
    width = lambda ax: np.ptp(spots(ax)[0].get_paths()[0].vertices[:, 0])  # noqa: E731
    assert width(hw.pl.regions(table, color="region")) == pytest.approx(55)
    assert width(hw.pl.regions(table, color="region", size=80)) == pytest.approx(80)
    del table.uns["spatial"]["s1"]["scalefactors"]["spot_diameter_fullres"]
    assert width(hw.pl.regions(table, color="region")) == pytest.approx(60)  # 0.6 of the 100 px between spots


def test_large_images_are_reduced(table):
    big = np.repeat(np.repeat(table.uns["spatial"]["s1"]["images"]["hires"], 20, axis=0), 20, axis=1)
    table.uns["spatial"]["s1"]["images"] = {"hires": big}
    table.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"] = 10.0
    ax = hw.pl.regions(table, color="region")
    shape = ax.images[0].get_array().shape
    assert 700 < max(shape) <= 1500
    left, right, *_ = ax.images[0].get_extent()
    assert left == pytest.approx(17.5, abs=0.2)
    assert right == pytest.approx(682.5, abs=0.2)


def test_without_image_only_spots_y_down(table):
    ax = hw.pl.regions(table, color="region", image=False)
    assert not ax.images
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    del table.uns["spatial"]
    assert not hw.pl.regions(table, color="region").images


def test_image_file_that_was_moved_away_is_stated(table):
    entry = table.uns["spatial"]["s1"]
    entry["metadata"]["source_image_path"] = "/nowhere/section.tif"
    assert hw.pl.regions(table, color="region").images  # the small picture is still there
    entry["images"] = {}
    with pytest.warns(HistoweaveWarning, match=r"section\.tif"):
        ax = hw.pl.regions(table, color="region")
    assert not ax.images
    with pytest.raises(FileNotFoundError):
        hw.pl.regions(table, color="region", image="full")


def test_scale_bar_has_its_length(table):
    ax = hw.pl.regions(table, color="region")
    (text,) = ax.texts
    (bar,) = ax.lines
    assert text.get_text() == "100 µm"
    assert np.ptp(bar.get_xdata()) == pytest.approx(100 * 55 / 65)  # 65 um are 55 pixels
    assert not hw.pl.regions(table, color="region", scale_bar=False).texts
    table.uns["spatial"]["s1"]["scalefactors"] = {"tissue_hires_scalef": 0.5}
    assert not hw.pl.regions(table, color="region").texts


def test_scale_bar_from_the_pitch_of_the_array(table):
    del table.uns["spatial"]["s1"]["scalefactors"]["microns_per_pixel"]
    table.uns["spatial"]["s1"]["metadata"] = {
        "platform": "st",
        "array_pitch_um": 200.0,
        "array_grid": "square",
    }
    table.obs["array_col"], table.obs["array_row"] = (table.obsm["spatial"] / 100).astype(int).T
    ax = hw.pl.regions(table, color="region")
    assert ax.texts[0].get_text() == "200 µm"
    assert np.ptp(ax.lines[0].get_xdata()) == pytest.approx(100)


def test_given_axes_are_used(table):
    figure, axes = plt.subplots(1, 2)
    drawn = hw.pl.regions(table, color=["region", "region_predicted"], ax=axes)
    assert drawn[0, 0] is axes[0]
    assert plt.get_fignums() == [figure.number]
    assert legend_names(axes[1]) == ["stroma", "tumour", "fat", "no label", "abstained"]
    with pytest.raises(ValueError, match="1 x 3 axes"):
        hw.pl.regions(table, ax=axes)


def test_spatialdata_draws_the_same(table):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, TableModel
    from spatialdata.transformations import Scale

    pixels = table.uns["spatial"]["s1"].pop("images")["hires"]
    image = Image2DModel.parse(
        pixels.transpose(2, 0, 1),
        dims=("c", "y", "x"),
        transformations={"s1": Scale([2, 2], axes=("x", "y"))},
    )
    sdata = SpatialData(images={"s1_hires_image": image}, tables={"table": TableModel.parse(table)})
    ax = hw.pl.regions(sdata, color="region")
    xy = table.obsm["spatial"][5]
    left, right, bottom, top = ax.images[0].get_extent()
    assert (left, right, bottom, top) == (16, 684, 684, 16)
    assert fill(ax, xy) != to_rgba("#B8B8B8")[:3]


def test_table_is_not_written_to(table):
    before = set(table.uns), set(table.obs), set(table.obsm)
    hw.pl.regions(table)
    assert (set(table.uns), set(table.obs), set(table.obsm)) == before


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"color": "regoin"}, KeyError, "Did you mean 'region'"),
        ({"labels_key": "layer"}, KeyError, "read_labels"),
        ({"library_id": "s9"}, KeyError, "available: 's1'"),
        ({"image": "lowres"}, KeyError, "hires"),
        ({"alpha": 0}, ValueError, "alpha"),
        ({"size": -1}, ValueError, "size"),
    ],
)
def test_bad_arguments(table, kwargs, error, words):
    with pytest.raises(error, match=words):
        hw.pl.regions(table, **kwargs)


def test_bad_coordinates(table):
    table.obsm["spatial"][3, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 36 rows"):
        hw.pl.regions(table)
    del table.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial"):
        hw.pl.regions(table)


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:Dropped 2 spots")
def test_her2st_spots_lie_on_tissue(shared_data):
    folder = shared_data / "her2st"
    sdata = hw.io.read_st(
        folder / "counts/A1.tsv.gz",
        spots=folder / "spots/A1_selection.tsv",
        image=folder / "images/A1.png",
        scale=2000 / 6954,
        library_id="A1",
    )
    table = sdata.tables["table"]
    table.obs["on"] = "spot"
    ax = hw.pl.regions(sdata, color="on", crop=False)
    pixels, (left, right, bottom, top) = ax.images[0].get_array(), ax.images[0].get_extent()
    xy = table.obsm["spatial"]
    column = ((xy[:, 0] - left) / (right - left) * pixels.shape[1]).astype(int)
    row = ((xy[:, 1] - top) / (bottom - top) * pixels.shape[0]).astype(int)
    assert (pixels[row, column].sum(axis=1) > 30).mean() > 0.97  # the background is masked black
