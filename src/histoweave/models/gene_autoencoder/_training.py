"""How the masked autoencoder is trained: Lightning's loop over row numbers, the matrix staying where it is."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histoweave._random import child_seeds, torch_generator, torch_seed
from histoweave._settings import track
from histoweave.models._lightning import Resumable, fit
from histoweave.models.gene_autoencoder._correction import correction
from histoweave.models.gene_autoencoder._data import Rows, balanced_order
from histoweave.models.gene_autoencoder._masking import Masker
from histoweave.models.gene_autoencoder._module import GeneNetwork

WARM_UP = 0.05  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class Training:
    """What a training is made of; with the counts it decides the weights.

    Parameters
    ----------
    max_epochs, batch_size, learning_rate, weight_decay, validation_fraction, patience
        As for :class:`histoweave.models.GeneAutoencoder`.
    batch_correction, correction_weight
        As there.
    precision
        ``"float32"`` or ``"bfloat16"``.
    seed
        Seed of order, held-out rows, masks and dropout.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    validation_fraction: float
    patience: int | None
    batch_correction: str | None
    correction_weight: float
    precision: str
    seed: int


class Batches:
    """Row numbers of each batch of an epoch; several processes share every batch."""

    def __init__(self, order: Tensor, batch_size: int, rank: int, world: int) -> None:
        self._parts, self._rank, self._world = order.split(batch_size), rank, world

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Tensor]:
        for part in self._parts:
            own = part[self._rank :: self._world]
            yield own if len(own) else part[:1]  # every process must take every step


