"""Reading rectangles of lazy images: the same pixels as slicing, from a cache that stays small."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest

from histoweave.pp._windows import Pixels, Windows, cut

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (211, 307, 3), dtype=np.uint8)
CHUNKS = ((50, 61, 100), (7, 200, 100), (1, 2))
CORNERS = [sorted(RNG.choice(212, 2, False)) + sorted(RNG.choice(308, 2, False)) for _ in range(60)]


@pytest.mark.parametrize("image", [IMAGE, da.from_array(IMAGE, chunks=CHUNKS)], ids=["memory", "lazy"])
def test_rectangles(image):
    pixels = Pixels(image)
    for y0, y1, x0, x1 in [*CORNERS, (0, 211, 0, 307), (50, 111, 7, 207)]:
        np.testing.assert_array_equal(pixels.read(y0, y1, x0, x1), IMAGE[y0:y1, x0:x1])


def test_the_cache_is_bounded_and_used():
    calls = []

    def load(block, block_info=None):
        calls.append(block_info[0]["chunk-location"])
        return block

    image = da.from_array(IMAGE, chunks=(20, 20, 3)).map_blocks(load, dtype=np.uint8, meta=IMAGE[:0])
    pixels = Pixels(image, cache_bytes=5 * 20 * 20 * 3)
    for _ in range(3):
        pixels.read(0, 40, 0, 40)
    assert len(calls) == 4
    pixels.read(0, 211, 0, 307)
    assert pixels._held <= 5 * 20 * 20 * 3
    assert pixels._held == sum(chunk.nbytes for chunk in pixels._cache.values())


def test_several_threads_and_processes():
    pixels = Pixels(da.from_array(IMAGE, chunks=(30, 30, 3)), cache_bytes=9000)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda c: pixels.read(*c), CORNERS * 5))
    for (y0, y1, x0, x1), part in zip(CORNERS * 5, found, strict=True):
        np.testing.assert_array_equal(part, IMAGE[y0:y1, x0:x1])
    sent = pickle.loads(pickle.dumps(pixels))
    assert sent._held == 0
    np.testing.assert_array_equal(sent.read(10, 90, 20, 200), IMAGE[10:90, 20:200])


@pytest.mark.parametrize(("size", "out"), [(21, None), (20, None), (33.3, 16), (9.5, 16)])
def test_threads_change_nothing(size, out):
    centres = RNG.random((200, 2)) * [307, 211]
    windows = Windows.around(centres, size, size, out)
    one, many = (np.zeros((200, windows.out, windows.out, 3), np.uint8) for _ in range(2))
    cut(Pixels(IMAGE), windows, one, np.arange(200))
    cut(Pixels(da.from_array(IMAGE, chunks=(64, 64, 3))), windows, many, np.arange(200), threads=3)
    np.testing.assert_array_equal(one, many)


def test_padded_area():
    """By counting on a fine grid of points in each window."""
    centres = RNG.random((50, 2)) * [340, 250] - 15
    windows = Windows.around(centres, 40.0, 40.0, 16)
    steps = (np.arange(200) + 0.5) / 200 * 40
    for left, top, share in zip(windows.left, windows.top, windows.padded(IMAGE.shape), strict=True):
        x, y = left + steps, top + steps
        inside = ((x >= 0) & (x < 307)).mean() * ((y >= 0) & (y < 211)).mean()
        assert share == pytest.approx(1 - inside, abs=0.01)


def test_windows_within_the_image_are_not_padded_at_all():
    windows = Windows.around(RNG.random((500, 2)) * [227, 131] + 40, 60 / 0.7, 60 / 0.7, 16)
    windows = Windows(windows.left.clip(0), windows.top.clip(0), windows.width, windows.height, windows.out)
    padded = windows.padded((2000, 2000, 3))
    assert (padded == 0).all()
    outside = Windows(np.array([-500.0, 2100.0, -10.0]), np.zeros(3), 60.0, 60.0, 16).padded((2000, 2000, 3))
    np.testing.assert_allclose(outside, [1, 1, 1 / 6])
