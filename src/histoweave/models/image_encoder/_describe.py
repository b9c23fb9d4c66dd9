"""What a network finds in crops: batch by batch, with less memory where it does not suffice, and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from histoweave._device import out_of_memory
from histoweave._files import atomic_path
from histoweave._settings import settings
from histoweave._validate import warn
from histoweave.loaders import crop_batches
from histoweave.models.image_encoder._module import ScaleToken

Describe = Callable[[torch.Tensor], torch.Tensor]


def describe(
    crops: Any,
    available: np.ndarray,
    by: Describe,
    *,
    device: str,
    precision: str = "float32",
    batch_size: int = 256,
    description: str = "embed",
) -> np.ndarray:
    """Return what ``by`` finds in crops, ``(n, d)`` float32; rows without crops are NaN.

    A batch that does not fit into memory is halved, and so are all later ones. Where ``hw.settings.embedding_dir`` is
    set, what a network found in a batch is kept there, by its weights and the pixels, and read the next time.

    Parameters
    ----------
    crops
        ``(n, height, width, 3)`` uint8, in memory or lazy.
    available
        Rows that have crops ``(n,)``.
    by
        From a batch of crops to ``(batch, d)``; a network stands on ``device`` already.
    device, precision
        What they are on this machine.
    batch_size
        Crops in a batch.
    description
        Of the progress bar.
    """
    once = _Halving(by, torch.device(device), precision == "bfloat16")
    kept = None
    if settings.embedding_dir is not None and isinstance(by, nn.Module):
        kept = _Kept(Path(settings.embedding_dir), by, f"{precision} {torch.device(device).type}")
    out = None
    batches = crop_batches(crops, np.flatnonzero(available), batch_size=batch_size, description=description)
    for rows, batch in batches:
        values = once(batch) if kept is None else kept.get(batch, once)
        if out is None:
            out = np.full((len(available), values.shape[1]), np.nan, dtype=np.float32)
        out[rows] = values
    return out


class _Halving:
    """Describe batches whole while memory suffices, in pieces after that."""

    def __init__(self, by: Describe, device: torch.device, low: bool) -> None:
        self.by, self.device, self.low = by, device, low
        self.size: int | None = None

    def __call__(self, batch: torch.Tensor) -> np.ndarray:
        found, start = [], 0
        while start < len(batch):
            part = batch[start : start + (self.size or len(batch))]
            try:
                with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.low):
                    found.append(self.by(part.to(self.device)).float().cpu().numpy())
                start += len(part)
            except RuntimeError as error:
                if not out_of_memory(error) or len(part) == 1:
                    raise
                self.size = len(part) // 2
                warn(f"Out of memory with {len(part)} crops at a time: going on with {self.size}.")
        return found[0] if len(found) == 1 else np.concatenate(found)


class _Kept:
    """One file a batch, named by the network, the precision and the pixels."""

    def __init__(self, folder: Path, network: nn.Module, how: str) -> None:
        digest = hashlib.sha256(f"{how} {network}".encode())  # also its size and what it makes of tokens
        digest.update(repr([part.scale for part in network.modules() if isinstance(part, ScaleToken)]).encode())
        for name, values in [*network.named_parameters(), *network.named_buffers()]:
            digest.update(name.encode() + values.detach().cpu().contiguous().numpy().tobytes())
        self.folder, self.network = folder, digest.hexdigest()

    def get(self, batch: torch.Tensor, compute: Callable[[torch.Tensor], np.ndarray]) -> np.ndarray:
        pixels = batch.numpy()
        digest = hashlib.sha256(f"{self.network} {pixels.shape}".encode() + pixels.tobytes())
        path = self.folder / f"{digest.hexdigest()[:40]}.npy"
        try:
            values = np.load(path)
            if len(values) == len(batch):
                return values
        except (OSError, ValueError, EOFError):  # not there, or not whole
            pass
        values = compute(batch)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
        return values