class MaskedTraining(Resumable):
    """One network, its masks and its data; losses of every epoch in ``history``.

    Everything random in an epoch depends on the seed and the number of the epoch alone. The learning rate rises over
    the first steps and then falls to 0 along a cosine. Held-out rows are scored after every epoch under masks that
    stay the same; the best weights are kept.

    Parameters
    ----------
    network, masker, rows
        The network, what draws the masks, and the matrix; all on one device.
    plan
        How to train.
    """

    def __init__(self, network: GeneNetwork, masker: Masker, rows: Rows, plan: Training) -> None:
        super().__init__()
        self.network, self._masker, self._data, self.plan = network, masker, rows, plan
        self._order_seed, split_seed, self._mask_seed, self._dropout_seed, self._held_out_seed = child_seeds(
            plan.seed, 5
        )
        usable = np.flatnonzero(rows.usable)
        shuffled = np.random.default_rng(split_seed).permutation(usable)
        n_held_out = round(plan.validation_fraction * len(usable))
        self._held_out = torch.from_numpy(np.sort(shuffled[:n_held_out])).to(rows.device)
        self._trained = np.sort(shuffled[n_held_out:])
        self.history = []
        self._best, self._best_weights, self._since = math.inf, None, 0
        self.correction = correction(plan.batch_correction, len(rows.rows_of))

    def train_dataloader(self) -> Batches:
        """Return the batches of the current epoch, in a new balanced order."""
        generator = torch_generator(np.random.default_rng([self._order_seed, self.current_epoch]))
        order = self._trained[balanced_order(self._data.section_number[self._trained], generator)]
        return Batches(
            torch.from_numpy(order).to(self._data.device), self.plan.batch_size, self.global_rank,
            self.trainer.world_size,
        )  # fmt: skip

    def _loss(self, rows: Tensor, generator: torch.Generator, corrected: bool = False) -> Tensor:
        x, around, section = self._data.log_batch(rows), self._data.around_batch(rows), self._data._section[rows]
        target = x if self.network.likelihood == "mse" else self._data.count_batch(rows)
        mask = self._masker.draw(len(rows), generator)
        # a neighbour's genes are hidden on their own: it may show what the spot must predict, or may not
        z = self.network.hide(x, mask, around, None if around is None else self._masker.draw(len(rows), generator))
        loss = self.network.loss(self.network.decode(z, section), target, self._data.depth[rows], mask)
        if corrected and self.correction is not None:
            rise = min(1.0, 2 * self.current_epoch / self.plan.max_epochs)  # first learn, then forget
            loss = loss + self.correction(z.float(), section, rise * self.plan.correction_weight)
        return loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Hide genes of a batch and predict them."""
        loss = self._loss(batch, self._generator, corrected=True)
        self._sum += torch.stack([loss.detach() * len(batch), torch.tensor(float(len(batch)), device=loss.device)])
        return loss

    def transfer_batch_to_device(self, batch: Tensor, device: Any, dataloader_idx: int) -> Tensor:
        """Row numbers are where they belong already."""
        return batch

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine."""
        optimizer = torch.optim.AdamW(
            self.parameters(), self.plan.learning_rate, weight_decay=self.plan.weight_decay, fused=True
        )
        total = self.plan.max_epochs * math.ceil(len(self._trained) / self.plan.batch_size)
        rise = max(1, round(WARM_UP * total))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Bring the matrix to the device of this process, where there are several."""
        if self.trainer.world_size > 1:
            self._data.to(str(self.device))
            self._masker.to(str(self.device))
            self._held_out = self._held_out.to(self.device)

    def on_train_start(self) -> None:
        """Open the progress bar."""
        self._bar = iter(track(range(self.current_epoch, self.plan.max_epochs), "genes", unit="epoch"))

    def on_train_epoch_start(self) -> None:
        """Start the epoch's masks, dropout and mean."""
        next(self._bar)
        epoch = [self.current_epoch, self.global_rank]
        self._generator = torch_generator(np.random.default_rng([self._mask_seed, *epoch]), self._data.device)
        torch.manual_seed(child_seeds(np.random.default_rng([self._dropout_seed, *epoch]), 1)[0])
        self._sum = torch.zeros(2, device=self._data.device)

    def on_train_epoch_end(self) -> None:
        """Score the held-out rows, keep the best weights, stop when they get no better."""
        loss, n = self.trainer.strategy.reduce(self._sum, reduce_op="sum").tolist()
        scores = {"epoch": len(self.history) + 1, "train_loss": loss / n}
        if not math.isfinite(loss):
            msg = (
                f"The loss is not finite in epoch {scores['epoch']}. Lower `learning_rate` (now "
                f"{self.plan.learning_rate:g}), or use `precision='float32'`."
            )
            raise FloatingPointError(msg)
        if len(self._held_out):
            scores["validation_loss"] = self._validate()
            if self.correction is None:  # else the best prediction is that before the section is forgotten
                self._remember(scores["validation_loss"])
        self.history.append(scores)

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
        self.trainer.should_stop = self.plan.patience is not None and self._since >= self.plan.patience

    def on_train_end(self) -> None:
        """Go back to the best weights."""
        next(self._bar, None)
        if self._best_weights is not None:
            self.network.load_state_dict(self._best_weights)

    @cached_property
    def _fingerprint(self) -> str:
        counts, digest = self._data.counts, hashlib.blake2b(digest_size=16)
        for values in (counts.indptr, counts.indices, counts.data, self._data.section_number, self._data.means):
            digest.update(np.ascontiguousarray(values))
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a training to be continued."""
        network = sum(p.numel() for p in self.parameters())
        dropout = [module.p for module in self.network.modules() if hasattr(module, "p")]
        own = {"parameters": network, "dropout": dropout, "masking": self._masker.identity, "counts": self._fingerprint}
        return asdict(self.plan) | own

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the best weights so far."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["best"] = [self._best, self._best_weights, self._since]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the best weights so far."""
        super().on_load_checkpoint(checkpoint)
        self._best, self._best_weights, self._since = checkpoint["best"]


def train(
    network: GeneNetwork,
    masker: Masker,
    rows: Rows,
    plan: Training,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    **machines: Any,
) -> list[dict[str, float]]:
    """Train the network in place and return the losses of every epoch.

    Parameters
    ----------
    network, masker, rows, plan
        As for :class:`MaskedTraining`.
    checkpoint, machines
        As for :func:`histoweave.models._lightning.fit`.

    Raises
    ------
    ValueError
        The checkpoint is of another training.
    FloatingPointError
        The loss is not finite.
    """
    module = MaskedTraining(network, masker, rows, plan)
    with torch_seed(plan.seed):
        fit(
            module,
            device=rows.device,
            precision=plan.precision,
            max_epochs=plan.max_epochs,
            checkpoint=checkpoint,
            enable_progress_bar=False,
            reload_dataloaders_every_n_epochs=1,
            **machines,
        )
    network.eval()
    return module.history
