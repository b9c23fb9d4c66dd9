from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch

from histoweave._validate import HistoweaveWarning
from histoweave.loaders import CropEpochs


def numbered(n: int, side: int = 4) -> np.ndarray:
    """Crops of which the first pixel tells the row."""
    crops = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    crops[:, 0, 0, 0] = np.arange(n)
    return crops


def rows_in(epochs: CropEpochs, number: int = 0) -> list[np.ndarray]:
    return [batch[:, 0, 0, 0].numpy() for batch in epochs.epoch(number)]


def source(crops, available=None):
    return {"crops": (crops, np.ones(len(crops), bool) if available is None else available)}


def test_an_epoch_shows_every_crop_once_in_batches_of_one_size():
    epochs = CropEpochs(source(numbered(60)), {"a": np.arange(60)}, batch_size=16)
    batches = rows_in(epochs)
    assert [len(b) for b in batches] == [15] * 4
    assert len(epochs) == len(epochs.epoch(0)) == 4
    assert sorted(np.concatenate(batches)) == list(range(60))
    assert not np.array_equal(np.concatenate(batches), np.arange(60))


def test_the_epochs_number_and_the_seed_decide():
    def order(seed: int, number: int) -> list[int]:
        epochs = CropEpochs(source(numbered(40)), {"a": np.arange(40)}, batch_size=10, random_state=seed)
        return np.concatenate(rows_in(epochs, number)).tolist()

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_sections_give_equal_shares_and_small_ones_four_times_at_most():
    rows_of = {"large": np.arange(80), "medium": np.arange(80, 110), "tiny": np.arange(110, 112), "none": np.arange(0)}
    epochs = CropEpochs(source(numbered(112)), rows_of, batch_size=1)
    counts = np.bincount(np.concatenate(rows_in(epochs)), minlength=112)
    assert counts[:80].sum() == 37  # a third of 112 crops
    assert counts[:80].max() == 1
    assert counts[80:110].sum() == 37
    assert set(counts[80:110]) == {1, 2}
    assert counts[110:].tolist() == [4, 4]


def test_rows_without_crops_are_never_drawn():
    available = np.arange(30) % 3 > 0
    batches = rows_in(CropEpochs(source(numbered(30), available), {"a": np.arange(30)}, batch_size=5))
    assert sorted(np.concatenate(batches)) == np.flatnonzero(available).tolist()


def test_batches_are_of_one_kind_of_crop_each():
    crops = source(numbered(20)) | {"wide": (numbered(20, side=8), np.ones(20, bool))}
    sides = [batch.shape[1] for batch in CropEpochs(crops, {"a": np.arange(20)}, batch_size=5).epoch(0)]
    assert sorted(sides) == [4] * 4 + [8] * 4
    assert sides != sorted(sides)


@pytest.mark.parametrize("limit", [0, 10**9], ids=["streamed", "in memory"])
def test_lazy_crops_are_shown_once_each(monkeypatch, limit):
    monkeypatch.setattr("histoweave.loaders._epochs.IN_MEMORY", limit)
    crops = numbered(200)
    lazy = da.from_array(crops, chunks=(7, 4, 4, 3))
    epochs = CropEpochs(source(lazy), {"a": np.arange(0, 200, 2), "b": np.arange(1, 200, 2)}, batch_size=32)
    batches = list(epochs.epoch(1))
    rows = np.concatenate([b[:, 0, 0, 0].numpy() for b in batches])
    assert [len(b) for b in batches] == [28] * 7
    assert len(set(rows)) == 196
    np.testing.assert_array_equal(torch.cat(batches).numpy(), crops[rows])
    again = torch.cat(list(epochs.epoch(1)))
    assert torch.equal(again, torch.cat(batches))


def test_streaming_computes_every_chunk_once(monkeypatch):
    monkeypatch.setattr("histoweave.loaders._epochs.IN_MEMORY", 0)
    computed = []
    crops = numbered(60)

    def read(block, block_info=None):
        if block_info:
            computed.append(block_info[0]["chunk-location"][0])
        return block

    lazy = da.from_array(crops, chunks=(10, 4, 4, 3)).map_blocks(read, dtype=np.uint8)
    epochs = CropEpochs(source(lazy), {"a": np.arange(60)}, batch_size=10)
    computed.clear()
    list(epochs.epoch(0))
    assert sorted(computed) == list(range(6))


def test_fewer_crops_than_a_batch_make_a_smaller_batch_and_say_so():
    with pytest.warns(HistoweaveWarning, match="batches are of 9"):
        epochs = CropEpochs(source(numbered(9)), {"a": np.arange(9)}, batch_size=64)
    assert [len(b) for b in rows_in(epochs)] == [9]


def test_too_few_crops_and_crops_of_one_colour_are_errors():
    with pytest.raises(ValueError, match="3 crops; training needs at least 4"):
        CropEpochs(source(numbered(3)), {"a": np.arange(3)}, batch_size=2)
    flat = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 4, 4, 3))
    for crops in (flat, da.from_array(flat, chunks=(5, 4, 4, 3))):
        with pytest.raises(ValueError, match="'crops' is of one colour"):
            CropEpochs(source(crops), {"a": np.arange(20)}, batch_size=2)
