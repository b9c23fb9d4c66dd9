"""The commands from end to end: folders written from simulated sections, and what is found afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import tifffile
from anndata import AnnData
from PIL import Image

import histoweave as hw
from histoweave import _commands, cli
from histoweave.models.fusion._heads import ForestHead

FILES = ["model", "regions.csv", "report.html", "section.h5ad"]
COLUMNS = ["library_id", "region", "region_used", "region_held_out", "region_predicted", "region_confidence",
           "region_abstain", "region_modalities", "region_novelty", "region_out_of_distribution", "x", "y"]  # fmt: skip
REGIONS = ["region_1", "region_2", "region_3"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few folds, small forests and crops: what is tested here is the way from files to files."""
    monkeypatch.setitem(hw.models.RegionClassifier.__init__.__kwdefaults__, "out_px", 32)
    monkeypatch.setattr(_commands, "N_BLOCK_FOLDS", 2)
    monkeypatch.setattr(ForestHead.__init__, "__defaults__", (15, 2))


def simulated(array_grid: str) -> AnnData:
    return hw.datasets.simulate_section(
        n_rows=16, n_cols=16, n_regions=3, n_genes=60, um_per_px=4.0, array_grid=array_grid, layout="layers"
    )


@pytest.fixture(scope="session")
def hexagonal() -> AnnData:
    return simulated("hex")


@pytest.fixture(scope="session")
def square() -> AnnData:
    return simulated("square")


def pixels(adata: AnnData) -> np.ndarray:
    return adata.uns["spatial"]["section_1"]["images"]["hires"]


@pytest.fixture
def outs(tmp_path: Path, hexagonal: AnnData) -> Path:
    """A Space Ranger folder of 256 spots; every third label is in ``labels.csv`` beside it."""
    folder = tmp_path / "P1" / "outs"
    matrix = folder / "filtered_feature_bc_matrix"
    matrix.mkdir(parents=True)
    scipy.io.mmwrite(matrix / "matrix.mtx", sp.coo_matrix(hexagonal.X.T.astype(int)))
    names = pd.Series(hexagonal.var_names)
    (matrix / "features.tsv").write_text("".join(f"{n}\t{n}\tGene Expression\n" for n in names))
    (matrix / "barcodes.tsv").write_text("".join(f"{n}\n" for n in hexagonal.obs_names))
    spatial = folder / "spatial"
    spatial.mkdir()
    positions = hexagonal.obs[["array_row", "array_col"]].copy()
    positions.insert(0, "in_tissue", 1)
    positions[["pxl_row_in_fullres", "pxl_col_in_fullres"]] = np.rint(hexagonal.obsm["spatial"][:, ::-1])
    positions.rename_axis("barcode").to_csv(spatial / "tissue_positions.csv")
    Image.fromarray(pixels(hexagonal)[::2, ::2]).save(spatial / "tissue_hires_image.png")
    factors = {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 65 / 4.0}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    labels = hexagonal.obs["region"].rename_axis("Barcode")
    labels[::3].to_csv(tmp_path / "labels.csv")
    return folder


