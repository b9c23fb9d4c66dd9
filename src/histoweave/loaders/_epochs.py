"""Epochs of shuffled crops for training without labels: sections balanced, every epoch a function of its number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from histoweave._validate import listing, warn
from histoweave.loaders._crops import crop_batches

IN_MEMORY = 2 * 1024**3  # bytes; lazy crops below this are read once, others streamed in every epoch
GROUP = 8  # chunks of a lazy array that are mixed with each other
MAX_REPEATS = 4  # times that an epoch shows a crop of a small section
MIN_CROPS = 4


@dataclass(frozen=True)
class Epoch:
    """One epoch: iterate for batches ``(n, height, width, 3)`` uint8."""

    crops: CropEpochs
    number: int

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.crops.batches(self.number)


class CropEpochs:
    """Batches of the crops of a table, of one kind of crop each.

    Each section gives an epoch the same number of crops, those of small sections up to four times. Every batch
    is of the same size, at most ``batch_size``.

    Parameters
    ----------
    crops
        By name ``(n, height, width, 3)`` uint8, NumPy or Dask, and the mask of the rows that have any.
    rows_of
        Rows of each section.
    batch_size
        Crops in a batch; with fewer crops than that, all of them, with a warning.
    random_state
        Seed; an epoch depends on it and on the epoch's number, not on what was drawn before.
    """

    def __init__(
        self,
        crops: Mapping[str, tuple[Any, np.ndarray]],
        rows_of: Mapping[str, np.ndarray],
        *,
        batch_size: int,
        random_state: int = 0,
    ) -> None:
        self.random_state = random_state
        self._sources = []
        for key, (array, available) in crops.items():
            parts = [rows[available[rows]] for rows in rows_of.values()]
            parts = [rows for rows in parts if len(rows)]
            n = sum(len(rows) for rows in parts)
            if n < MIN_CROPS:
                msg = f"`adata.obsm[{key!r}]` has {n} crops; training needs at least {MIN_CROPS}, better hundreds."
                raise ValueError(msg)
            if n < batch_size:
                warn(f"`adata.obsm[{key!r}]` has {n} crops, fewer than `batch_size={batch_size}`: batches are of {n}.")
            quota = [min(round(n / len(parts)), MAX_REPEATS * len(rows)) for rows in parts]
            n_batches = -(-sum(quota) // batch_size)
            self._sources.append((_held(array, key), parts, quota, n_batches, sum(quota) // n_batches))
        flat = [key for key, source in zip(crops, self._sources, strict=True) if _of_one_colour(source)]
        if flat:
            msg = f"Every crop looked at in {listing(flat)} is of one colour: there is nothing to learn from."
            raise ValueError(msg)

    @property
    def fingerprint(self) -> list[list[int]]:
        """Crops, side, batches, batch size and some pixels of every kind, to recognise the same data by."""
        return [
            [len(array), array.shape[1], n, size, int(np.asarray(array[:1]).sum())]
            for array, _, _, n, size in self._sources
        ]

    def __len__(self) -> int:
        return sum(n_batches for *_, n_batches, _ in self._sources)

    def epoch(self, number: int) -> Epoch:
        """Return an epoch by its number."""
        return Epoch(self, number)

    def batches(self, number: int) -> Iterator[torch.Tensor]:
        """Yield the batches of an epoch, the kinds of crops mixed."""
        rng = np.random.default_rng([self.random_state, number])
        streams, turns = [], []
        for i, (array, parts, quota, n_batches, size) in enumerate(self._sources):
            order = _draw(parts, quota, rng)[: n_batches * size]
            streams.append(_stream(array, order, size, rng))
            turns += [i] * n_batches
        for i in rng.permutation(turns):
            yield next(streams[i])


def _held(crops: Any, key: str) -> Any:
    """Crops in memory as a tensor; lazy ones that are too large as they are."""
    if not hasattr(crops, "chunks"):
        return torch.from_numpy(np.ascontiguousarray(crops))
    if crops.nbytes > IN_MEMORY:
        return crops
    return torch.cat([b for _, b in crop_batches(crops, np.arange(len(crops)), description=f"read {key}")])


def _draw(parts: list[np.ndarray], quota: list[int], rng: np.random.Generator) -> np.ndarray:
    drawn = []
    for rows, size in zip(parts, quota, strict=True):
        drawn += [np.concatenate([rng.permutation(rows) for _ in range(-(-size // len(rows)))])[:size]]
    return rng.permutation(np.concatenate(drawn))


def _stream(array: Any, order: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Yield the crops of ``order`` in batches; of a lazy array, a few chunks at a time in random order."""
    if isinstance(array, torch.Tensor):
        for start in range(0, len(order), size):
            yield array[torch.from_numpy(order[start : start + size])]
        return
    edges = np.concatenate([[0], np.cumsum(array.chunks[0])])
    chunk_of = np.searchsorted(edges, order, side="right") - 1
    visits = rng.permutation(np.unique(chunk_of))
    held = torch.empty(0, *array.shape[1:], dtype=torch.uint8)
    for start in range(0, len(visits), GROUP):
        group = visits[start : start + GROUP]
        here = order[np.isin(chunk_of, group)]
        wanted = np.unique(here)
        spans = [(a, b, wanted[(wanted >= a) & (wanted < b)]) for a, b in pairwise(edges)]
        block = np.concatenate([np.asarray(array[a:b])[rows - a] for a, b, rows in spans if len(rows)])
        held = torch.cat([held, torch.from_numpy(block[np.searchsorted(wanted, here)])])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]


def _of_one_colour(source: tuple) -> bool:
    array, parts = source[:2]
    rows = np.concatenate(parts)
    if isinstance(array, torch.Tensor):
        rows = rows[:: max(1, len(rows) // 500)]
    else:
        rows = rows[rows < array.chunks[0][0]] if (rows < array.chunks[0][0]).any() else rows[:1]
    crops = np.asarray(array[np.sort(rows)])
    return bool((crops.reshape(len(crops), -1, 3).std(axis=1).max(axis=1) < 1).all())
