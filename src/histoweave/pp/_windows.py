"""Square windows of an image, in memory or lazy, resampled to one size: arrays only, no tables."""

from __future__ import annotations

import os
import threading
import uuid
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave._settings import track

if TYPE_CHECKING:
    import dask.array as da

CACHE_BYTES = 2**28  #: of lazy images kept in memory, all sections together
WHITE = 255  #: outside the image lies the lit, empty slide


class Pixels:
    """Rectangles of an image ``(height, width, 3)``; a lazy one is read through a bounded cache.

    Going to the image's own graph for single chunks costs far less than slicing the Dask array for every
    window, and the cache keeps what neighbouring windows share.

    Parameters
    ----------
    image
        NumPy or Dask array, uint8.
    cache_bytes
        How much of a lazy image may stay in memory; one chunk always may.
    """

    def __init__(self, image: np.ndarray | da.Array, cache_bytes: int = 2**27) -> None:
        self.image, self.shape, self.cache_bytes = image, image.shape, cache_bytes
        self.lazy = not isinstance(image, np.ndarray)
        self._reset()
        if self.lazy:
            self._edges = [np.cumsum((0, *sizes)) for sizes in image.chunks[:2]]

    def _reset(self) -> None:
        self._lock, self._graph, self._cache, self._held = threading.Lock(), None, OrderedDict(), 0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_graph", "_cache", "_held")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def order(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the order in which windows at ``(x, y)`` are best read."""
        if not self.lazy:
            return np.arange(len(x))
        return np.lexsort((x, np.searchsorted(self._edges[0], y)))

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the pixels of a rectangle that lies within the image."""
        if not self.lazy:
            return self.image[y0:y1, x0:x1]
        rows, columns = self._edges
        out = np.empty((y1 - y0, x1 - x0, self.shape[2]), self.image.dtype)
        for i in range(np.searchsorted(rows, y0, "right") - 1, np.searchsorted(rows, y1)):
            for j in range(np.searchsorted(columns, x0, "right") - 1, np.searchsorted(columns, x1)):
                top, left = max(y0, rows[i]), max(x0, columns[j])
                part = self._chunk(i, j)[top - rows[i] : y1 - rows[i], left - columns[j] : x1 - columns[j]]
                out[top - y0 : top - y0 + part.shape[0], left - x0 : left - x0 + part.shape[1]] = part
        return out

    def _chunk(self, i: int, j: int) -> np.ndarray:
        with self._lock:
            if (i, j) in self._cache:
                self._cache.move_to_end((i, j))
                return self._cache[i, j]
        pixels = self._compute(i, j)
        with self._lock:
            if (i, j) not in self._cache:
                self._cache[i, j] = pixels
                self._held += pixels.nbytes
            while self._held > self.cache_bytes and len(self._cache) > 1:
                self._held -= self._cache.popitem(last=False)[1].nbytes
        return pixels

    def _compute(self, i: int, j: int) -> np.ndarray:
        import dask
        import dask.array as da
        from dask.core import flatten
        from dask.optimization import cull

        with self._lock:
            if self._graph is None:
                image = self.image.rechunk({2: -1})
                keys = list(flatten(image.__dask_keys__()))
                self._graph = (image.name, dict(da.optimization.optimize(image.__dask_graph__(), keys)))
        name, graph = self._graph
        key = (name, int(i), int(j), 0)
        return np.asarray(dask.get(cull(graph, [key])[0], key))


@dataclass(frozen=True)
class Windows:
    """Windows of one image as continuous coordinates: pixel ``i`` covers ``[i, i + 1)``.

    ``left`` and ``top`` have shape ``(n,)``; ``width`` and ``height`` are the same for all, in pixels of the
    image. ``out`` is the side of the result. Where a window has as many pixels as the result it is moved to
    whole pixels, by at most half of one: interpolating would blur each crop differently.
    """

    left: np.ndarray
    top: np.ndarray
    width: float
    height: float
    out: int

    @classmethod
    def around(cls, centres: np.ndarray, width: float, height: float, out: int | None) -> Windows:
        """Return windows centred on points ``(n, 2)`` as (x, y); ``out=None`` keeps the image's pixels."""
        if out is None:
            width = height = max(1, round((width + height) / 2))
            out = int(width)
        left, top = centres[:, 0] - width / 2, centres[:, 1] - height / 2
        if abs(width - out) < 1e-6 and abs(height - out) < 1e-6:
            width = height = out
            left, top = np.floor(left + 0.5), np.floor(top + 0.5)
        return cls(left, top, float(width), float(height), out)

    @property
    def whole(self) -> bool:
        """Tell whether the windows are plain slices."""
        return self.width == self.height == self.out

    def padded(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the fraction of each window's area that lies outside an image of ``shape``."""
        # what lies beyond each edge, not what is left within: a window inside is 0 to the last bit
        beyond_x = np.clip(-self.left, 0, None) + np.clip(self.left + self.width - shape[1], 0, None)
        beyond_y = np.clip(-self.top, 0, None) + np.clip(self.top + self.height - shape[0], 0, None)
        x, y = np.minimum(beyond_x / self.width, 1), np.minimum(beyond_y / self.height, 1)
        return x + y - x * y

    def take(self, rows: np.ndarray) -> Windows:
        """Return some of the windows."""
        return Windows(self.left[rows], self.top[rows], self.width, self.height, self.out)


def cut_now(
    images: list[np.ndarray | da.Array], rows: list[np.ndarray], windows: list[Windows], n_obs: int
) -> np.ndarray:
    """Return the windows of several images as ``(n_obs, out, out, 3)``; zero where no image has the row."""
    side = windows[0].out
    values = np.zeros((n_obs, side, side, 3), np.uint8)
    for image, index, own in track(list(zip(images, rows, windows, strict=True)), "crops", unit="section"):
        cut(Pixels(image, CACHE_BYTES), own, values, index, threads=usable_threads())
    return values


def cut_lazily(
    images: list[np.ndarray | da.Array],
    rows: list[np.ndarray],
    windows: list[Windows],
    n_obs: int,
    *,
    chunk: int,
) -> da.Array:
    """Return the same as a Dask array; all its blocks share one object that reads the images."""
    import dask
    import dask.array as da

    side = windows[0].out
    places = np.full((n_obs, 3), -1.0)  # number of the image, left, top
    for number, (index, own) in enumerate(zip(rows, windows, strict=True)):
        places[index] = np.stack([np.full(len(index), number), own.left, own.top], axis=1)
    sources = [
        (Pixels(image, CACHE_BYTES // len(images)), own.width, own.height)
        for image, own in zip(images, windows, strict=True)
    ]
    shared = dask.delayed(sources, name=f"images-{uuid.uuid4().hex}", traverse=False)
    blocks = da.from_array(places, chunks=(chunk, 3))
    return blocks.map_blocks(
        _cut_block,
        shared,
        side,
        dtype=np.uint8,
        chunks=(blocks.chunks[0], (side,), (side,), (3,)),
        new_axis=[2, 3],
        meta=np.empty((0,) * 4, np.uint8),
    )


def _cut_block(places: np.ndarray, sources: list[tuple[Pixels, float, float]], side: int) -> np.ndarray:
    values = np.zeros((len(places), side, side, 3), np.uint8)
    for number in np.unique(places[:, 0][places[:, 0] >= 0]).astype(int):
        rows = np.flatnonzero(places[:, 0] == number)
        pixels, width, height = sources[number]
        cut(pixels, Windows(places[rows, 1], places[rows, 2], width, height, side), values, rows)
    return values


def cut(pixels: Pixels, windows: Windows, into: np.ndarray, rows: np.ndarray, *, threads: int = 1) -> None:
    """Write the windows to ``into[rows]``, shape ``(n, out, out, 3)``, white outside the image."""
    order = pixels.order(windows.left, windows.top)
    windows, rows = windows.take(order), rows[order]
    work = _slice if windows.whole else _resample
    if threads == 1 or len(rows) < 64:
        work(pixels, windows, into, rows)
        return
    parts = np.array_split(np.arange(len(rows)), 4 * threads)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(work, pixels, windows.take(part), into, rows[part]) for part in parts if len(part)]
        for job in jobs:
            job.result()


def usable_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _slice(pixels: Pixels, windows: Windows, into: np.ndarray, rows: np.ndarray) -> None:
    height, width = pixels.shape[:2]
    side = windows.out
    left, top = windows.left.astype(np.int64), windows.top.astype(np.int64)
    inside = (left >= 0) & (top >= 0) & (left + side <= width) & (top + side <= height)
    corners = zip(rows.tolist(), left.tolist(), top.tolist(), inside.tolist(), strict=True)
    if not pixels.lazy:
        image = pixels.image
        for row, x, y, whole in corners:
            into[row] = image[y : y + side, x : x + side] if whole else _window(pixels, x, y, side, side)
        return
    for row, x, y, _ in corners:
        into[row] = _window(pixels, x, y, side, side)


def _resample(pixels: Pixels, windows: Windows, into: np.ndarray, rows: np.ndarray) -> None:
    from PIL import Image

    x0, y0 = np.floor(windows.left), np.floor(windows.top)
    x1, y1 = np.ceil(windows.left + windows.width), np.ceil(windows.top + windows.height)
    # the window within the pixels that it touches, kept inside them against rounding
    boxes = np.stack(
        [
            windows.left - x0,
            windows.top - y0,
            np.minimum(windows.left + windows.width - x0, x1 - x0),
            np.minimum(windows.top + windows.height - y0, y1 - y0),
        ],
        axis=1,
    ).tolist()
    corners = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).astype(np.int64).tolist()
    size = (windows.out, windows.out)
    for row, (x, y, wide, high), box in zip(rows.tolist(), corners, boxes, strict=True):
        window = Image.fromarray(np.ascontiguousarray(_window(pixels, x, y, wide, high)))
        into[row] = np.asarray(window.resize(size, Image.Resampling.BILINEAR, box=box))


def _window(pixels: Pixels, x: int, y: int, wide: int, high: int) -> np.ndarray:
    """Return a window at whole pixels, white where it leaves the image."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + wide, width), min(y + high, height)
    if (left, top, right, bottom) == (x, y, x + wide, y + high):
        return pixels.read(y, bottom, x, right)
    window = np.full((high, wide, 3), WHITE, np.uint8)
    if left < right and top < bottom:
        window[top - y : bottom - y, left - x : right - x] = pixels.read(top, bottom, left, right)
    return window
