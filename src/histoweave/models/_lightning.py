"""Lightning as every training here runs it: on the chosen device, quietly, its state kept after every epoch."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint

from histoweave._files import check_writable


class Resumable(LightningModule):
    """A training with a history that is continued only where everything that decides its weights is the same."""

    history: list[dict[str, float]]

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a training to be continued."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history and what the training is made of."""
        checkpoint["histoweave"] = {"identity": self.identity(), "history": self.history}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the history of the same training."""
        found, own = checkpoint.get("histoweave", {}).get("identity", {}), self.identity()
        differing = [name for name in own if found.get(name) != own[name]]
        if differing:
            name = differing[0]
            msg = (
                f"The checkpoint is of another training: {', '.join(differing)} differ ({name}: {found.get(name)!r} "
                f"there, {own[name]!r} here). Choose another `checkpoint`, or delete the file to start anew."
            )
            raise ValueError(msg)
        self.history = list(checkpoint["histoweave"]["history"])


def saved_identity(checkpoint: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return what the training of a checkpoint is made of; nothing where there is none that can be read."""
    if checkpoint is None or not Path(checkpoint).is_file():
        return {}
    try:
        return torch.load(checkpoint, weights_only=True, map_location="cpu")["histoweave"]["identity"]
    except (KeyError, IndexError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError):
        return {}


class _SaveEveryEpoch(Checkpoint):
    """Keep one file that is complete at any time, whenever the process dies."""

    def __init__(self, path: Path) -> None:
        check_writable(path.parent)
        self.path, self._part = path, path.with_name(f".{path.name}.part")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self._part)  # every process takes part, the first one writes
        if trainer.is_global_zero:
            self._part.replace(self.path)


def fit(
    module: LightningModule,
    *,
    device: str,
    precision: str,
    max_epochs: int,
    checkpoint: str | os.PathLike[str] | None = None,
    callbacks: Iterable[Callback] = (),
    devices: int | list[int] | str = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
    **options: Any,
) -> None:
    """Train a module, which brings its own batches, from its checkpoint where there is one.

    Parameters
    ----------
    module
        The module.
    device
        A device that this machine has, see ``resolve_device``.
    precision
        ``"float32"`` or ``"bfloat16"``.
    max_epochs
        Epochs.
    checkpoint
        File to keep the state in after every epoch, and to continue from where it exists. It is removed when the
        training is complete.
    callbacks, devices, strategy, num_nodes, options
        As for :class:`lightning.pytorch.Trainer`. One device is the one named.
    """
    path = None if checkpoint is None else Path(checkpoint)
    kind, _, number = device.partition(":")
    with quiet():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(kind, kind),
            devices=[int(number)] if number and devices == 1 else devices,
            strategy=strategy,
            num_nodes=num_nodes,
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            max_epochs=max_epochs,
            callbacks=[*callbacks, *([] if path is None else [_SaveEveryEpoch(path)])],
            logger=False,
            enable_checkpointing=path is not None,
            enable_model_summary=False,
            **options,
        )
        resumed = path if path is not None and path.exists() else None
        trainer.fit(module, ckpt_path=resumed, weights_only=True if resumed else None)
    if trainer.interrupted:  # Lightning ends quietly on Ctrl-C
        raise KeyboardInterrupt
    if path is not None and trainer.is_global_zero:
        path.unlink(missing_ok=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks on hardware and loaders to itself, and leave logging and filters as they were."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