@pytest.fixture
def array(tmp_path: Path, square: AnnData) -> Path:
    """A folder with the files of a legacy ST section, labels among them."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    x, y = square.obs["array_col"] + 3, square.obs["array_row"] + 5
    names = [f"{i}x{j}" for i, j in zip(x, y, strict=True)]
    counts = pd.DataFrame(square.X.toarray().astype(int), index=names, columns=square.var_names)
    counts.to_csv(folder / "A1.tsv.gz", sep="\t")
    spots = pd.DataFrame(
        {"x": x, "y": y, "pixel_x": square.obsm["spatial"][:, 0], "pixel_y": square.obsm["spatial"][:, 1]}
    )
    spots.to_csv(folder / "A1_selection.tsv", sep="\t", index=False)
    labels = spots[["x", "y"]].assign(label=square.obs["region"])
    labels.to_csv(folder / "A1_labels.tsv", sep="\t", index=False)
    Image.fromarray(pixels(square)).save(folder / "A1.png")
    return folder


def classify(section: Path, labels: Path, out: Path, *options: str) -> int:
    return cli.main(["classify", str(section), "--labels", str(labels), "--out", str(out), "--no-progress", *options])


def refused(capsys: pytest.CaptureFixture, section: Path, labels: Path, out: Path, *options: str) -> str:
    """The one line of an error; nothing may be left behind."""
    before = sorted(out.parent.rglob("*"))
    assert classify(section, labels, out, *options) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(lines) == 2
    assert lines[0].startswith("histoweave: error: ")
    assert lines[1] == "(--traceback shows where it was raised)"
    assert sorted(out.parent.rglob("*")) == before
    return lines[0]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open, self.headings, self.images = [], [], 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.images += tag == "img"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def report(out: Path) -> _Tags:
    tags = _Tags()
    tags.feed((out / "report.html").read_text(encoding="utf-8"))
    assert tags.open == []
    return tags


def results(
    out: Path, n_obs: int, modalities: str = "gene+image", regions: Sequence[str] = REGIONS
) -> tuple[pd.DataFrame, AnnData]:
    """What a run wrote, after the checks that hold for every run."""
    assert sorted(p.name for p in out.iterdir()) == FILES
    table = pd.read_csv(out / "regions.csv", index_col="spot")
    assert list(table.columns) == [*COLUMNS, *(f"probability: {name}" for name in regions)]
    assert len(table) == n_obs
    probability = table.filter(like="probability: ").set_axis(regions, axis=1)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    stated = probability.to_numpy()[np.arange(n_obs), probability.columns.get_indexer(table["region_predicted"])]
    np.testing.assert_allclose(stated, table["region_confidence"], atol=1e-3)
    assert set(table["region_modalities"]) == {modalities}
    adata = ad.read_h5ad(out / "section.h5ad")
    assert adata.obs["region_predicted"].astype(str).tolist() == table["region_predicted"].tolist()
    assert not [key for key in adata.obsm if key.startswith("crops")]
    assert report(out).headings[:2] == ["Map", "Scores on held-out tissue"]
    return table, adata


# ------------------------------------------------------------------ classify


def test_space_ranger_folder(outs, tmp_path, hexagonal, capsys):
    out = tmp_path / "new" / "out"
    before = {path: path.stat().st_mtime_ns for path in outs.rglob("*")}
    assert classify(outs, tmp_path / "labels.csv", out) == 0
    assert {path: path.stat().st_mtime_ns for path in outs.rglob("*")} == before
    table, adata = results(out, hexagonal.n_obs)
    printed = capsys.readouterr().out
    assert all(arm in printed for arm in ("fused", "image", "gene", "majority", "coordinates", "neighbour vote"))
    assert str(out / "report.html") in printed
    assert table["library_id"].unique().tolist() == ["P1"]
    assert table["region"].notna().sum() == len(hexagonal) // 3 + 1
    assert (table["region_used"].dropna() == table["region"].dropna()).all()
    assert not table["region_held_out"].any()
    assert (table["region_predicted"] == hexagonal.obs["region_truth"]).mean() > 0.8
    # the saved model says of the section, read again, what the files say
    model = hw.models.RegionClassifier.load(out / "model")
    again = model.predict(hw.io.read_visium(outs))
    assert again["predicted"].tolist() == table["region_predicted"].tolist()
    np.testing.assert_allclose(again["confidence"], table["region_confidence"], atol=1e-6)
    # and so it does of the table in the h5ad, which holds image, counts and coordinates
    assert model.predict(adata)["predicted"].tolist() == table["region_predicted"].tolist()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_hidden_blocks_of_an_array(array, tmp_path, square, share):
    out = tmp_path / "out"
    assert classify(array, array / "A1_labels.tsv", out, "--hide-blocks", str(share)) == 0
    learned = hw.models.RegionClassifier.load(out / "model").classes
    assert learned == REGIONS if share < 0.75 else len(learned) >= 2
    table, _ = results(out, square.n_obs, regions=learned)
    used, scored = table["region_used"].notna(), table["region_held_out"]
    assert table["library_id"].unique().tolist() == ["A1"]
    assert scored.mean() == pytest.approx(share, abs=0.07)
    assert not (used & scored).any()
    xy = table[["x", "y"]].to_numpy()
    gap = np.linalg.norm(xy[used][:, None] - xy[scored][None], axis=-1).min()
    assert gap >= (3 + 1) * 25  # the widest crop and one ring, in array pitches of 25 pixels
    assert "Held-out spots of the map" in report(out).headings
    hit = (table["region_predicted"] == table["region"])[scored].mean()
    assert hit > table["region"][used].value_counts(normalize=True).max()


def test_files_named_relative_to_the_section(array, tmp_path, square):
    os.makedirs(array / "raw")
    for name in ("A1.tsv.gz", "A1_selection.tsv", "A1.png", "A1_labels.tsv"):
        (array / name).rename(array / "raw" / f"x{name}")
    options = [
        "--counts",
        "raw/xA1.tsv.gz",
        "--spots",
        "raw/xA1_selection.tsv",
        "--image",
        "raw/xA1.png",
        "--name",
        "B2",
    ]
    assert classify(array, Path("raw/xA1_labels.tsv"), tmp_path / "out", *options) == 0
    table, _ = results(tmp_path / "out", square.n_obs)
    assert table["library_id"].unique().tolist() == ["B2"]


def test_image_only(array, tmp_path, square, capsys):
    (array / "A1.tsv.gz").unlink()
    assert classify(array, array / "A1_labels.tsv", tmp_path / "out") == 0
    results(tmp_path / "out", square.n_obs, "image")
    assert "holds no counts" in capsys.readouterr().err
    assert "Notes" in report(tmp_path / "out").headings


def test_space_ranger_without_matrix(outs, tmp_path, hexagonal, capsys):
    for path in (outs / "filtered_feature_bc_matrix").iterdir():
        path.unlink()
    (outs / "filtered_feature_bc_matrix").rmdir()
    assert classify(outs, tmp_path / "labels.csv", tmp_path / "out") == 0
    results(tmp_path / "out", hexagonal.n_obs, "image")
    assert "holds no matrix of counts" in capsys.readouterr().err


def test_genes_only(outs, tmp_path, hexagonal):
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    assert classify(outs, tmp_path / "labels.csv", tmp_path / "out") == 0
    results(tmp_path / "out", hexagonal.n_obs, "gene")


def test_array_without_image(array, tmp_path, square, capsys):
    (array / "A1.png").unlink()
    assert classify(array, array / "A1_labels.tsv", tmp_path / "out", "--hide-blocks", "0.5") == 0
    results(tmp_path / "out", square.n_obs, "gene")
    assert "holds no image" in capsys.readouterr().err


def test_ignored_label_is_no_region(array, tmp_path):
    (array / "A1.png").unlink()
    labels = pd.read_csv(array / "A1_labels.tsv", sep="\t")
    labels.loc[::10, "label"] = "undetermined"
    labels.to_csv(array / "A1_labels.tsv", sep="\t", index=False)
    options = ["--ignore-label", "undetermined", "--ignore-label", "absent"]
    assert classify(array, array / "A1_labels.tsv", tmp_path / "out", *options) == 0
    table, adata = results(tmp_path / "out", len(labels), "gene")
    assert table["region"].isna().sum() == len(labels.loc[::10])
    assert adata.obs["region"].cat.categories.tolist() == REGIONS


def test_full_resolution_image_is_streamed(outs, tmp_path, hexagonal, monkeypatch):
    import dask.array as da

    image = pixels(hexagonal)
    full = np.full((4096, 4096, 3), 255, np.uint8)
    full[: image.shape[0], : image.shape[1]] = image
    tifffile.imwrite(outs / "full.tif", full, tile=(256, 256), photometric="rgb", compression="deflate")
    Image.fromarray(full[::2, ::2]).save(outs / "spatial" / "tissue_hires_image.png")
    loaded = []
    compute = da.Array.compute

    def watched(self, **kwargs):
        loaded.append(self.nbytes)
        return compute(self, **kwargs)

    monkeypatch.setattr(da.Array, "compute", watched)
    assert classify(outs, tmp_path / "labels.csv", tmp_path / "out", "--image", "full.tif") == 0
    assert 0 < max(loaded) < full.nbytes / 2  # the hires image, for the h5ad
    _, adata = results(tmp_path / "out", hexagonal.n_obs)
    entry = adata.uns["spatial"]["P1"]
    assert list(entry["images"]) == ["hires"]
    assert entry["metadata"]["source_image_path"] == str((outs / "full.tif").resolve())
    assert set(adata.uns["histoweave"]["crops"]["image"].values()) == {"P1_full_image"}


def test_a_second_run_replaces_the_first(outs, tmp_path, hexagonal):
    out = tmp_path / "out"
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    assert classify(outs, tmp_path / "labels.csv", out) == 0
    (out / "notes.txt").write_text("mine")
    (out / "regions.csv").write_text("")
    assert classify(outs, tmp_path / "labels.csv", out, "--seed", "1") == 0
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    results(out, hexagonal.n_obs, "gene")


# ------------------------------------------------------------------ what is wrong with the input


def test_missing_section(tmp_path, capsys):
    assert "is not a folder" in refused(capsys, tmp_path / "absent", tmp_path / "l.csv", tmp_path / "out")


def test_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    assert "not a Space Ranger folder" in refused(capsys, tmp_path / "other", tmp_path / "l.csv", tmp_path / "out")


def test_options_of_arrays_are_not_for_space_ranger(outs, tmp_path, capsys):
    told = refused(capsys, outs, tmp_path / "labels.csv", tmp_path / "out", "--scale", "0.5", "--name", "P1")
    assert "leave out '--scale', '--name'" in told


def test_missing_labels(outs, tmp_path, capsys):
    assert "there is no file" in refused(capsys, outs, tmp_path / "absent.csv", tmp_path / "out")


def test_one_region(outs, tmp_path, capsys):
    labels = pd.read_csv(tmp_path / "labels.csv").assign(region="tumour")
    labels.to_csv(tmp_path / "labels.csv", index=False)
    assert "at least 2 regions" in refused(capsys, outs, tmp_path / "labels.csv", tmp_path / "out")


def test_all_labels_ignored(outs, tmp_path, capsys):
    options = [text for name in REGIONS for text in ("--ignore-label", name)]
    assert "holds no label" in refused(capsys, outs, tmp_path / "labels.csv", tmp_path / "out", *options)


def test_labels_of_another_section(outs, tmp_path, capsys):
    pd.DataFrame({"Barcode": ["A-1", "B-1"], "region": ["a", "b"]}).to_csv(tmp_path / "labels.csv", index=False)
    assert "is a spot of the data" in refused(capsys, outs, tmp_path / "labels.csv", tmp_path / "out")


def test_some_labels_of_unknown_spots_are_noted(array, tmp_path, capsys):
    (array / "A1.png").unlink()
    with open(array / "A1_labels.tsv", "a") as file:
        file.write("90\t90\tregion_1\n")
    assert classify(array, array / "A1_labels.tsv", tmp_path / "out") == 0
    assert "1 entries of the label file fit no spot" in capsys.readouterr().err
    assert "fit no spot" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "argument"), [("B1_selection.tsv", "--spots"), ("A1_stdata.tsv", "--counts"), ("A1.jpg", "--image")]
)
def test_several_candidates(array, tmp_path, capsys, name, argument):
    (array / name).touch()
    message = refused(capsys, array, array / "A1_labels.tsv", tmp_path / "out")
    assert name in message
    assert f"Choose with `{argument}`" in message


def test_hiding_nearly_everything(outs, tmp_path, capsys):
    labels = pd.read_csv(tmp_path / "labels.csv").groupby("region").head(6)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    message = refused(capsys, outs, tmp_path / "labels.csv", tmp_path / "out", "--hide-blocks", "0.75")
    assert "--hide-blocks" in message


def test_folder_that_cannot_be_written(outs, tmp_path, capsys, monkeypatch):
    def touch(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "touch", touch)
    message = refused(capsys, outs, tmp_path / "labels.csv", tmp_path / "out")
    assert "Cannot write to the folder" in message


@pytest.mark.parametrize("name", ["regions.csv", "model/weights.bin", "report.html"])
def test_files_from_elsewhere_are_not_replaced(outs, tmp_path, capsys, name):
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    message = refused(capsys, outs, tmp_path / "labels.csv", tmp_path / "out")
    assert "from elsewhere" in message
    assert theirs.read_text() == "theirs"


@pytest.mark.parametrize("step", ["write_report", "prediction_table"])
@pytest.mark.parametrize("earlier", [False, True])
def test_nothing_half_written(outs, tmp_path, capsys, monkeypatch, step, earlier):
    out = tmp_path / "out"
    (outs / "spatial" / "tissue_hires_image.png").unlink()
    if earlier:
        (out / "model").mkdir(parents=True)
        for name in ("model/config.json", "regions.csv", "report.html", "section.h5ad"):
            (out / name).write_text("earlier")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_commands, step, full_disk)
    assert "No space left" in refused(capsys, outs, tmp_path / "labels.csv", out)
    assert out.exists() == earlier
    assert all(path.read_text() == "earlier" for path in out.rglob("*") if path.is_file())


def test_settings_and_warnings_are_as_before(outs, tmp_path, capsys):
    import warnings

    from histoweave._settings import settings

    before = settings.progress, warnings.showwarning, list(warnings.filters)
    refused(capsys, outs, tmp_path / "absent.csv", tmp_path / "out")
    assert (settings.progress, warnings.showwarning, list(warnings.filters)) == before


# ------------------------------------------------------------------ demo


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_commands, "DEMO_SPOTS", 9)
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--no-progress"]) == 0
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == FILES
    table = pd.read_csv(tmp_path / "demo" / "regions.csv", index_col="spot")
    assert len(table) == 81
    assert table["region_held_out"].all()
    tags = report(tmp_path / "demo")
    assert tags.headings[:3] == ["Map", "Scores on held-out tissue", "Held-out spots of the map"]
    assert tags.images == 3
    model = hw.models.RegionClassifier.load(tmp_path / "demo" / "model")
    assert model.sections_seen == ["section_1", "section_2", "section_3"]
    scores = capsys.readouterr().out.splitlines()
    f1 = {line.split()[-9]: float(line.split()[-8]) for line in scores if line.count(".") == 7}
    assert f1["fused"] > max(f1["image"], f1["gene"]) > f1["majority"]
