"""Pretrained networks by their timm name, and the forward pass that turns crops into features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from histoweave._validate import listing
from histoweave.models.image_encoder._convolution import speed_up
from histoweave.models.image_encoder._module import NETWORKS, ScaleToken
from histoweave.models.image_encoder._published import PUBLISHED, pool_tokens, published

FROM_HUB = "published"  # `weights` of timm's cache or the hub

#: Where a scale token goes, by the name of the layer before it, and the axis of its channels: in ResNets behind the
#: normalisation, which would take an offset away again.
FIRST_LAYERS = {"bn1": 1, "1": 1, "stem": 1, "norm_pre": -1}


class Backbone(nn.Module):
    """A timm network without its head, with the normalisation and input size it was trained with.

    Parameters
    ----------
    name
        A timm name (``"resnet18"``), a network for tissue of `_published` by its name there or on the hub (``"uni"``,
        ``"hf-hub:MahmoodLab/UNI"``), any other hub name, or one of our own, which have no published weights:
        ``"resnet18-small"``, ``"resnet34-small"`` and ``"resnet50-small"`` with a first layer for small pictures,
        ``"resnet10-narrow"`` for CPUs, and ``"tiny"``.
    pretrained
        Load the published weights, from timm's cache or the hub.
    """

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.network = _create(name, pretrained)
        speed_up(self.network)
        config = self.network.pretrained_cfg
        known = published(name)
        self.with_patches = known is not None and known.with_patches
        width = getattr(self.network, "head_hidden_size", None) or self.network.num_features
        self.dim = width * (1 + self.with_patches)
        self.size = config["input_size"][-1] if config.get("fixed_input_size") else None
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Turn crops ``(n, height, width, 3)`` uint8 into features ``(n, d)``."""
        return self.encode(crops.permute(0, 3, 1, 2).float() / 255)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Turn pictures ``(n, 3, height, width)`` in 0..1 into features ``(n, d)``."""
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        x = ((x - self.mean) / self.sd).contiguous(memory_format=torch.channels_last)
        features = self.network(x)
        if features.ndim == 2:
            return features
        return pool_tokens(features, self.network.num_prefix_tokens, with_patches=self.with_patches)

    def extra_repr(self) -> str:
        """Tell what the layers do not, for people and for the digest that a kept embedding goes by."""
        return f"size={self.size}, with_patches={self.with_patches}"

    def add_scale_token(self, n_scales: int) -> None:
        """Let the network know the scale of its pictures, after its first layer; see `set_scale`."""
        names = [name for name, _ in self.network.named_children()]
        layer = next((name for name in FIRST_LAYERS if name in names), None)
        if layer is None:
            kind = type(self.network).__name__
            msg = f"`scale_token=True` knows no first layer of {kind}: use a ResNet, a ConvNeXt or a ViT."
            raise ValueError(msg)
        shapes: list[torch.Size] = []
        hook = getattr(self.network, layer).register_forward_hook(lambda *seen: shapes.append(seen[-1].shape))
        training = self.training
        with torch.inference_mode():
            self.eval().encode(torch.zeros(1, 3, 64, 64))
        hook.remove()
        self.train(training)
        token = ScaleToken(n_scales, shapes[0][FIRST_LAYERS[layer]], FIRST_LAYERS[layer])
        setattr(self.network, layer, nn.Sequential(getattr(self.network, layer), token))


def load_backbone(name: str, weights: str | os.PathLike[str] | None) -> Backbone:
    """Return a pretrained backbone: published weights (or ``None``), or those of a local safetensors file.

    Raises
    ------
    ValueError
        timm does not know the name, or the weights are another architecture's.
    RuntimeError
        The published weights cannot be reached.
    """
    if weights in (None, FROM_HUB):
        return Backbone(name, pretrained=True)
    backbone = Backbone(name, pretrained=False)
    path = Path(weights)
    if not path.is_file():
        msg = f"`weights={str(path)!r}` is not a file. Give a safetensors file of {name!r} weights."
        raise FileNotFoundError(msg)
    try:
        state = load_file(path)
    except SafetensorError as error:
        msg = (
            f"`weights={str(path)!r}` is not a safetensors file ({error}). Convert it with "
            "`safetensors.torch.save_file(state_dict, path)`; pickled weights are never loaded."
        )
        raise ValueError(msg) from error
    own = backbone.network.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(("fc.", "head.", "classifier."))}
    wrong = [k for k in own if k not in state or state[k].shape != own[k].shape] + [k for k in state if k not in own]
    if wrong:
        msg = f"`weights={str(path)!r}` does not fit {name!r}: {len(wrong)} tensors differ ({listing(wrong, 3)})."
        raise ValueError(msg)
    backbone.network.load_state_dict(state)
    return backbone


def _create(name: str, pretrained: bool) -> Any:
    import timm

    if name in NETWORKS:
        if pretrained:
            msg = f"`backbone={name!r}` has no published weights: train it, e.g. `method='simclr'`, or pass `weights=`."
            raise ValueError(msg)
        return NETWORKS[name]()
    known = published(name)
    if known is None and ":" not in name and not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:8]
        msg = (
            f"`backbone={name!r}` is not a timm model. Similar names: {listing(close)}; ours: {listing(NETWORKS)}; for "
            f"tissue: {listing(PUBLISHED)}; all others: `timm.list_models()`."
        )
        raise ValueError(msg)
    try:
        if known is not None:
            return known.create(pretrained=pretrained)
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            msg = (
                f"What layers {name!r} has is told by the hub alone, which cannot be reached ({type(error).__name__}: "
                f"{error}). Load it once where there is a network; from then on it is in the hub's cache."
            )
            raise ConnectionError(msg) from error
        msg = (
            f"The weights of {name!r} cannot be loaded ({type(error).__name__}: {error}). Of a gated model, accept the "
            "terms on the hub and run `hf auth login`. With no network, download them elsewhere and pass "
            "`weights='file.safetensors'`."
        )
        raise RuntimeError(msg) from error
