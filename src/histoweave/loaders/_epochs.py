"""Epochs of shuffled crops for training: sections or classes balanced, every epoch a function of its number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch

from histoweave._validate import listing, warn
from histoweave.loaders._crops import crop_batches

IN_MEMORY = 2 * 1024**3  # bytes; lazy crops below this are read once, others streamed in every epoch
GROUP = 8  # chunks of a lazy array that are mixed with each other
MAX_REPEATS = 4  # times that an epoch shows a crop of a small section
PER_CLASS = 4  # crops that a class has in a batch at least
MIN_CROPS = 4
LOOKED_AT = 64  # crops that the same data is recognised by


class Batch(NamedTuple):
    """Crops of one kind with what finds everything else about them."""

    crops: torch.Tensor  #: ``(n, height, width, 3)`` uint8
    rows: torch.Tensor  #: rows of the table ``(n,)`` int64
    kind: int  #: which of the kinds of crops


@dataclass(frozen=True)
class Epoch:
    """One epoch, or the part of every batch that is one process's: iterate for batches."""

    crops: CropEpochs
    number: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[Batch]:
        for crops, rows, kind in self.crops.batches(self.number):
            share = slice(self.rank, len(rows) // self.world * self.world, self.world)
            yield Batch(crops[share], rows[share], kind)


class CropEpochs:
    """Batches of the crops of a table, of one kind of crop each.

    Each section gives an epoch the same number of crops, those of small sections up to four times. Every batch
    is of the same size, at most ``batch_size``. With ``classes``, every batch holds equally many crops of each
    of its P classes instead (P x K): of all classes where each gets four crops, else of some, in turns.

    Parameters
    ----------
    crops
        By name ``(n, height, width, 3)`` uint8, NumPy or Dask, and the mask of the rows that have any.
    rows_of
        Rows of each section.
    batch_size
        Crops in a batch; with fewer crops than that, all of them, with a warning.
    classes
        Class number of every row ``(n,)``; rows below 0 are not drawn.
    random_state
        Seed; an epoch depends on it and on the epoch's number, not on what was drawn before.
    """

    def __init__(
        self,
        crops: Mapping[str, tuple[Any, np.ndarray]],
        rows_of: Mapping[str, np.ndarray],
        *,
        batch_size: int,
        classes: np.ndarray | None = None,
        random_state: int = 0,
    ) -> None:
        self.batch_size, self.random_state, self.classes = batch_size, random_state, classes
        self._sources = []
        for key, (array, available) in crops.items():
            parts = [rows[available[rows]] for rows in rows_of.values()]
            if classes is not None:
                drawn = np.concatenate(parts)
                parts = [drawn[classes[drawn] == c] for c in np.unique(classes[drawn]) if c >= 0]
            parts = [rows for rows in parts if len(rows)]
            n = sum(len(rows) for rows in parts)
            if n < MIN_CROPS:
                msg = f"`adata.obsm[{key!r}]` has {n} crops; training needs at least {MIN_CROPS}, better hundreds."
                raise ValueError(msg)
            if n < batch_size:
                warn(f"`adata.obsm[{key!r}]` has {n} crops, fewer than `batch_size={batch_size}`: batches are of {n}.")
            self._sources.append((_held(array, key), parts, *_plan(parts, min(batch_size, n), classes is not None)))
        flat = [key for key, source in zip(crops, self._sources, strict=True) if _of_one_colour(source)]
        if flat:
            msg = f"Every crop looked at in {listing(flat)} is of one colour: there is nothing to learn from."
            raise ValueError(msg)

    @cached_property
    def fingerprint(self) -> list[list[int]]:
        """Crops, side, batches, batch size, rows and some pixels of every kind, to recognise the same data by."""
        return [
            [len(array), array.shape[1], n, size, *_recognised(array, parts)]
            for array, parts, _, n, size in self._sources
        ]

    def __len__(self) -> int:
        return sum(n_batches for *_, n_batches, _ in self._sources)

    def read(self, rows: np.ndarray, kind: int = 0) -> torch.Tensor:
        """Return the crops of some rows, in their order."""
        return _read(self._sources[kind][0], rows)

    def epoch(self, number: int, rank: int = 0, world: int = 1) -> Epoch:
        """Return an epoch by its number, or the share of one of several processes."""
        return Epoch(self, number, rank, world)

    def batches(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, the kinds of crops mixed."""
        rng = np.random.default_rng([self.random_state, number])
        streams, turns = [], []
        for i, (array, parts, quota, n_batches, size) in enumerate(self._sources):
            if self.classes is None:
                streams.append(_stream(array, _draw(parts, quota, rng)[: n_batches * size], size, rng))
            else:
                streams.append(_by_class(array, parts, quota, n_batches, rng))
            turns += [i] * n_batches
        for i in rng.permutation(turns):
            yield Batch(*next(streams[i]), int(i))


def _recognised(array: Any, parts: list[np.ndarray]) -> tuple[int, int]:
    """Return a number for the rows of each part, and one for the pixels of some of them."""
    rows = np.sort(np.concatenate(parts)).astype(np.int64)
    told = crc32(np.concatenate([[len(part), *part] for part in parts]).astype(np.int64).tobytes())
    return told, crc32(_read(array, rows[:: max(1, len(rows) // LOOKED_AT)]).numpy().tobytes())


def _plan(parts: list[np.ndarray], batch_size: int, by_class: bool) -> tuple[Any, int, int]:
    """Return how many crops of each part an epoch shows, or P and K of a batch, then batches and their size."""
    n = sum(len(rows) for rows in parts)
    if by_class:
        p = max(1, min(len(parts), batch_size // PER_CLASS))
        k = batch_size // p
        return (p, k), -(-n // (p * k)), p * k
    quota = [min(round(n / len(parts)), MAX_REPEATS * len(rows)) for rows in parts]
    n_batches = -(-sum(quota) // batch_size)
    return quota, n_batches, sum(quota) // n_batches


def _held(crops: Any, key: str) -> Any:
    """Crops in memory as a tensor; lazy ones that are too large as they are."""
    if not hasattr(crops, "chunks"):
        return torch.from_numpy(np.ascontiguousarray(crops))
    if crops.nbytes > IN_MEMORY:
        return crops
    return torch.cat([b for _, b in crop_batches(crops, np.arange(len(crops)), description=f"read {key}")])


def _read(array: Any, rows: np.ndarray) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array[torch.from_numpy(rows)]
    wanted, back = np.unique(rows, return_inverse=True)
    return torch.from_numpy(np.asarray(array[wanted])[back])


def _draw(parts: list[np.ndarray], quota: list[int], rng: np.random.Generator) -> np.ndarray:
    drawn = []
    for rows, size in zip(parts, quota, strict=True):
        drawn += [np.concatenate([rng.permutation(rows) for _ in range(-(-size // len(rows)))])[:size]]
    return rng.permutation(np.concatenate(drawn))


def _shuffled_forever(values: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(values)


def _by_class(
    array: Any, parts: list[np.ndarray], shape: tuple[int, int], n_batches: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of K crops of P classes; classes, and crops within a class, take turns."""
    p, k = shape
    turns, members = [], [_shuffled_forever(rows, rng) for rows in parts]
    for _ in range(n_batches):
        chosen: list[int] = []
        while len(chosen) < p:  # a class left over from the last round comes first, and never twice in a batch
            turns = turns or rng.permutation(len(parts)).tolist()
            place = next((i for i, c in enumerate(turns) if c not in chosen), None)
            if place is None:
                turns += rng.permutation(len(parts)).tolist()
                continue
            chosen.append(turns.pop(place))
        rows = np.array([next(members[c]) for c in chosen for _ in range(k)])
        yield _read(array, rows), torch.from_numpy(rows)


def _stream(
    array: Any, order: np.ndarray, size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the crops of ``order`` in batches; of a lazy array, a few chunks at a time in random order."""
    if isinstance(array, torch.Tensor):
        for rows in torch.from_numpy(order).split(size):
            yield array[rows], rows
        return
    edges = np.concatenate([[0], np.cumsum(array.chunks[0])])
    chunk_of = np.searchsorted(edges, order, side="right") - 1
    visits = rng.permutation(np.unique(chunk_of))
    held, held_rows = torch.empty(0, *array.shape[1:], dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    for start in range(0, len(visits), GROUP):
        group = visits[start : start + GROUP]
        here = order[np.isin(chunk_of, group)]
        wanted = np.unique(here)
        spans = [(a, b, wanted[(wanted >= a) & (wanted < b)]) for a, b in pairwise(edges)]
        block = np.concatenate([np.asarray(array[a:b])[rows - a] for a, b, rows in spans if len(rows)])
        held = torch.cat([held, torch.from_numpy(block[np.searchsorted(wanted, here)])])
        held_rows = torch.cat([held_rows, torch.from_numpy(here)])
        while len(held) >= size:
            yield held[:size], held_rows[:size]
            held, held_rows = held[size:], held_rows[size:]


def _of_one_colour(source: tuple) -> bool:
    array, parts = source[:2]
    rows = np.concatenate(parts)
    if isinstance(array, torch.Tensor):
        rows = rows[:: max(1, len(rows) // 500)]
    else:
        rows = rows[rows < array.chunks[0][0]] if (rows < array.chunks[0][0]).any() else rows[:1]
    crops = np.asarray(array[np.sort(rows)])
    return bool((crops.reshape(len(crops), -1, 3).std(axis=1).max(axis=1) < 1).all())
