"""Convolutions as matrix products beside torch's, layer by layer of a ResNet-18, for the three passes of training.

    python benchmarks/speed/convolutions.py [--sizes 32 64 96] [--batch 256] [--repeats 15]

From this table the sizes are chosen at which the products take over (`MIN_CHANNELS`, `SMALL`, and which gradients of
weights): above 1 they are faster. Passes that stay torch's on this processor are 1. Both take turns, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pandas as pd
import torch
from torch import nn

from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._convolution import Conv2d, faster_in

PASSES = ("forward", "gradient of the input", "gradient of the weights")


def layers(side: int) -> list[tuple[Conv2d, tuple[int, ...]]]:
    """Return the convolutions that were exchanged, one of each kind, with the sizes of their input."""
    backbone, seen, found = Backbone("resnet18", pretrained=False).eval(), set(), []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        kind = (str(module), inputs[0].shape)
        if kind not in seen:
            seen.add(kind)
            found.append((module, tuple(inputs[0].shape[1:])))

    hooks = [m.register_forward_pre_hook(note) for m in backbone.modules() if isinstance(m, Conv2d)]
    with torch.inference_mode():
        backbone.encode(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return found


def passes(module: nn.Conv2d, x: torch.Tensor) -> list[Callable[[], object]]:
    """Return the passes of a layer, ready to run; a function of our own computes all gradients that any may want."""

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return module(x)

    found: list[Callable[[], object]] = [forward]
    for of_weight in (False, True):
        module.requires_grad_(of_weight)
        leaf = x.detach().requires_grad_(not of_weight)
        y = module(leaf)
        wanted = module.weight if of_weight else leaf
        found.append(partial(torch.autograd.grad, y, wanted, torch.randn_like(y), retain_graph=True))
    return found


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(module: Conv2d, shape: tuple[int, ...], dtype: torch.dtype, batch: int, repeats: int) -> dict[str, object]:
    own = deepcopy(module).to(dtype, memory_format=torch.channels_last)
    torchs = deepcopy(own)
    torchs.__class__ = nn.Conv2d
    x = torch.randn(batch, *shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    about = f"{module.in_channels} -> {module.out_channels}, {shape[1]} px, stride {module.stride[0]}"
    found: dict[str, object] = {"layer": about, "precision": str(dtype).removeprefix("torch.")}
    total = 0.0
    for name, *contestants in zip(PASSES, passes(torchs, x), passes(own, x), strict=True):
        for run in contestants:
            run()
        theirs, ours = zip(*([seconds(run) for run in contestants] for _ in range(repeats)), strict=True)
        ratios = sorted(a / b for a, b in zip(theirs, ours, strict=True))
        found[name] = f"{statistics.median(ratios):.2f} ({ratios[repeats // 4]:.2f}..{ratios[-1 - repeats // 4]:.2f})"
        total += statistics.median(ours)
    return found | {"ms": f"{1e3 * total:.1f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    if not faster_in():
        print("This processor convolves small maps fast: no layer is exchanged.")
        return
    for side in options.sizes:
        rows = [
            row(module, shape, dtype, options.batch, options.repeats)
            for module, shape in layers(side)
            for dtype in faster_in()
        ]
        print(f"\n{side} px: time of torch / ours (quartiles), and ms of our three passes, {options.batch} pictures\n")
        print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
