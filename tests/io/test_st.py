"""Reading legacy ST sections, against what was written and against known facts of real ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histoweave as hw
from histoweave._validate import HistoweaveWarning

STEP = 40.0  # pixels between neighbouring spots in the frame of the spot file
UM = 200.0 / STEP


@pytest.fixture
def files(tmp_path: Path) -> dict:
    """A 5 x 4 array, turned by 2 degrees; a spot not selected, one without counts, counts without a spot."""
    generator = np.random.default_rng(0)
    xy = np.array([(x, y) for x in range(3, 8) for y in range(10, 14)])
    turn = np.deg2rad(2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    pixels = xy @ rotation.T * STEP + 15
    spots = pd.DataFrame(
        {
            "x": xy[:, 0],
            "y": xy[:, 1],
            "new_x": xy[:, 0] + 0.1,
            "new_y": xy[:, 1] - 0.1,
            "pixel_x": pixels[:, 0],
            "pixel_y": pixels[:, 1],
            "selected": 1,
        }
    )
    spots.loc[0, "selected"] = 0
    names = [f"{x}x{y}" for x, y in xy]
    counts = pd.DataFrame(generator.poisson(2, (20, 3)), index=names, columns=["A", "B", "C"])
    written = pd.concat(
        [counts.drop(index=names[1]), pd.DataFrame([[9, 9, 9]], index=["30x30"], columns=["A", "B", "C"])]
    )
    written = written.sample(frac=1, random_state=0)
    with gzip.open(tmp_path / "Z1.tsv.gz", "wt") as stream:
        written.to_csv(stream, sep="\t")
    spots.to_csv(tmp_path / "Z1_selection.tsv", sep="\t", index=False)
    labels = pd.DataFrame(
        {
            "Row.names": names,
            "x": xy[:, 0] + 0.02,
            "y": xy[:, 1] - 0.03,
            "pixel_x": 1.0,
            "pixel_y": 1.0,
            "label": np.where(xy[:, 0] < 5, "tumor", "stroma"),
        }
    )
    labels.loc[5, "label"] = np.nan
    labels.to_csv(tmp_path / "Z1_labels.tsv", sep="\t", index=False)
    image = generator.integers(0, 256, (600, 400, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "Z1.png")
    return {
        "counts": tmp_path / "Z1.tsv.gz",
        "spots": tmp_path / "Z1_selection.tsv",
        "image": tmp_path / "Z1.png",
        "labels": tmp_path / "Z1_labels.tsv",
        "truth": counts,
        "frame": spots,
        "pixels": image,
        "names": names,
    }


def test_everything(files):
    with pytest.warns(HistoweaveWarning) as caught:
        sdata = hw.io.read_st(
            files["counts"],
            spots=files["spots"],
            image=files["image"],
            labels=files["labels"],
            donor="Z",
            scale=0.5,
        )
    assert any("1 spots without counts and 2 rows of counts without a spot; 18 spots" in str(w.message) for w in caught)
    table = sdata.tables["table"]
    expected = files["frame"].iloc[2:]
    assert list(table.obs_names) == files["names"][2:]
    np.testing.assert_array_equal(table.X.toarray(), files["truth"].iloc[2:].to_numpy())
    np.testing.assert_array_equal(table.layers["counts"].toarray(), files["truth"].iloc[2:].to_numpy())
    assert list(table.var_names) == ["A", "B", "C"]
    np.testing.assert_allclose(table.obsm["spatial"], expected[["pixel_x", "pixel_y"]].to_numpy() * 0.5)
    assert table.obs["array_col"].tolist() == expected["x"].tolist()
    assert table.obs["array_row"].tolist() == expected["y"].tolist()
    assert set(table.obs["library_id"]) == {"Z1"}
    assert set(table.obs["donor"]) == {"Z"}
    assert table.obs["region"].isna().tolist() == [i == 5 for i in range(2, 20)]
    known = table.obs[table.obs["region"].notna()]
    assert (known["region"] == np.where(known["array_col"] < 5, "tumor", "stroma")).all()
    entry = table.uns["spatial"]["Z1"]
    assert entry["scalefactors"]["microns_per_pixel"] == pytest.approx(2 * UM)
    assert entry["scalefactors"]["spot_diameter_fullres"] == pytest.approx(100 / (2 * UM))
    assert entry["metadata"]["platform"] == "st"
    assert entry["metadata"]["array_grid"] == "square"
    assert entry["metadata"]["array_pitch_um"] == 200.0
    np.testing.assert_array_equal(sdata.images["Z1_full_image"].transpose("y", "x", "c").to_numpy(), files["pixels"])
    assert table.uns["histoweave"]["section_Z1"]["spots_without_counts"] == 1
    np.testing.assert_allclose(sdata.shapes["Z1"]["radius"], 5.0)


def test_genes_only_and_image_only(files):
    genes = hw.io.read_st(files["truth"], spots=files["frame"].assign(selected=1), library_id="g")
    assert not genes.images
    assert genes.tables["table"].shape == (20, 3)
    image = hw.io.read_st(spots=files["spots"], image=files["image"])
    assert image.tables["table"].shape == (19, 0)
    assert "counts" not in image.tables["table"].layers
    assert list(image.shapes) == ["Z1"]


def test_function_for_the_grid_and_one_hot_labels(tmp_path):
    names = [f"{x}_{y}" for x in range(2, 6) for y in range(1, 5)]
    one_hot = pd.DataFrame(0, index=["layer 1", "layer 2"], columns=names)
    one_hot.iloc[0, :7] = 1
    one_hot.iloc[1, 7:15] = 1  # the last spot has no label
    file = tmp_path / "01.tsv"
    one_hot.to_csv(file, sep="\t")
    table = hw.io.read_st(spots=lambda xy: 72.5 * (xy - 1), labels=file).tables["table"]
    assert table.n_obs == 16
    first = table.obs.loc["2x1"]
    assert (first["array_col"], first["array_row"]) == (2, 1)
    np.testing.assert_allclose(table.obsm["spatial"][table.obs_names.get_loc("2x3")], [72.5, 145.0])
    assert table.obs["region"].value_counts().to_dict() == {"layer 1": 7, "layer 2": 8}
    assert table.obs["region"].isna().sum() == 1
    assert table.uns["spatial"]["01"]["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / 72.5)


def test_pitch_of_a_staggered_array():
    xy = np.array([(x, y) for x in range(10) for y in range(10) if (x + y) % 2 == 0])
    spots = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1], "pixel_x": xy[:, 0] * 24.0, "pixel_y": xy[:, 1] * 24.0})
    factors = hw.io.read_st(spots=spots, library_id="s").tables["table"].uns["spatial"]["s"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(200 / (24 * np.sqrt(2)))


def test_repeated_genes_are_told(files, tmp_path):
    (tmp_path / "q.tsv").write_text("\tA\tA\n1x1\t1\t2\n1x2\t3\t4\n2x1\t5\t6\n")
    with pytest.warns(HistoweaveWarning, match="1 gene names repeat"):
        table = hw.io.read_st(tmp_path / "q.tsv", spots=lambda xy: xy * 10.0).tables["table"]
    assert list(table.var_names) == ["A", "A-1"]
    np.testing.assert_array_equal(table.X.toarray(), [[1, 2], [3, 4], [5, 6]])


def test_header_as_r_writes_it(tmp_path):
    (tmp_path / "q.tsv").write_text('"A"\t"B"\n1x1\t1\t2\n1x2\t3\t4\n2x1\t5\t6\n')
    table = hw.io.read_st(tmp_path / "q.tsv", spots=lambda xy: xy * 10.0).tables["table"]
    assert list(table.var_names) == ["A", "B"]
    np.testing.assert_array_equal(table.X.toarray(), [[1, 2], [3, 4], [5, 6]])


GRID = "x\ty\tpixel_x\tpixel_y\n1\t1\t10\t10\n1\t2\t10\t20\n2\t1\t20\t10\n"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("\tA\n1x1\t-1\n", "negative values"),
        ("\tA\n1x1\t0.5\n", "fractional values"),
        ("\tA\n1x1\t\n", "NaN"),
        ("\tA\n1x1\tmany\n", "not numbers"),
        ("\t1x1\t1x2\nA\t1\t2\n", "transpose"),
        ("\tA\nspot1\t1\n", "named by array position"),
        ("\tA\n1x1\t1\n1x1\t2\n", "more than once"),
        ("\tA\n9x9\t1\n", "share no array position"),
        ("", "empty"),
    ],
)
def test_bad_counts(tmp_path, counts, message):
    (tmp_path / "c.tsv").write_text(counts)
    (tmp_path / "s.tsv").write_text(GRID)
    with pytest.raises(ValueError, match=message):
        hw.io.read_st(tmp_path / "c.tsv", spots=tmp_path / "s.tsv")


@pytest.mark.parametrize(
    ("spots", "message"),
    [
        ("x\ty\n1\t1\n", "no column 'pixel_x', 'pixel_y'"),
        (GRID + "2\t1\t5\t5\n", "array positions more than once"),
        (GRID + "3\t1\t\t5\n", "non-numeric positions in 1 rows"),
        ("x\ty\tpixel_x\tpixel_y\n1\t1\t10\t10\n1\t2\t10\t20\n", "at least three"),
        ("x\ty\tpixel_x\tpixel_y\n1\t1\t1\t1\n1\t2\t1\t1\n2\t1\t1\t1\n", "cannot be told"),
    ],
)
def test_bad_spots(tmp_path, spots, message):
    (tmp_path / "s.tsv").write_text(spots)
    with pytest.raises(ValueError, match=message):
        hw.io.read_st(spots=tmp_path / "s.tsv")


def test_truncated_counts_and_missing_files(files, tmp_path):
    data = files["counts"].read_bytes()
    files["counts"].write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cut off"):
        hw.io.read_st(files["counts"], spots=files["spots"])
    with pytest.raises(FileNotFoundError, match=r"`counts`: there is no file"):
        hw.io.read_st(tmp_path / "none.tsv", spots=files["spots"])
    with pytest.raises(FileNotFoundError, match=r"`spots`: there is no file .* holds .*'Z1.png'"):
        hw.io.read_st(spots=tmp_path / "none.tsv")
    with pytest.raises(FileNotFoundError, match=r"none.jpg"):
        hw.io.read_st(spots=files["spots"], image=tmp_path / "none.jpg")


def test_arguments(files):
    with pytest.raises(ValueError, match="`scale` must be > 0"):
        hw.io.read_st(spots=files["spots"], scale=0)
    with pytest.raises(ValueError, match="Pass `library_id=`"):
        hw.io.read_st(spots=files["frame"])
    with pytest.raises(ValueError, match="must come from `counts` or `labels`"):
        hw.io.read_st(spots=lambda xy: xy, library_id="a")
    with pytest.raises(ValueError, match="No position of `labels`"):
        hw.io.read_st(spots=files["spots"], labels=pd.DataFrame({"x": [90], "y": [90], "label": ["a"]}))


@pytest.mark.real_data
def test_her2st(shared_data: Path):
    folder = shared_data / "her2st"
    with pytest.warns(HistoweaveWarning, match="346 spots remain"):
        a1 = hw.io.read_st(
            folder / "counts/A1.tsv.gz",
            spots=folder / "spots/A1_selection.tsv",
            image=folder / "images/A1.png",
            labels=folder / "labels/A1_labeled_coordinates.tsv",
            scale=2000 / 6954,
            donor="A",
        )
    table = a1.tables["table"]
    assert table.obs["region"].value_counts()["invasive cancer"] == 282
    height, width = a1.images["A1_full_image"].sizes["y"], a1.images["A1_full_image"].sizes["x"]
    assert (table.obsm["spatial"] > 0).all()
    assert (table.obsm["spatial"] < [width, height]).all()
    pixels = a1.images["A1_full_image"].transpose("y", "x", "c").to_numpy()
    column, row = np.rint(table.obsm["spatial"]).astype(int).T
    assert np.mean(pixels[row, column].min(axis=1) < 240) > 0.95  # the background is masked white: spots lie on tissue
    raw = pd.read_csv(folder / "counts/A1.tsv.gz", sep="\t", index_col=0)
    np.testing.assert_array_equal(table.X.sum(axis=1).A1, raw.loc[table.obs_names].sum(axis=1))
    b1 = hw.io.read_st(folder / "counts/B1.tsv.gz", spots=folder / "spots/B1_selection.tsv")
    assert not b1.images
    assert b1.tables["table"].n_obs == 295
    scale = table.uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"]
    assert scale == pytest.approx(200 / (222 * 2000 / 6954), rel=0.03)  # neighbouring spots are about 222 px apart


@pytest.mark.real_data
def test_mob_st(shared_data: Path):
    folder = shared_data / "mob_st"
    width = Image.open(folder / "images/01.jpg").width
    k = 194 / (6200 / width)
    sdata = hw.io.read_st(
        spots=lambda xy: k * (xy - 1), labels=folder / "annotations/01.tsv", image=folder / "images/01.jpg"
    )
    table = sdata.tables["table"]
    assert table.shape == (267, 0)
    assert table.obs["region"].nunique() == 5
    assert table.uns["spatial"]["01"]["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / k)
