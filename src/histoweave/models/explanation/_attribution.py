"""What in a picture speaks for a class: Grad-CAM and occlusion of any network with class logits."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from histoweave._random import torch_seed
from histoweave._validate import listing
from histoweave.models.image_encoder._backbone import Backbone

MIN_CELLS = 4  # the default layer has at least so many cells a side: 2 x 2 cells show no place
OCCLUSION_CELLS = 8


def grad_cam(network: nn.Module, images: torch.Tensor, target: torch.Tensor, *, layer: str) -> torch.Tensor:
    """Return the maps ``(n, h, w)`` of Grad-CAM (Selvaraju et al., 2017) at the resolution of a layer.

    Parameters
    ----------
    network
        From pictures ``(n, 3, height, width)`` to logits ``(n, k)``, in evaluation mode.
    images
        Pictures in 0..1.
    target
        Number of the class that is explained, for each picture.
    layer
        Its name in the timm network, or in ``network`` where there is none.
    """
    from captum.attr import LayerGradCam  # takes seconds to import

    core, probe = trunk(network), nn.Identity()
    shape = _input_shape(network, images.shape[-2:])

    def as_grid(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor:
        grid, restore = _grid(output, core, shape)
        return restore(probe(grid).clone())  # a copy: what follows may work in place

    handle = core.get_submodule(layer).register_forward_hook(as_grid)
    try:
        found = LayerGradCam(network, probe).attribute(images.requires_grad_(), target, relu_attributions=True)
    finally:
        handle.remove()
    return found.detach()[:, 0]


@torch.inference_mode()
def occlusion(
    network: nn.Module, images: torch.Tensor, target: torch.Tensor, *, cells: int = OCCLUSION_CELLS
) -> torch.Tensor:
    """Return by how much the logit falls when a cell is hidden, ``(n, cells, cells)`` (Zeiler and Fergus, 2014).

    Parameters
    ----------
    network, images, target
        As for :func:`grad_cam`.
    cells
        Cells a side; one is hidden at a time, in the mean colour of the picture.
    """
    rows = torch.arange(len(images), device=images.device)
    mean, whole = images.mean(dim=(2, 3), keepdim=True), network(images)[rows, target]
    out = torch.empty(len(images), cells, cells, device=images.device)
    edges = [[round(i * side / cells) for i in range(cells + 1)] for side in images.shape[-2:]]
    for i, j in np.ndindex(cells, cells):
        hidden = images.clone()
        hidden[:, :, edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]] = mean
        out[:, i, j] = whole - network(hidden)[rows, target]
    return out


@torch.inference_mode()
def probabilities(network: nn.Module, images: np.ndarray, *, batch_size: int, device: str) -> np.ndarray:
    """Return class probabilities ``(n, k)`` of pictures ``(n, height, width, 3)`` uint8."""
    parts = [network(as_pictures(images[i : i + batch_size], device)).softmax(dim=1) for i in
             range(0, len(images), batch_size)]  # fmt: skip
    return torch.cat(parts).float().cpu().numpy()


def as_pictures(crops: Any, device: str) -> torch.Tensor:
    """Return crops ``(n, height, width, 3)`` uint8 as pictures ``(n, 3, height, width)`` in 0..1."""
    return torch.as_tensor(crops).to(device).permute(0, 3, 1, 2).float() / 255


def randomised(network: nn.Module, random_state: int) -> nn.Module:
    """Return a copy of the network with new random weights in every layer."""
    out = copy.deepcopy(network)
    with torch_seed(random_state):
        for module in out.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            else:
                for weight in module.parameters(recurse=False):  # such as the positions of a transformer
                    nn.init.normal_(weight.detach(), std=max(float(weight.detach().std(correction=0)), 1e-3))
    return out


def prepared(network: nn.Module, device: str) -> nn.Module:
    """Return a copy of the network to be explained, on the device: the user's own stays as and where it is."""
    return copy.deepcopy(network).to(device).eval().requires_grad_(False)


