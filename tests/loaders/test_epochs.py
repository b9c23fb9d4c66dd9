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
    found = list(epochs.epoch(number))
    for batch in found:
        np.testing.assert_array_equal(batch.crops[:, 0, 0, 0].numpy(), batch.rows.numpy() % 256)
    return [batch.rows.numpy() for batch in found]


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
    batches = list(CropEpochs(crops, {"a": np.arange(20)}, batch_size=5).epoch(0))
    sides = [batch.crops.shape[1] for batch in batches]
    assert [4 + 4 * batch.kind for batch in batches] == sides
    assert sorted(sides) == [4] * 4 + [8] * 4
    assert sides != sorted(sides)


@pytest.mark.parametrize("limit", [0, 10**9], ids=["streamed", "in memory"])
def test_lazy_crops_are_shown_once_each(monkeypatch, limit):
    monkeypatch.setattr("histoweave.loaders._epochs.IN_MEMORY", limit)
    crops = numbered(200)
    lazy = da.from_array(crops, chunks=(7, 4, 4, 3))
    epochs = CropEpochs(source(lazy), {"a": np.arange(0, 200, 2), "b": np.arange(1, 200, 2)}, batch_size=32)
    batches = list(epochs.epoch(1))
    rows = torch.cat([b.rows for b in batches]).numpy()
    shown = torch.cat([b.crops for b in batches])
    assert [len(b.rows) for b in batches] == [28] * 7
    assert len(set(rows)) == 196
    np.testing.assert_array_equal(shown.numpy(), crops[rows])
    assert torch.equal(torch.cat([b.crops for b in epochs.epoch(1)]), shown)


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


@pytest.mark.parametrize("lazy", [False, True])
def test_batches_by_class_hold_k_crops_of_each_of_p_classes_in_turns(monkeypatch, lazy):
    monkeypatch.setattr("histoweave.loaders._epochs.IN_MEMORY", 0)
    crops, classes = numbered(100), np.repeat([0, 1, 2, 3, -1], [50, 30, 8, 2, 10])
    array = da.from_array(crops, chunks=(9, 4, 4, 3)) if lazy else crops
    rows_of = {"a": np.arange(0, 100, 2), "b": np.arange(1, 100, 2)}
    batches = rows_in(CropEpochs(source(array), rows_of, batch_size=32, classes=classes))
    assert [np.bincount(classes[rows], minlength=4).tolist() for rows in batches] == [[8] * 4] * 3
    few = rows_in(CropEpochs(source(array), rows_of, batch_size=13, classes=classes))  # 3 classes, 4 crops each
    counts = np.array([np.bincount(classes[rows], minlength=4) for rows in few])
    assert set(counts.ravel()) == {0, 4}
    assert (counts.sum(axis=1) == 12).all()
    assert counts.sum(axis=0).max() - counts.sum(axis=0).min() <= 4
    large = np.concatenate(few)[classes[np.concatenate(few)] == 0]
    assert len(set(large)) == len(large)  # crops of a class take turns as well


def test_processes_share_every_batch():
    epochs = CropEpochs(source(numbered(60)), {"a": np.arange(60)}, batch_size=15)
    whole = [b.rows for b in epochs.epoch(2)]
    for i, parts in enumerate(zip(*(epochs.epoch(2, rank, 2) for rank in range(2)), strict=True)):
        assert [len(p.rows) for p in parts] == [7, 7]  # as many each: one crop of fifteen is left out
        assert torch.equal(torch.stack([p.rows for p in parts], 1).flatten(), whole[i][:14])
        for part in parts:
            np.testing.assert_array_equal(part.crops[:, 0, 0, 0], part.rows)


def test_crops_are_read_in_the_order_asked_for(monkeypatch):
    monkeypatch.setattr("histoweave.loaders._epochs.IN_MEMORY", 0)
    for array in (numbered(30), da.from_array(numbered(30), chunks=(7, 4, 4, 3))):
        epochs = CropEpochs(source(array), {"a": np.arange(30)}, batch_size=5)
        assert epochs.read(np.array([20, 3, 20]))[:, 0, 0, 0].tolist() == [20, 3, 20]
