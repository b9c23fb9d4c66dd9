"""From a table to a trained network: what its method needs is gathered, and a batch that is too large is halved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from histoweave._device import out_of_memory
from histoweave._random import torch_seed
from histoweave._validate import warn
from histoweave.loaders import CropEpochs
from histoweave.models._lightning import saved_identity
from histoweave.models.image_encoder._backbone import Backbone, load_backbone
from histoweave.models.image_encoder._options import ImageTraining
from histoweave.models.image_encoder._pretexts import PRETEXTS
from histoweave.models.image_encoder._probe import Probe, hold_out
from histoweave.models.image_encoder._relations import ByLabel, Relation, expression, label_codes
from histoweave.models.image_encoder._training import Plan, train

SMALLEST = 8  # a batch that is not halved any more

Crops = Mapping[str, tuple[Any, np.ndarray]]


def fit_network(
    table: AnnData,
    crops: Crops,
    rows_of: Mapping[str, np.ndarray],
    method: Mapping[str, float],
    options: ImageTraining,
    *,
    backbone: str,
    weights: str | None,
    batch_size: int,
    device: str,
    precision: str,
    random_state: int,
) -> tuple[Backbone, list[dict[str, float]]]:
    """Return the trained network and the history of its training.

    Where the memory does not suffice, the training starts again with half the batch, and says so; one that was
    interrupted after that goes on with it.

    Parameters
    ----------
    table
        Where labels and expression are.
    crops
        By key, with the rows that have any.
    rows_of
        Rows of each section.
    method
        Weight of each pretext.
    options, backbone, weights, batch_size, random_state
        As for :class:`histoweave.models.ImageEncoder`.
    device, precision
        What they are on this machine.

    Raises
    ------
    ValueError
        There are no two classes, or expression gives no pairs.
    RuntimeError
        There is not enough memory to continue what was begun with more.
    """
    relations, held, codes = _relations(table, crops, rows_of, method, options, random_state)
    needs = [PRETEXTS[name].needs for name in method]
    classes = None
    if all(needs):  # else pixels teach something about every row
        usable = np.all([relations[need].usable for need in needs], axis=0)
        crops = {key: (array, available & usable) for key, (array, available) in crops.items()}
        classes = relations["labels"].codes.numpy() if "labels" in relations else None
    batch_size = _begun_with(options.checkpoint, batch_size)
    while True:
        continued = options.checkpoint is not None and Path(options.checkpoint).exists()
        epochs = CropEpochs(crops, rows_of, batch_size=batch_size, classes=classes, random_state=random_state)
        probe = None if held is None else Probe(options.probe, epochs, codes, held, random_state)
        network = _network(backbone, weights, len(crops) if options.scale_token else 1, random_state)
        try:
            plan = Plan(method, options, precision, random_state, relations, probe)
            return network, train(network, epochs, plan, device=device)
        except RuntimeError as error:
            if not out_of_memory(error) or batch_size // 2 < SMALLEST:
                raise
            if continued:
                msg = (
                    f"Out of memory while continuing {str(options.checkpoint)!r}, which was begun with "
                    f"`batch_size={batch_size}`. Continue it where there is more, or choose another `checkpoint`."
                )
                raise RuntimeError(msg) from error
        batch_size //= 2
        del network, probe, plan, epochs
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        if options.checkpoint is not None:
            Path(options.checkpoint).unlink(missing_ok=True)
        warn(f"Out of memory with `batch_size={2 * batch_size}`: training starts again with `batch_size={batch_size}`.")


def _begun_with(checkpoint: str | os.PathLike[str] | None, batch_size: int) -> int:
    """Return the batch size to train with: what it was halved to, where an interrupted training is continued."""
    begun, halved = saved_identity(checkpoint).get("batch_size"), batch_size
    while halved // 2 >= SMALLEST:
        halved //= 2
        if begun == halved:
            warn(f"{str(checkpoint)!r} was begun with `batch_size={begun}`: training goes on with it.")
            return halved
    return batch_size


def _relations(
    table: AnnData, crops: Crops, rows_of: Mapping[str, np.ndarray], method: Mapping[str, float],
    options: ImageTraining, random_state: int,
) -> tuple[dict[str, Relation], np.ndarray | None, np.ndarray | None]:  # fmt: skip
    """Return what the pretexts need, and, for a probe, which rows are held out, and all class numbers."""
    available = np.any([rows for _, rows in crops.values()], axis=0)
    found: dict[str, Relation] = {}
    held = codes = None
    needs = {PRETEXTS[name].needs for name in method}
    if "labels" in needs or options.probe is not None:
        codes = label_codes(table, options.labels_key, available)
        seen = codes
        if options.probe is not None:
            held = hold_out(np.where(next(iter(crops.values()))[1], codes, -1), rows_of, random_state)
            seen = np.where(held, -1, codes)
            codes = np.where(next(iter(crops.values()))[1], codes, -1)
        if "labels" in needs:
            found["labels"] = ByLabel(seen)
    if "genes" in needs:
        found["genes"] = expression(
            table, available, rows_of, options.genes_key, options.across_key, options.quantiles, random_state
        )
    return found, held, codes


def _network(name: str, weights: str | None, n_scales: int, random_state: int) -> Backbone:
    if weights is None:
        with torch_seed(random_state):
            network = Backbone(name, pretrained=False)
    else:
        network = load_backbone(name, weights)
    if n_scales > 1:
        network.add_scale_token(n_scales)
    return network
