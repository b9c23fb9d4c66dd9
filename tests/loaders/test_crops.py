"""Batches of crops: every wanted row once, in order, whatever holds them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from histoweave.loaders import crop_batches, require_crops


@pytest.fixture
def crops():
    return np.random.default_rng(0).integers(0, 255, (25, 8, 8, 3), dtype=np.uint8)


def table(crops) -> AnnData:
    return AnnData(obs=pd.DataFrame(index=np.arange(len(crops)).astype(str)), obsm={"crops": crops})


@pytest.mark.parametrize("chunks", [None, 25, 10, (3, 4, 4, 1), ((1, 20, 4), 8, 8, 3)])
@pytest.mark.parametrize("batch_size", [1, 7, 25, 100])
@pytest.mark.parametrize("rows", [np.arange(25), np.array([2]), np.array([0, 3, 4, 11, 24]), np.array([], dtype=int)])
def test_rows_come_once_in_order_with_their_pixels(crops, chunks, batch_size, rows):
    held = crops if chunks is None else da.from_array(crops, chunks=chunks)
    batches = list(crop_batches(held, rows, batch_size=batch_size))
    assert all(0 < len(r) <= batch_size and b.dtype == torch.uint8 for r, b in batches)
    if len(rows):
        assert np.array_equal(np.concatenate([r for r, _ in batches]), rows)
        assert np.array_equal(np.concatenate([b.numpy() for _, b in batches]), crops[rows])
    else:
        assert batches == []


def test_no_chunk_is_computed_twice_or_for_nothing(crops):
    computed = []

    def read(block, block_info=None):
        computed.append(block_info[0]["chunk-location"][0])
        return block

    lazy = da.from_array(crops, chunks=(5, 8, 8, 3)).map_blocks(read, dtype=np.uint8, meta=np.empty((0, 0, 0, 0), "u1"))
    list(crop_batches(lazy, np.array([0, 1, 2, 12, 13]), batch_size=2))
    assert sorted(computed) == [0, 2]


def test_batch_is_a_copy(crops):
    before = crops.copy()
    for _, batch in crop_batches(crops, np.arange(25)):
        batch += 1
    assert np.array_equal(crops, before)


def test_availability(crops):
    adata = table(crops)
    assert require_crops(adata, "crops")[1].all()
    adata.obs["crops_available"] = np.arange(25) < 20
    found, rows = require_crops(adata, "crops")
    assert found is adata.obsm["crops"]
    assert rows.sum() == 20


def test_missing_key_names_the_step(crops):
    with pytest.raises(KeyError, match=r"crops_key='crop'.*Did you mean 'crops'.*hw.pp.crops"):
        require_crops(table(crops), "crop")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c[..., 0],  # grey
        lambda c: c[..., :1],
        lambda c: np.concatenate([c, c[..., :1]], axis=-1),  # RGBA
        lambda c: c.astype(np.uint16),
        lambda c: c / 255.0,
        lambda c: pd.DataFrame(c[:, 0, 0], index=np.arange(25).astype(str), columns=list("rgb")),
    ],
)
def test_not_rgb_crops(crops, spoil):
    with pytest.raises(ValueError, match=r"must hold RGB crops \(n, height, width, 3\) uint8, got shape"):
        require_crops(table(spoil(crops)), "crops")
