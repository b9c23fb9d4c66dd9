from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histoweave as hw
from histoweave.datasets import _registry

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hw.settings, "offline", True)


def publish(monkeypatch: pytest.MonkeyPatch, name: str, kind: str, section: str, path: Path) -> None:
    """Make the registry expect the content of a file made here."""
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(_registry._registry()[name]["files"][kind]["hashes"], section, digest)


def write_h5(path: Path, barcodes: list[str], counts: np.ndarray) -> None:
    """A filtered_feature_bc_matrix.h5 as Space Ranger writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spot, gene = np.nonzero(counts)
    genes = [f"G{i}" for i in range(counts.shape[1])]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"] = counts[spot, gene].astype("int32")
        group["indices"] = gene.astype("int64")
        group["indptr"] = np.concatenate([[0], np.cumsum(np.bincount(spot, minlength=len(counts)))]).astype("int64")
        group["shape"] = np.array(counts.shape[::-1], dtype="int32")
        group["barcodes"] = np.array(barcodes, dtype="S")
        features = group.create_group("features")
        for key, values in {
            "id": genes,
            "name": genes,
            "feature_type": ["Gene Expression"] * len(genes),
            "genome": ["GRCh38"] * len(genes),
        }.items():
            features[key] = np.array(values, dtype="S")


def write_spatial(folder: Path, barcodes: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{b},1,{i // 4},{2 * (i % 4) + i // 4 % 2},{100 + 90 * (i // 4)},{100 + 100 * (i % 4)}"
        for i, b in enumerate(barcodes)
    ]
    (folder / "tissue_positions_list.csv").write_text("\n".join(lines) + "\n")
    factors = {
        "spot_diameter_fullres": 65.0,
        "tissue_hires_scalef": 0.5,
        "fiducial_diameter_fullres": 100.0,
        "tissue_lowres_scalef": 0.1,
    }
    (folder / "scalefactors_json.json").write_text(json.dumps(factors))
    for name, size in {"hires": 300, "lowres": 60}.items():
        pixels = RNG.integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"tissue_{name}_image.png")


BARCODES = [f"{'ACGT'[i // 4]}{'ACGT'[i % 4]}A-1" for i in range(12)]
COUNTS = RNG.poisson(2, (12, 6))


def test_visium_breast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "visium_breast" / "section_1"
    write_h5(folder / "filtered_feature_bc_matrix.h5", BARCODES, COUNTS)
    write_spatial(tmp_path / "made" / "spatial", BARCODES)
    with tarfile.open(folder / "spatial.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "spatial", "spatial")
    publish(monkeypatch, "visium_breast", "counts", "1", folder / "filtered_feature_bc_matrix.h5")
    publish(monkeypatch, "visium_breast", "spatial", "1", folder / "spatial.tar.gz")
    sdata = hw.datasets.visium_breast(section=1, data_dir=tmp_path)
    table = sdata.tables["table"]
    np.testing.assert_array_equal(table.X.toarray(), COUNTS)
    assert set(table.obs["library_id"]) == {"breast_A1"}
    assert set(table.obs["donor"]) == {"block_A"}
    assert "breast_A1_hires_image" in sdata.images
    again = hw.datasets.visium_breast(section=1, data_dir=tmp_path)  # now from the unpacked folder
    assert again.tables["table"].obs_names.equals(table.obs_names)


@pytest.mark.parametrize("content", ["broken", "truncated", "escaping"])
def test_bad_archive_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    folder = tmp_path / "visium_breast" / "section_1"
    write_h5(folder / "filtered_feature_bc_matrix.h5", BARCODES, COUNTS)
    path = folder / "spatial.tar.gz"
    if content == "broken":
        path.write_bytes(b"no archive")
    elif content == "truncated":
        write_spatial(tmp_path / "made" / "spatial", BARCODES)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "made" / "spatial", "spatial")
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("../../../outside.txt"), io.BytesIO())
    publish(monkeypatch, "visium_breast", "counts", "1", folder / "filtered_feature_bc_matrix.h5")
    publish(monkeypatch, "visium_breast", "spatial", "1", path)
    with pytest.raises(ValueError, match=r"cannot be unpacked.*Delete it"):
        hw.datasets.visium_breast(data_dir=tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["filtered_feature_bc_matrix.h5", "spatial.tar.gz"]


def test_dlpfc(tmp_path: Path) -> None:
    folder = tmp_path / "dlpfc" / "151673"
    write_h5(folder / "filtered_feature_bc_matrix.h5", BARCODES, COUNTS)
    write_spatial(folder / "spatial", BARCODES)
    rows = [f"{b}\t151673\tL{i % 6 + 1}" for i, b in enumerate(BARCODES[:-1])] + [f"{BARCODES[0]}\t151507\tWM"]
    (tmp_path / "dlpfc" / "layers.tsv").write_text("\n".join(rows) + "\n")
    table = hw.datasets.dlpfc(section=151673, data_dir=tmp_path).tables["table"]
    assert set(table.obs["donor"]) == {"Br8100"}
    expected = pd.Series([f"L{i % 6 + 1}" for i in range(11)], index=BARCODES[:-1])
    assert table.obs["region"].dropna().astype(str).to_dict() == expected.to_dict()
    assert pd.isna(table.obs.loc[BARCODES[-1], "region"])


def write_st(folder: Path, section: str) -> pd.DataFrame:
    positions = [(x, y) for x in range(5, 9) for y in range(7, 12)]
    names = [f"{x}x{y}" for x, y in positions]
    for sub in ("counts", "spots", "labels", "images"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    counts = pd.DataFrame(RNG.poisson(3, (20, 4)), index=names, columns=list("abcd"))
    counts.to_csv(folder / "counts" / f"{section}.tsv.gz", sep="\t")
    x, y = np.array(positions).T
    spots = pd.DataFrame({"x": x, "y": y, "pixel_x": 30 * x, "pixel_y": 30 * y, "selected": 1})
    spots.to_csv(folder / "spots" / f"{section}_selection.tsv", sep="\t", index=False)
    Image.fromarray(RNG.integers(0, 255, (400, 300, 3), dtype=np.uint8)).save(folder / "images" / f"{section}.jpg")
    return pd.DataFrame({"x": x + 0.02, "y": y - 0.01, "label": np.where(y < 9, "connective", "cancer")})


def test_her2st(tmp_path: Path) -> None:
    labels = write_st(tmp_path / "her2st", "B1")
    labels.to_csv(tmp_path / "her2st" / "labels" / "B1_labeled_coordinates.tsv", sep="\t", index=False)
    sdata = hw.datasets.her2st(section="B1", data_dir=tmp_path)
    table = sdata.tables["table"]
    assert set(table.obs["donor"]) == {"B"}
    assert "B1_full_image" in sdata.images
    assert (table.obs["region"].astype(str) == np.where(table.obs["array_row"] < 9, "connective", "cancer")).all()
    write_st(tmp_path / "her2st", "B2")
    unlabelled = hw.datasets.her2st(section="B2", image=False, data_dir=tmp_path)
    assert "region" not in unlabelled.tables["table"].obs
    assert not unlabelled.images


def test_mob_st_places_spots_by_the_image_width(tmp_path: Path) -> None:
    (tmp_path / "mob_st" / "images").mkdir(parents=True)
    (tmp_path / "mob_st" / "annotations").mkdir()
    Image.fromarray(np.full((1300, 1240, 3), 200, dtype=np.uint8)).save(tmp_path / "mob_st" / "images" / "05.jpg")
    spots = [f"{x}_{y}" for x in range(9, 13) for y in range(9, 13)]
    onehot = pd.DataFrame(np.zeros((2, 16), int), index=["Glomerular layer", "Mitral Cell Layer"], columns=spots)
    onehot.iloc[0, ::2] = 1
    onehot.iloc[1, 1::2] = 1
    onehot.to_csv(tmp_path / "mob_st" / "annotations" / "05.tsv", sep="\t")
    table = hw.datasets.mob_st(section=5, data_dir=tmp_path).tables["table"]
    assert set(table.obs["donor"]) == {"B"}
    array = table.obs[["array_col", "array_row"]].to_numpy()
    np.testing.assert_allclose(table.obsm["spatial"], (array - 1) * 38.8)  # 194 px * 1240 / 6200
    assert table.obs["region"].value_counts().to_dict() == {"Glomerular layer": 8, "Mitral Cell Layer": 8}


@pytest.mark.real_data
def test_mob_st_and_her2st_on_the_real_files(shared_data: Path) -> None:
    table = hw.datasets.mob_st(section="01", data_dir=shared_data).tables["table"]
    assert table.obs["region"].nunique() == 5
    table = hw.datasets.her2st(section="C2", data_dir=shared_data).tables["table"]
    assert table.n_obs > 150


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    arrays = {}
    for split, n in {"train": 12, "val": 5, "test": 7}.items():
        arrays[f"{split}_images"] = RNG.integers(0, 255, (n, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = RNG.integers(0, 9, (n, 1), dtype=np.uint8)
    path = tmp_path / "pathmnist" / "pathmnist.npz"
    path.parent.mkdir()
    np.savez(path, **arrays)
    publish(monkeypatch, "pathmnist", "tiles", "pathmnist", path)
    return arrays


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_pathmnist(tiles: dict[str, np.ndarray], tmp_path: Path, split: str) -> None:
    adata = hw.datasets.pathmnist(split=split, data_dir=tmp_path)
    np.testing.assert_array_equal(adata.obsm["crops"], tiles[f"{split}_images"])
    np.testing.assert_array_equal(adata.obs["region"].cat.codes, tiles[f"{split}_labels"].ravel())
    assert list(adata.obs["region"].cat.categories)[::8] == [
        "adipose",
        "colorectal adenocarcinoma epithelium",
    ]
    assert set(adata.obs["split"]) == {split}


def test_pathmnist_all_splits(tiles: dict[str, np.ndarray], tmp_path: Path) -> None:
    adata = hw.datasets.pathmnist(split="all", data_dir=tmp_path)
    assert adata.n_obs == 24
    assert adata.obs_names.is_unique
    assert (adata.obs["library_id"] == "CRC-VAL-HE-7K").sum() == 7
    adata.write_h5ad(tmp_path / "a.h5ad")


def test_pathmnist_that_is_no_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pathmnist" / "pathmnist.npz"
    path.parent.mkdir()
    np.savez(path, other=np.zeros(3))
    publish(monkeypatch, "pathmnist", "tiles", "pathmnist", path)
    with pytest.raises(ValueError, match="not the PathMNIST file"):
        hw.datasets.pathmnist(data_dir=tmp_path)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: hw.datasets.dlpfc(section="151511"), "'151507'"),
        (lambda: hw.datasets.her2st(section="Z9"), "'A1'"),
        (lambda: hw.datasets.mob_st(section=13), "'12'"),
        (lambda: hw.datasets.visium_breast(section=3), "'1', '2'"),
        (lambda: hw.datasets.pathmnist(size=32), "28, "),
        (lambda: hw.datasets.pathmnist(split="dev"), "'train'"),
    ],
)
def test_bad_arguments(call, match: str) -> None:
    with pytest.raises(ValueError, match=match.replace("28, ", "'28'")):
        call()
