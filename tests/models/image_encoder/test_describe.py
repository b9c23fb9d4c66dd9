"""What networks find in crops: batches, too little memory, and what is kept on disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._describe import describe
from histoweave.models.image_encoder._module import ScaleToken


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Backbone("tiny", pretrained=False).eval()


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).integers(0, 256, (23, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def available():
    rows = np.ones(23, dtype=bool)
    rows[[0, 11]] = False
    return rows


@pytest.fixture(scope="module")
def expected(network, crops, available):
    out = np.full((23, 64), np.nan, dtype=np.float32)
    with torch.no_grad():
        for row in np.flatnonzero(available):  # one by one
            out[row] = network(torch.from_numpy(crops[row : row + 1]))[0].numpy()
    return out


class Counted(torch.nn.Module):
    """A network that fails above some crops at a time, and counts what it was asked."""

    def __init__(self, network, fits=10**6, error=None):
        super().__init__()
        self.network, self.fits, self.error, self.asked = network, fits, error, []

    def forward(self, batch):
        self.asked.append(len(batch))
        if len(batch) > self.fits:
            raise self.error
        return self.network(batch)


@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_as_one_by_one(network, crops, available, expected, batch_size):
    found = describe(crops, available, network, device="cpu", batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_halves_batches_and_stays_there(network, crops, available, expected, error):
    small = Counted(network, fits=5, error=error)
    with pytest.warns(HistoweaveWarning, match="Out of memory with 7 crops at a time: going on with 3"):
        found = describe(crops, available, small, device="cpu", batch_size=8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert [n for n in small.asked if n > 5] == small.asked[:1] == [7]  # row 0 has no crop
    assert sum(small.asked[1:]) == available.sum()


def test_other_errors_and_single_crops_are_not_swallowed(network, crops, available):
    with pytest.raises(RuntimeError, match="something else"):
        describe(crops, available, Counted(network, 2, RuntimeError("something else")), device="cpu")
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(HistoweaveWarning, match="Out of memory"):
        describe(crops, available, Counted(network, 0, torch.OutOfMemoryError("CUDA")), device="cpu")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(hw.settings, "embedding_dir", tmp_path / "kept")
    return tmp_path / "kept"


def test_the_same_crops_are_seen_once(network, crops, available, expected, kept):
    counted = Counted(network)
    first = describe(crops, available, counted, device="cpu", batch_size=8)
    asked = len(counted.asked)
    again = describe(crops.copy(), available, counted, device="cpu", batch_size=8)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-5)
    assert len(counted.asked) == asked == len(list(kept.iterdir()))
    changed = crops.copy()
    changed[20, 3, 3] ^= 255  # one pixel: its batch alone is looked at again
    third = describe(changed, available, counted, device="cpu", batch_size=8)
    assert len(counted.asked) == asked + 1
    np.testing.assert_array_equal(third[:16], first[:16])
    assert not np.array_equal(third[20], first[20])


def test_other_weights_precision_and_scales_are_kept_apart(crops, available, kept):
    torch.manual_seed(1)
    network = Backbone("tiny", pretrained=False).eval()
    how = {"device": "cpu", "batch_size": 100}
    first = describe(crops, available, network, **how)
    low = describe(crops, available, network, precision="bfloat16", **how)
    assert not np.array_equal(first, low, equal_nan=True)
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    assert not np.array_equal(first, describe(crops, available, network, **how), equal_nan=True)
    token = ScaleToken(2, 64, 1)
    token.gain.data[1] = 1.0
    scaled = torch.nn.Sequential(network, token).eval()
    at_first = describe(crops, available, scaled, **how)
    token.scale = 1
    np.testing.assert_allclose(describe(crops, available, scaled, **how), 2 * at_first, rtol=1e-5)


def test_a_broken_file_is_written_again(network, crops, available, kept):
    first = describe(crops, available, network, device="cpu")
    (file,) = kept.iterdir()
    for content in (b"", b"\x93NUMPY broken", file.read_bytes()[:-40]):
        file.write_bytes(content)
        np.testing.assert_array_equal(describe(crops, available, network, device="cpu"), first)


def test_statistics_keep_nothing(crops, available, kept):
    describe(crops, available, lambda batch: batch.float().mean((1, 2)), device="cpu")
    assert not kept.exists()


def test_the_same_weights_used_otherwise_are_kept_apart(crops, available, kept):
    torch.manual_seed(1)
    network = Backbone("test_vit", pretrained=False).eval()
    first = describe(crops, available, network, device="cpu")
    network.mean += 0.2
    second = describe(crops, available, network, device="cpu")
    assert not np.array_equal(first, second, equal_nan=True)
    network.size = None if network.size else 64
    describe(crops, available, network, device="cpu")
    assert len(list(kept.iterdir())) == 3
