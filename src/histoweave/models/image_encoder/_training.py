"""Training without labels: one Lightning loop for every pretext, resumable to the bit."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping

from histoweave._random import torch_generator, torch_seed
from histoweave._settings import settings
from histoweave.loaders import Augmentation, CropEpochs, augment, sample_parameters
from histoweave.loaders._epochs import Epoch
from histoweave.models._lightning import Resumable, fit
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._pretexts import PRETEXTS

WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class Training:
    """What a training is made of; with the crops it decides the weights.

    Parameters
    ----------
    method
        Name of the pretext.
    augmentation
        How views are drawn.
    max_epochs, batch_size, learning_rate, temperature, patience, random_state
        As for :class:`histoweave.models.ImageEncoder`.
    precision
        ``"float32"`` or ``"bfloat16"``.
    """

    method: str
    augmentation: Augmentation
    max_epochs: int
    batch_size: int
    learning_rate: float
    temperature: float
    patience: int | None
    random_state: int
    precision: str


class Learner(Resumable):
    """Backbone, pretext and data of one training."""

    def __init__(self, backbone: Backbone, crops: CropEpochs, training: Training) -> None:
        super().__init__()
        self.backbone, self.crops, self.training_plan = backbone, crops, training
        self.pretext = PRETEXTS[training.method](backbone, training.temperature)
        self.views = self.pretext.augmentations(training.augmentation)
        self.steps = len(crops) * training.max_epochs
        self.history = []
        self._losses: list[torch.Tensor] = []

    def train_dataloader(self) -> Epoch:
        """Return the batches of the current epoch."""
        return self.crops.epoch(self.current_epoch)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch; what is random in it depends on the seed and the number of the step."""
        generator = torch_generator(np.random.default_rng([self.training_plan.random_state, 1, self.global_step]))
        with torch.no_grad(), torch.autocast(batch.device.type, enabled=False):
            views = [augment(batch, sample_parameters(a, len(batch), generator, batch.device)) for a in self.views]
        loss = self.pretext(self.backbone, views, generator)
        self._losses.append(loss.detach())
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: torch.Tensor, batch_idx: int) -> None:
        """Let the pretext follow the step."""
        self.pretext.after_step(self.backbone, self.global_step / self.steps)

    def on_train_epoch_end(self) -> None:
        """Write the epoch's loss down; stop where it is not a number."""
        loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        if not math.isfinite(loss):
            msg = (
                f"The loss of {self.training_plan.method!r} is not finite in epoch {self.current_epoch}. Lower "
                f"`learning_rate` (now {self.training_plan.learning_rate:g}), or use `precision='float32'`."
            )
            raise FloatingPointError(msg)
        rate = float(self.optimizers().param_groups[0]["lr"])
        self.history.append({"epoch": self.current_epoch, "loss": loss, "learning_rate": rate})

    def configure_optimizers(self) -> Any:
        """AdamW without decay of norms and biases; the rate rises linearly, then falls as a cosine."""
        weights = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.training_plan.learning_rate, fused=True)
        warm = max(1, round(WARM_UP * self.steps))

        def factor(step: int) -> float:
            done = min(1.0, (step - warm) / max(1, self.steps - warm))
            return (step + 1) / warm if step < warm else (1 + math.cos(math.pi * done)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a training to be continued."""
        layers = sum(p.numel() for p in self.parameters())
        return {**asdict(self.training_plan), "parameters": layers, "crops": self.crops.fingerprint}


def train(
    backbone: Backbone,
    crops: CropEpochs,
    training: Training,
    *,
    device: str,
    checkpoint: str | os.PathLike[str] | None = None,
) -> list[dict[str, float]]:
    """Train the backbone in place and return the history, one entry an epoch.

    Parameters
    ----------
    backbone
        The network.
    crops
        What it learns from.
    training
        How.
    device
        A device that this machine has.
    checkpoint
        File to keep the state in after every epoch, and to continue from where it exists. It is removed when the
        training is complete.

    Raises
    ------
    ValueError
        The checkpoint is of another training.
    FloatingPointError
        The loss is not finite.
    """
    callbacks = []
    if training.patience is not None:
        callbacks.append(EarlyStopping("loss", patience=training.patience, check_on_train_epoch_end=True))
    with torch_seed(training.random_state):
        learner = Learner(backbone.to(memory_format=torch.channels_last), crops, training)
        fit(
            learner,
            device=device,
            precision=training.precision,
            max_epochs=training.max_epochs,
            checkpoint=checkpoint,
            callbacks=callbacks,
            enable_progress_bar=settings.progress,
            reload_dataloaders_every_n_epochs=1,
        )
    backbone.cpu().eval()
    return learner.history
