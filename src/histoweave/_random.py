"""One seed in, every generator out; the global generators of NumPy and torch are never touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SeedLike = int | np.integer | np.random.Generator | None


def rng(random_state: SeedLike) -> np.random.Generator:
    """Return a NumPy generator for a seed, or the generator itself when one is given."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    if random_state is not None and not isinstance(random_state, int | np.integer):
        msg = f"`random_state` must be an integer, a numpy.random.Generator or None, got {random_state!r}."
        raise TypeError(msg)
    return np.random.default_rng(random_state)


def child_seeds(random_state: SeedLike, n: int) -> list[int]:
    """Return ``n`` independent 31-bit seeds: one a fold, a head or a worker."""
    return [int(s) for s in rng(random_state).integers(0, 2**31 - 1, size=n)]


def torch_generator(random_state: SeedLike, device: str = "cpu") -> torch.Generator:
    """Return a torch generator seeded from ``random_state``."""
    import torch

    return torch.Generator(device=device).manual_seed(child_seeds(random_state, 1)[0])


@contextmanager
def torch_seed(random_state: SeedLike) -> Iterator[None]:
    """Seed torch's global generators inside the block, as layer initialisation needs, and restore them."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(child_seeds(random_state, 1)[0])
        yield
