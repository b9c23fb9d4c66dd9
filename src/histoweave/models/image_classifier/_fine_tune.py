"""The encoder that a classifier starts from, and the training of its network on labelled rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from histoweave._device import resolve_device
from histoweave._random import torch_seed
from histoweave._resolve import section_column
from histoweave.models._sections import SectionScaler
from histoweave.models.fusion._heads import LinearHead
from histoweave.models.image_classifier._module import collapse
from histoweave.models.image_classifier._training import Pictures, Plan, reference_rows, train
from histoweave.models.image_encoder import ImageEncoder
from histoweave.models.image_encoder._backbone import Backbone


def starting_encoder(
    encoder: ImageEncoder | str | os.PathLike[str] | None,
    strategy: str,
    *,
    backbone: str,
    crops_keys: str | Sequence[str],
    device: str,
    precision: str,
    random_state: int,
) -> ImageEncoder:
    """Return an encoder of the classifier's own, one that holds random weights where none is given.

    Parameters
    ----------
    encoder, strategy, backbone, crops_keys, device, precision, random_state
        As for :class:`histoweave.models.ImageClassifier`.
    """
    if encoder is None and strategy == "fine_tune":
        msg = "`strategy='fine_tune'` needs an `encoder`; from random weights, use `strategy='scratch'`."
        raise ValueError(msg)
    if encoder is None:
        common = {"device": device, "precision": precision, "random_state": random_state}
        found = ImageEncoder("pretrained", crops_keys=crops_keys, backbone=backbone, **common)
        found.n_components = None
        with torch_seed(random_state):
            found._network = Backbone(backbone, pretrained=False)
        return found
    if strategy == "scratch":
        msg = "`strategy='scratch'` starts from random weights: leave `encoder` out, and name a `backbone`."
        raise ValueError(msg)
    found = deepcopy(encoder) if isinstance(encoder, ImageEncoder) else ImageEncoder.load(encoder)
    if strategy == "fine_tune" and not found.has_network:
        msg = f"`strategy='fine_tune'` needs an encoder with a network; `method={found.method!r}` has none."
        raise ValueError(msg)
    found.device = found.device if device == "auto" else device
    found.precision = found.precision if precision == "auto" else precision
    return found


def fit_network(
    table: AnnData, encoder: ImageEncoder, start: LinearHead | None, codes: np.ndarray, plan: Plan, library_key: str
) -> tuple[LinearHead, list[dict[str, float]]]:
    """Train the encoder's network, in place; return the head on its features, and the history.

    Parameters
    ----------
    table
        Rows with crops.
    encoder
        Fitted.
    start
        Head on its embedding to start from; ``None`` for a random one.
    codes
        Class numbers ``(n_obs,)``, -1 without label or crops.
    plan
        How to train.
    library_key
        Column of ``obs`` that names the section.
    """
    rows = np.flatnonzero(codes >= 0)
    section = pd.factorize(section_column(table, library_key))[0]
    found = encoder._crops(table)
    measured = np.all([available for _, available in found.values()], axis=0)
    reference = reference_rows(section, measured, np.random.default_rng([plan.random_state, 1]))
    crops = {key: values for key, (values, _) in found.items()}
    labelled, unlabelled = Pictures.read(crops, rows, section), Pictures.read(crops, reference, section)
    with torch_seed(plan.random_state):
        layer = nn.Linear(encoder._network.dim * len(crops), int(codes.max()) + 1)
        if start is not None:
            weight, bias = collapse(start, encoder._map, 1)
            weight = weight[:, : layer.in_features]  # statistics beside the network, if any, are not trained
            layer.weight.data, layer.bias.data = torch.tensor(weight).float(), torch.tensor(bias).float()
        device = resolve_device(encoder.device)
        history = train(encoder._network, layer, labelled, codes[rows], unlabelled, plan, device)
    encoder._map, encoder.n_components, encoder.statistics = None, None, False
    raw = encoder.features(table)
    encoder._scaler = SectionScaler().fit(raw)
    head = LinearHead()
    head.mean, head.sd = np.zeros(raw.shape[1]), np.ones(raw.shape[1])
    head.coef, head.intercept = (values.detach().double().numpy() for values in (layer.weight, layer.bias))
    return head, history
