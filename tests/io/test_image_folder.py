"""Folders of tiles, against the pixels that were written."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histoweave as hw
from histoweave._validate import HistoweaveWarning


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    written = {}
    for name in ("tumor/b.png", "tumor/a ä.png", "stroma/c.png", "loose.png"):
        file = tmp_path / "tiles" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        written[name] = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(written[name]).save(file)
    (tmp_path / "tiles" / "notes.txt").write_text("x")
    (tmp_path / "tiles" / ".hidden.png").write_text("x")
    return tmp_path / "tiles", written


def test_pixels_labels_and_paths(folder):
    path, written = folder
    adata = hw.io.read_image_folder(path)
    assert list(adata.obs_names) == sorted(written)
    assert adata.n_vars == 0
    for name, pixels in zip(adata.obs_names, adata.obsm["crops"], strict=True):
        np.testing.assert_array_equal(pixels, written[name])
    labels = dict(zip(adata.obs_names, adata.obs["region"], strict=True))
    assert pd.isna(labels.pop("loose.png"))
    assert labels == {"tumor/b.png": "tumor", "tumor/a ä.png": "tumor", "stroma/c.png": "stroma"}
    assert (path / "stroma/c.png").samefile(adata.obs.loc["stroma/c.png", "path"])
    assert set(adata.obs["library_id"]) == {"tiles"}
    assert adata.uns["histoweave"]["crops"]["function"] == "io.read_image_folder"


def test_pattern_keys_and_no_labels(folder):
    adata = hw.io.read_image_folder(folder[0], pattern="tumor/*", labels_key=None, key_added="tiles")
    assert adata.n_obs == 2
    assert "region" not in adata.obs
    assert adata.obsm["tiles"].shape == (2, 12, 12, 3)


def test_hidden_folders_are_passed_over_and_links_told(folder, tmp_path):
    path, written = folder
    (path / ".ipynb_checkpoints").mkdir()
    Image.fromarray(written["loose.png"]).save(path / ".ipynb_checkpoints" / "a-checkpoint.png")
    assert list(hw.io.read_image_folder(path).obs_names) == sorted(written)
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(written["loose.png"]).save(tmp_path / "elsewhere" / "d.png")
    (path / "fat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.warns(HistoweaveWarning, match=r"does not enter folders that are links \('fat'\)"):
        hw.io.read_image_folder(path)
    assert "fat/d.png" in hw.io.read_image_folder(path, pattern="*/*.png").obs_names


def test_grey_rgba_and_16_bit(tmp_path):
    Image.fromarray(np.full((4, 4), 77, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 257 * 9, np.uint16)).save(tmp_path / "b.png")
    Image.fromarray(np.dstack([np.full((4, 4, 3), 50, np.uint8), np.zeros((4, 4), np.uint8)])).save(tmp_path / "c.png")
    crops = hw.io.read_image_folder(tmp_path).obsm["crops"]
    assert crops.dtype == np.uint8
    assert [np.unique(c).tolist() for c in crops] == [
        [77],
        [9],
        [255],
    ]  # fully transparent is the white of the slide


def test_mixed_sizes(folder):
    path, _ = folder
    Image.fromarray(np.full((10, 20, 3), 9, np.uint8)).save(path / "wide.png")
    with pytest.raises(ValueError, match=r"12 x 12 \(4 images\), 10 x 20 \(1 images\).*`out_px=`"):
        hw.io.read_image_folder(path)
    crops = hw.io.read_image_folder(path, out_px=8).obsm["crops"]
    assert crops.shape == (5, 8, 8, 3)
    assert (crops[-1] == 9).all()


def test_nothing_is_stretched(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200  # the middle third is the square that remains
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crop = hw.io.read_image_folder(tmp_path, out_px=10).obsm["crops"][0]
    assert (crop[:, 1:-1] >= 190).all()


def test_bad_folders(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        hw.io.read_image_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"fits `pattern='\*.tif'`.*'notes.txt'"):
        hw.io.read_image_folder(folder[0], pattern="*.tif")
    broken = folder[0] / "tumor/b.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"b\.png"):
        hw.io.read_image_folder(folder[0])
    with pytest.raises(ValueError, match="`out_px` must be >= 1"):
        hw.io.read_image_folder(folder[0], out_px=0)
