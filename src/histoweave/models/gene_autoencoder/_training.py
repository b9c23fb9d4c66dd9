"""How the masked autoencoder is trained: Lightning's loop over row numbers, the matrix staying where it is."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from histoweave._random import child_seeds, torch_generator, torch_seed
from histoweave._settings import track
from histoweave.models.gene_autoencoder._data import Rows, balanced_order
from histoweave.models.gene_autoencoder._masking import Masker
from histoweave.models.gene_autoencoder._module import GeneNetwork

WARM_UP = 0.05  # share of the steps over which the learning rate rises


class Batches:
    """Row numbers of each batch of an epoch, in a new balanced order every time."""

    def __init__(self, rows: np.ndarray, section: np.ndarray, batch_size: int, device: str, seed: int) -> None:
        self._rows, self._section, self._size, self._device = torch.from_numpy(rows), section, batch_size, device
        self._generator = torch_generator(seed)

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._size)

    def __iter__(self) -> Iterator[Tensor]:
        order = self._rows[balanced_order(self._section, self._generator)].to(self._device)
        return iter(order.split(self._size))


class MaskedTraining(lightning.LightningModule):
    """One network, its masks and its data; losses of every epoch in ``epochs``.

    Parameters
    ----------
    network
        The network.
    masker
        Draws what is hidden.
    rows
        The matrix, on the device.
    held_out
        Rows that are not trained on but scored after every epoch, under masks that stay the same.
    learning_rate, weight_decay
        Of AdamW; the rate rises over the first steps and then falls to 0 along a cosine.
    patience
        Epochs without a better held-out loss after which training stops; ``None`` to go on.
    seed
        Seed of the masks.
    """

    def __init__(
        self,
        network: GeneNetwork,
        masker: Masker,
        rows: Rows,
        held_out: np.ndarray,
        *,
        learning_rate: float,
        weight_decay: float,
        patience: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.network, self._masker, self._data, self._patience = network, masker, rows, patience
        self._learning_rate, self._weight_decay = learning_rate, weight_decay
        self._held_out = torch.from_numpy(held_out).to(rows.device)
        train_seed, self._held_out_seed = child_seeds(seed, 2)
        self._generator = torch_generator(train_seed, rows.device)
        self.epochs: list[dict[str, float]] = []
        self._best, self._best_weights, self._since = math.inf, None, 0

    def _loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        x = self._data.log_batch(rows)
        target = x if self.network.likelihood == "mse" else self._data.count_batch(rows)
        mask = self._masker.draw(len(rows), generator)
        out = self.network(x, mask, self._data._section[rows])
        return self.network.loss(out, target, self._data.depth[rows], mask)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Hide genes of a batch and predict them."""
        loss = self._loss(batch, self._generator)
        self._sum += loss.detach() * len(batch)
        self._n += len(batch)
        return loss

    def transfer_batch_to_device(self, batch: Tensor, device: Any, dataloader_idx: int) -> Tensor:
        """Row numbers are where they belong already."""
        return batch

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine."""
        optimizer = torch.optim.AdamW(
            self.parameters(), self._learning_rate, weight_decay=self._weight_decay, fused=True
        )
        total = self.trainer.estimated_stepping_batches
        rise = max(1, round(WARM_UP * total))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Open the progress bar."""
        self._bar = iter(track(range(self.trainer.max_epochs), "genes", unit="epoch"))

    def on_train_epoch_start(self) -> None:
        """Start the epoch's mean."""
        next(self._bar)
        self._sum, self._n = torch.zeros((), device=self._data.device), 0

    def on_train_epoch_end(self) -> None:
        """Score the held-out rows, keep the best weights, stop when they get no better."""
        scores = {"epoch": len(self.epochs) + 1, "train_loss": float(self._sum / self._n)}
        if len(self._held_out):
            scores["validation_loss"] = self._validate()
            self._remember(scores["validation_loss"])
        self.epochs.append(scores)

    @torch.no_grad()
    def _validate(self) -> float:
        self.network.eval()
        generator = torch.Generator(self._data.device).manual_seed(self._held_out_seed)
        batches = self._held_out.split(1024)
        total = sum(float(self._loss(rows, generator)) * len(rows) for rows in batches)
        self.network.train()
        return total / len(self._held_out)

    def _remember(self, loss: float) -> None:
        if loss < self._best:
            self._best, self._since = loss, 0
            self._best_weights = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
            return
        self._since += 1
        self.trainer.should_stop = self._patience is not None and self._since >= self._patience

    def on_train_end(self) -> None:
        """Go back to the best weights."""
        next(self._bar, None)
        if self._best_weights is not None:
            self.network.load_state_dict(self._best_weights)


def train(
    network: GeneNetwork,
    masker: Masker,
    rows: Rows,
    *,
    validation_fraction: float,
    batch_size: int,
    max_epochs: int,
    learning_rate: float,
    weight_decay: float,
    patience: int | None,
    precision: str,
    seed: int,
) -> list[dict[str, float]]:
    """Train the network in place and return the losses of every epoch.

    Parameters
    ----------
    network, masker, rows
        As for :class:`MaskedTraining`; all on one device.
    validation_fraction
        Share of the rows to hold out.
    batch_size
        Rows a step.
    max_epochs
        Epochs.
    learning_rate, weight_decay, patience
        As for :class:`MaskedTraining`.
    precision
        ``"float32"`` or ``"bfloat16"``.
    seed
        Seed of order, held-out rows, masks and dropout.
    """
    order_seed, split_seed, mask_seed, dropout_seed = child_seeds(seed, 4)
    usable = np.flatnonzero(rows.usable)
    n_held_out = round(validation_fraction * len(usable))
    shuffled = np.random.default_rng(split_seed).permutation(usable)
    held_out, trained = np.sort(shuffled[:n_held_out]), np.sort(shuffled[n_held_out:])
    module = MaskedTraining(
        network, masker, rows, held_out, learning_rate=learning_rate, weight_decay=weight_decay, patience=patience,
        seed=mask_seed,
    )  # fmt: skip
    batches = Batches(trained, rows.section_number[trained], batch_size, rows.device, order_seed)
    kind, _, number = rows.device.partition(":")
    with quiet(), torch_seed(dropout_seed):
        trainer = lightning.Trainer(
            accelerator="gpu" if kind == "cuda" else kind,
            devices=[int(number)] if number else 1,
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            max_epochs=max_epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches)
    network.eval()
    return module.epochs


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks on hardware and loaders to itself, and leave logging and filters as they were."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
