"""Training on few labels: balanced batches, a fixed number of steps, features standardised within each section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from histoweave._random import torch_generator
from histoweave._settings import track
from histoweave.loaders import Augmentation, augment, crop_batches, sample_parameters
from histoweave.models._sections import MIN_SPOTS
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._module import set_scale

WEIGHT_DECAY = 0.01
WARM_UP = 0.1  # share of the steps over which the learning rate rises
ROUND = 20  # steps between two measurements of the sections
PER_SECTION = 64  # crops that a section's mean and spread are measured on in training
BATCH = 256  # crops at a time where nothing is learned


@dataclass(frozen=True)
class Pictures:
    """Crops of the same rows at every scale, with what is known of the rows.

    Parameters
    ----------
    crops
        One a scale, ``(n, height, width, 3)`` uint8.
    section
        Number of the section ``(n,)``.
    """

    crops: Sequence[torch.Tensor]
    section: np.ndarray

    @classmethod
    def read(cls, crops: Mapping[str, Any], rows: np.ndarray, section: np.ndarray) -> Pictures:
        """Read rows, in rising order, of crops in memory or lazy, by name; ``section`` is of all rows."""
        read = [[b for _, b in crop_batches(c, rows, description=f"read {key}")] for key, c in crops.items()]
        return cls([torch.cat(batches) for batches in read], section[rows])


@dataclass(frozen=True)
class Plan:
    """How to train, see :class:`histoweave.models.ImageClassifier`; ``batch_norm`` lets batches normalise themselves.

    Parameters
    ----------
    n_steps, batch_size, learning_rate, first_layer, label_smoothing, augmentation, random_state, precision, batch_norm
        As there.
    """

    n_steps: int
    batch_size: int
    learning_rate: float
    first_layer: float
    label_smoothing: float
    augmentation: Augmentation
    random_state: int
    precision: str
    batch_norm: bool


def train(
    backbone: Backbone, head: nn.Linear, labelled: Pictures, y: np.ndarray, reference: Pictures, plan: Plan, device: str
) -> list[dict[str, float]]:
    """Train backbone and head in place and return the history, one entry a round of steps.

    Parameters
    ----------
    backbone, head
        The network; the head takes the standardised features of all scales side by side.
    labelled, y
        What it learns from, and the class numbers ``(n,)``.
    reference
        Crops, labelled or not, that the sections' mean and spread are measured on.
    plan
        How.
    device
        A device that this machine has.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    rng = np.random.default_rng([plan.random_state, 2])
    generator = torch_generator(rng)
    kind = torch.device(device).type
    backbone.to(device, memory_format=torch.channels_last)
    head.to(device)
    optimizer = torch.optim.AdamW(_layers(backbone, head, plan))
    rates = [group["lr"] for group in optimizer.param_groups]
    n = plan.n_steps + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # it divides by the steps of the warm-up less one
        optimizer, rates, total_steps=n, pct_start=max(WARM_UP, 1.5 / n), cycle_momentum=False
    )
    history, losses = [], []
    truth = torch.from_numpy(y).long()
    for step in track(range(plan.n_steps), "train", unit="step"):
        if step % ROUND == 0:
            mean, sd = _section_statistics(backbone, reference, device)
            backbone.train(plan.batch_norm)
        rows = balanced_rows(y, plan.batch_size, rng)
        where = torch.from_numpy(labelled.section[rows]).to(device)
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=plan.precision == "bfloat16"):
            parts = [_encode(backbone, c[rows], i, plan, generator, device) for i, c in enumerate(labelled.crops)]
            features = torch.cat(parts, dim=1)
        logits = head((features.float() - mean[where]) / sd[where])
        loss = F.cross_entropy(logits, truth[rows].to(device), label_smoothing=plan.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*backbone.parameters(), *head.parameters()], 1.0)
        losses.append(loss.detach())
        if (step + 1) % ROUND == 0 or step + 1 == plan.n_steps:
            history.append(_entry(step + 1, losses, optimizer))
        optimizer.step()
        schedule.step()
    backbone.cpu().eval()
    head.cpu()
    return history


def reference_rows(section: np.ndarray, measured: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw up to `PER_SECTION` of the measured rows of every section."""
    parts = [np.flatnonzero((section == number) & measured) for number in range(section.max() + 1)]
    return np.sort(np.concatenate([rng.choice(p, min(PER_SECTION, len(p)), replace=False) for p in parts]))


def balanced_rows(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``n`` rows with replacement, as many of each class as of the others, give or take one."""
    classes = np.unique(y)
    drawn = np.resize(rng.permutation(classes), n)
    return np.array([rng.choice(np.flatnonzero(y == c)) for c in drawn])


def _layers(backbone: Backbone, head: nn.Linear, plan: Plan) -> list[dict]:
    """Return parameter groups whose rate rises geometrically from the first layer to the head."""
    weights = [*backbone.parameters(), *head.parameters()]
    depth = np.linspace(1, 0, len(weights))
    return [
        {"params": [w], "lr": plan.learning_rate * plan.first_layer**d, "weight_decay": WEIGHT_DECAY * (w.ndim > 1)}
        for w, d in zip(weights, depth, strict=True)
    ]


def _encode(
    backbone: Backbone, crops: torch.Tensor, scale: int, plan: Plan, generator: torch.Generator, device: str
) -> torch.Tensor:
    crops = crops.to(device)
    with torch.autocast(crops.device.type, enabled=False):
        views = augment(crops, sample_parameters(plan.augmentation, len(crops), generator, crops.device))
    set_scale(backbone, scale)
    return backbone.encode(views)


@torch.no_grad()
def _section_statistics(backbone: Backbone, reference: Pictures, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and spread ``(n_sections, d)`` of the features, pooled where a section has few crops."""
    backbone.eval()
    scales = []
    for scale, crops in enumerate(reference.crops):
        set_scale(backbone, scale)
        scales.append(torch.cat([backbone(part.to(device)).float() for part in crops.split(BATCH)]))
    features = torch.cat(scales, dim=1)
    means, sds = [], []
    for number in range(reference.section.max() + 1):
        own = torch.from_numpy(reference.section == number).to(device)
        block = features[own] if own.sum() >= MIN_SPOTS else features
        sd = block.std(dim=0, correction=0)
        means.append(block.mean(dim=0))
        sds.append(torch.where(sd > 1e-6, sd, 1.0))
    return torch.stack(means), torch.stack(sds)


def _entry(step: int, losses: list[torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    loss = float(torch.stack(losses).mean())
    losses.clear()
    rate = optimizer.param_groups[-1]["lr"]
    if not math.isfinite(loss):
        msg = (
            f"The loss is not finite at step {step}. Lower `learning_rate` (now {rate:g}), or use "
            "`precision='float32'`."
        )
        raise FloatingPointError(msg)
    return {"step": step, "loss": loss, "learning_rate": float(rate)}