def trunk(network: nn.Module) -> nn.Module:
    """Return the timm network inside a network, whose layers have the names that people know."""
    return next((m.network for m in network.modules() if isinstance(m, Backbone)), network)


@torch.inference_mode()
def stages(network: nn.Module, shape: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Return the layers that Grad-CAM is usually taken at, in order, and the cells ``(h, w)`` of their maps.

    Parameters
    ----------
    network
        As for :func:`grad_cam`.
    shape
        Height and width of the pictures.
    """
    core, seen = trunk(network), _input_shape(network, shape)
    modules = dict(core.named_modules())
    info = getattr(core, "feature_info", None)
    if isinstance(info, list):
        # the class token of a transformer reads the patches for the last time inside the last block
        names = [f["module"] + ".norm1" * (f["module"] + ".norm1" in modules) for f in info]
    else:
        names = [name for name, module in modules.items() if not list(module.children())]
    found: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            try:
                cells = tuple(_grid(output, core, seen)[0].shape[-2:])
            except ValueError:
                return
            if min(cells) > 1:
                found[name] = cells

        return hook

    handles = [modules[name].register_forward_hook(note(name)) for name in names if name in modules]
    place = next(network.parameters()).device
    try:
        network(torch.full((1, 3, *shape), 0.5, device=place))
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(info, list):
        found = {name: cells for cells, name in {cells: name for name, cells in found.items()}.items()}
    return found


def choose_layers(network: nn.Module, shape: tuple[int, int], layers: str | list[str] | None) -> list[str]:
    """Return the names of layers, checked: the deepest with 4 x 4 cells or more, ``"all"`` stages, or those named.

    Raises
    ------
    ValueError
        There is no such layer, or its output has no places.
    """
    found = stages(network, shape)
    if layers is None or layers == "all":
        if not found:
            msg = "The network has no layer with a map of the picture. Use `method='occlusion'`."
            raise ValueError(msg)
        fine = [name for name, cells in found.items() if min(cells) >= MIN_CELLS] or [max(found, key=found.get)]
        return list(found) if layers == "all" else fine[-1:]
    names, known = [layers] if isinstance(layers, str) else list(layers), dict(trunk(network).named_modules())
    for name in names:
        if name not in known or name == "":
            deep = [n for n in known if n and n not in found]
            msg = (
                f"`layers={name!r}` is not a layer of the network. Its stages: {listing(found)}; others: "
                f"{listing(deep, 8)}."
            )
            raise ValueError(msg)
    return names


def _input_shape(network: nn.Module, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of what the timm network sees: some resize every picture to one square."""
    size = next((m.size for m in network.modules() if isinstance(m, Backbone)), None)
    return tuple(shape) if size is None else (size, size)


def _grid(output: Any, core: nn.Module, shape: tuple[int, int]) -> tuple[torch.Tensor, Any]:
    """Return the output of a layer as ``(n, channels, h, w)``, and the way back.

    Tokens ``(n, tokens, channels)`` lose the class token and the registers, and become a grid of the picture's shape.
    """
    if isinstance(output, torch.Tensor) and output.ndim == 4:
        if getattr(core, "output_fmt", None) == "NHWC":
            return output.permute(0, 3, 1, 2), lambda grid: grid.permute(0, 2, 3, 1)
        return output, lambda grid: grid
    if isinstance(output, torch.Tensor) and output.ndim == 3:
        first = getattr(core, "num_prefix_tokens", 0)
        n_tokens = output.shape[1] - first
        height = round(math.sqrt(n_tokens * shape[0] / shape[1]))
        if height and n_tokens % height == 0:
            patches = output[:, first:].transpose(1, 2).unflatten(2, (height, n_tokens // height))
            return patches, lambda grid: torch.cat([output[:, :first], grid.flatten(2).transpose(1, 2)], dim=1)
    found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    msg = f"The layer's output ({found}) is no map of the picture. Choose another with `layers=`."
    raise ValueError(msg)
