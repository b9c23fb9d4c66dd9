"""Do maps show what decided, and what was learned: each number beside what it would be by chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from histoweave._random import child_seeds, rng
from histoweave.metrics import map_similarity, perturbation
from histoweave.models.explanation._attribution import as_pictures, probabilities, randomised
from histoweave.models.explanation._scorer import MapsOf


def check_maps(
    network: nn.Module,
    maps_of: MapsOf,
    images: np.ndarray,
    target: np.ndarray,
    *,
    batch_size: int,
    device: str,
    random_state: int,
) -> Iterator[dict[str, Any]]:
    """Yield ``{check, value, null, n}`` of deletion, insertion and weight randomisation.

    Parameters
    ----------
    network
        The network, on the device.
    maps_of
        Gives the maps of a network, pictures and classes.
    images
        Crops ``(n, height, width, 3)`` uint8.
    target
        Number of the class that is explained, ``(n,)``.
    batch_size, device, random_state
        As for :func:`histoweave.tl.grad_cam`.
    """
    rows, (shuffle, weights) = np.arange(len(images)), child_seeds(random_state, 2)

    def score(pictures: np.ndarray) -> np.ndarray:
        return probabilities(network, pictures, batch_size=batch_size, device=device)[rows, target]

    def maps(of: nn.Module) -> np.ndarray:
        parts = []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            classes = torch.from_numpy(target[part]).to(device)
            parts.append(maps_of(of, as_pictures(images[part], device), classes))
        return torch.cat(parts).cpu().numpy()

    own = maps(network)
    displaced = rng(shuffle).permuted(own.reshape(len(own), -1), axis=1).reshape(own.shape)
    for mode in ("deletion", "insertion"):
        area, null = (perturbation(score, images, m, mode=mode)[1].mean() for m in (own, displaced))
        yield {"check": f"{mode}_area", "value": area, "null": null, "n": len(images)}
    random, of_others = (map_similarity(own, m) for m in (maps(randomised(network, weights)), np.roll(own, 1, axis=0)))
    for name in random:
        value, n = random[name].mean(), int(random[name].notna().sum())
        null = of_others[name].mean() if len(images) > 1 else np.nan  # there is no other
        yield {"check": f"randomised_{name}", "value": value, "null": null, "n": n}
