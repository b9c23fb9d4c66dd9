"""The image encoder on tables: naive pipeline, scales, missing crops, saving, what is refused."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import ImageEncoder
from histoweave.models.image_encoder._statistics import crop_statistics

TINY = "test_resnet"


@pytest.fixture(scope="module")
def cut():
    adata = hw.datasets.simulate_sections(2, n_rows=6, n_cols=6, n_genes=60, n_regions=3, um_per_px=2.0)
    hw.pp.crops(adata, size_um={"crops": 110, "crops_context": 300}, out_px=32)
    return adata


@pytest.fixture
def table(cut):
    return cut.copy()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model(TINY, pretrained=False, num_classes=0).state_dict(), path)
    return path


def test_naive_pipeline(table):
    found = ImageEncoder(crops_keys=("crops", "crops_context")).fit_embed(table)
    raw = np.concatenate(
        [crop_statistics(torch.from_numpy(table.obsm[k])).numpy() for k in ("crops", "crops_context")], 1
    )
    for name in table.obs["library_id"].unique():
        rows = (table.obs["library_id"] == name).to_numpy()
        sd = raw[rows].std(0)
        expected = np.clip((raw[rows] - raw[rows].mean(0)) / np.where(sd > 1e-6, sd, 1), -6, 6)
        np.testing.assert_allclose(found[rows], expected, atol=1e-3)


def test_fit_embed_is_fit_then_embed(table):
    encoder = ImageEncoder(n_components=8).fit(table)
    np.testing.assert_array_equal(ImageEncoder(n_components=8).fit_embed(table), encoder.embed(table))
    assert encoder.embed(table).shape == (72, 8)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_batches_and_laziness_do_not_matter(table, batch_size):
    expected = ImageEncoder().fit_embed(table)
    lazy = table.copy()
    lazy.obsm["crops"] = da.from_array(lazy.obsm["crops"], chunks=(10, -1, -1, -1))
    np.testing.assert_allclose(ImageEncoder(batch_size=batch_size).fit_embed(lazy), expected, atol=1e-3)


def test_one_thread_or_two(table):
    before = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(ImageEncoder().fit_embed(table))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)


def test_rows_without_crops_are_missing(table):
    complete = ImageEncoder().fit(table)
    table.obs["crops_available"] = table.obs["library_id"].to_numpy() == "section_1"
    here = table.obs["crops_available"].to_numpy()
    found = complete.embed(table)
    assert np.isnan(found[~here]).all()
    assert np.isfinite(found[here]).all()
    table.obs["crops_available"] = False
    with pytest.raises(ValueError, match="No row has crops"):
        complete.embed(table)


def test_a_users_key_of_the_same_kind_is_not_mistaken_for_ours(table):
    expected = ImageEncoder().fit_embed(table)
    table.obsm["image_features"] = np.zeros((72, 3))
    np.testing.assert_array_equal(ImageEncoder().fit_embed(table), expected)


def test_pretrained_from_local_weights(table, weights):
    encoder = ImageEncoder("pretrained", backbone=TINY, weights=weights, n_components=6, precision="float32")
    found = encoder.fit_embed(table)
    assert found.shape == (72, 6)
    assert np.isfinite(found).all()
    with torch.inference_mode():
        raw = encoder._network(torch.from_numpy(table.obsm["crops"])).numpy()
    np.testing.assert_allclose(encoder.features(table), raw, rtol=1e-3, atol=1e-4)


def test_pretrained_keeps_64_components_where_there_are(table, weights):
    encoder = ImageEncoder("pretrained", backbone=TINY, weights=weights)
    assert encoder.fit_embed(table).shape == (72, 64)
    with pytest.warns(HistoweaveWarning, match="`n_components=64` is more than 36 rows"):
        assert encoder.fit_embed(table[:36].copy()).shape == (36, 35)


def test_statistics_stand_beside_the_components_of_a_network(table, weights, tmp_path):
    keys = {"crops_keys": ("crops", "crops_context")}
    options = keys | {"backbone": TINY, "weights": weights, "n_components": 6, "precision": "float32"}
    encoder = ImageEncoder("pretrained", statistics=True, **options)
    found = encoder.fit_embed(table)
    np.testing.assert_allclose(found[:, :6], ImageEncoder("pretrained", **options).fit_embed(table), atol=1e-4)
    np.testing.assert_allclose(found[:, 6:], ImageEncoder(**keys).fit_embed(table), atol=1e-4)
    assert "beside statistics" in (encoder.save(tmp_path / "both") / "README.md").read_text()
    again = ImageEncoder.load(tmp_path / "both")
    again.precision = "float32"
    np.testing.assert_array_equal(again.embed(table), encoder.embed(table))
    with pytest.raises(ValueError, match="`statistics=True` puts statistics beside a network, and `method='statist"):
        ImageEncoder(statistics=True)


@pytest.mark.parametrize("method", ["statistics", "pretrained"])
def test_loaded_is_the_same_to_the_last_bit(table, weights, tmp_path, method, monkeypatch):
    options = {} if method == "statistics" else {"backbone": TINY, "weights": weights}
    encoder = ImageEncoder(method, n_components=5, **options).fit(table)
    path = encoder.save(tmp_path / "image")
    create = timm.create_model

    def offline(name, pretrained=False, **kwargs):
        assert not pretrained
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    again = ImageEncoder.load(path)
    assert np.array_equal(again.embed(table), encoder.embed(table))
    assert again.sections_seen == ["section_1", "section_2"]
    assert str(weights) not in (path / "README.md").read_text()


def test_other_crops_than_fitted_on(table):
    encoder = ImageEncoder(crops_keys=("crops", "crops_context")).fit(table)
    del table.obsm["crops_context"]
    with pytest.raises(KeyError, match="crops_context.*hw.pp.crops"):
        encoder.embed(table)


def test_crops_too_small_for_texture(table):
    table.obsm["crops"] = table.obsm["crops"][:, :8, :8]
    with pytest.raises(ValueError, match="crops of 8 x 8 pixels; at least 16"):
        ImageEncoder().fit(table)


def test_not_fitted(table):
    with pytest.raises(RuntimeError, match="not fitted"):
        ImageEncoder().embed(table)


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"batch_size": 0}, {"n_components": 0}, {"random_state": 1.5}])
def test_bad_arguments(wrong):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(wrong))}`"):
        ImageEncoder(**wrong)


def test_device_that_is_not_there(table):
    with pytest.raises((RuntimeError, ValueError), match="device"):
        ImageEncoder(device="cuda:99").fit(table)


def test_a_scale_token_that_nothing_was_trained_with_is_no_obstacle(table, weights, tmp_path):
    options = {"crops_keys": ("crops", "crops_context"), "backbone": TINY, "weights": weights, "n_components": 4}
    encoder = ImageEncoder("pretrained", scale_token=True, **options).fit(table)
    encoder.save(tmp_path / "encoder")
    np.testing.assert_array_equal(ImageEncoder.load(tmp_path / "encoder").embed(table), encoder.embed(table))
