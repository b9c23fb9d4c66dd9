"""Training a network on crops: one Lightning loop for every pretext, resumable to the bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any
from zlib import crc32

import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from histoweave._random import torch_generator, torch_seed
from histoweave._settings import settings
from histoweave.loaders import Batch, CropEpochs, augment, sample_parameters
from histoweave.loaders._epochs import Epoch
from histoweave.models._lightning import Resumable, fit
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._module import set_scale
from histoweave.models.image_encoder._optimizer import optimizer, parameter_groups
from histoweave.models.image_encoder._options import ImageTraining
from histoweave.models.image_encoder._pretexts import PRETEXTS, Views
from histoweave.models.image_encoder._probe import Probe
from histoweave.models.image_encoder._relations import Relation


@dataclass(frozen=True)
class Plan:
    """What a training is made of; with the crops it decides the weights.

    Parameters
    ----------
    method
        Weight of the loss of each pretext.
    options
        The arguments of training.
    precision
        ``"float32"`` or ``"bfloat16"``.
    random_state
        Seed.
    relations
        What belongs together, by what pretexts need.
    probe
        What scores the network after an epoch.
    """

    method: Mapping[str, float]
    options: ImageTraining
    precision: str = "float32"
    random_state: int = 0
    relations: Mapping[str, Relation] = field(default_factory=dict)
    probe: Probe | None = None

    def identity(self) -> dict[str, Any]:
        """Return plain values that differ where trainings do."""
        own = {"method": dict(self.method), "precision": self.precision, "random_state": self.random_state}
        return own | self.options.to_dict() | {name: r.fingerprint for name, r in self.relations.items()}


class Learner(Resumable):
    """Backbone, pretexts and data of one training."""

    def __init__(self, backbone: Backbone, crops: CropEpochs, plan: Plan) -> None:
        super().__init__()
        self.backbone, self.crops, self.plan = backbone, crops, plan
        relations = plan.relations
        self.pretexts = nn.ModuleDict(
            {name: (make := PRETEXTS[name])(backbone, plan.options, relations.get(make.needs)) for name in plan.method}
        )
        self.start = reduce(lambda told, w: crc32(w.cpu().numpy().tobytes(), told), backbone.state_dict().values(), 0)
        self.steps = len(crops) * plan.options.max_epochs
        self.history = []
        self._losses: list[torch.Tensor] = []

    def train_dataloader(self) -> Epoch:
        """Return the batches of the current epoch, or this process's share of them."""
        return self.crops.epoch(self.current_epoch, self.trainer.global_rank, self.trainer.world_size)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch; what is random in it depends on the seed and the number of the step."""
        generator = torch_generator(np.random.default_rng([self.plan.random_state, 1, self.global_step]))
        set_scale(self, batch.kind)
        losses = [self._loss(pretext, batch, generator) for pretext in self.pretexts.values()]
        loss = sum(weight * one for weight, one in zip(self.plan.method.values(), losses, strict=True))
        self._losses.append(torch.stack([loss, *losses]).detach())
        self.log(
            "loss",
            loss,
            on_step=False,
            on_epoch=True,
            batch_size=len(batch.rows),
            sync_dist=self.trainer.world_size > 1,
        )
        return loss

    def _loss(self, pretext: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        n, device = len(batch.rows), batch.crops.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            pictures = []
            for aug in pretext.augmentations(self.plan.options.augmentation):
                params = sample_parameters(aug, n * world, generator, device)  # the same whatever the number of ranks
                pictures.append(augment(batch.crops, params[rank::world]))
        return pretext(self.backbone, Views(pictures, batch.rows, generator))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Let the pretexts follow the step."""
        for pretext in self.pretexts.values():
            pretext.after_step(self.backbone, self.global_step / self.steps)

    def on_train_epoch_end(self) -> None:
        """Write the epoch's losses and score down; stop where they are not numbers."""
        losses = self.trainer.strategy.reduce(torch.stack(self._losses).mean(dim=0), reduce_op="mean").tolist()
        self._losses.clear()
        if not all(map(math.isfinite, losses)):
            msg = (
                f"The loss of {' + '.join(map(repr, self.plan.method))} is not finite in epoch {self.current_epoch}. "
                f"Lower `learning_rate` (now {self.plan.options.learning_rate:g}), or use `precision='float32'`."
            )
            raise FloatingPointError(msg)
        entry = {"epoch": self.current_epoch, "loss": losses[0]}
        if len(self.pretexts) > 1:
            entry |= {f"loss_{name}": loss for name, loss in zip(self.pretexts, losses[1:], strict=True)}
        if self.plan.probe is not None:
            entry["probe"] = self.plan.probe.score(self.backbone)
            self.log("probe", entry["probe"], sync_dist=self.trainer.world_size > 1)
        self.history.append(entry | {"learning_rate": float(self.optimizers().param_groups[-1]["lr"])})

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW with its schedule."""
        own = {id(p) for p in self.backbone.parameters()}
        heads = [p for p in self.pretexts.parameters() if p.requires_grad and id(p) not in own]
        rates = self.plan.options.learning_rate, self.plan.options.layer_decay
        return optimizer(parameter_groups(self.backbone, heads, *rates), self.steps)

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a training to be continued."""
        weights = sum(p.numel() for p in self.parameters())
        return {**self.plan.identity(), "parameters": weights, "start": self.start} | {
            "batch_size": self.crops.batch_size, "crops": self.crops.fingerprint
        }  # fmt: skip

    def get_extra_state(self) -> list[dict[str, float]]:
        """Return the history, which thus comes back from processes that a strategy starts."""
        return self.history

    def set_extra_state(self, state: list[dict[str, float]]) -> None:
        """Take the history over."""
        self.history = list(state)


def train(backbone: Backbone, crops: CropEpochs, plan: Plan, *, device: str) -> list[dict[str, float]]:
    """Train the backbone in place and return the history, one entry an epoch.

    Parameters
    ----------
    backbone
        The network.
    crops
        What it learns from.
    plan
        How.
    device
        A device that this machine has.

    Raises
    ------
    ValueError
        The checkpoint is of another training.
    FloatingPointError
        The loss is not finite.
    """
    options, callbacks = plan.options, []
    if options.patience is not None:
        watched = {"monitor": "loss"} if plan.probe is None else {"monitor": "probe", "mode": "max"}
        callbacks.append(EarlyStopping(patience=options.patience, check_on_train_epoch_end=True, **watched))
    with torch_seed(plan.random_state):
        learner = Learner(backbone.to(memory_format=torch.channels_last), crops, plan)
        fit(
            learner,
            device=device,
            precision=plan.precision,
            max_epochs=options.max_epochs,
            checkpoint=options.checkpoint,
            callbacks=callbacks,
            devices=options.devices,
            strategy=options.strategy,
            num_nodes=options.num_nodes,
            sync_batchnorm=device.startswith("cuda") and not _activated_norms(backbone),
            enable_progress_bar=settings.progress,
            reload_dataloaders_every_n_epochs=1,
        )
    backbone.cpu().eval()
    return learner.history


def _activated_norms(network: nn.Module) -> bool:
    """Tell whether normalisations hold activations, which would be lost where processes share their statistics."""
    from timm.layers import BatchNormAct2d

    return any(isinstance(module, BatchNormAct2d) for module in network.modules())
