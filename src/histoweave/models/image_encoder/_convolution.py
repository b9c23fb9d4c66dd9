"""Convolutions as matrix products, where oneDNN is slow: on processors without AMX, many channels and small maps.

Small maps are what is left of crops in the last layers, where most weights are. There, windows reach beyond the map
more often than not, so a product for each cell of the map and each place in the kernel that meets it is less work. For
larger maps oneDNN computes the gradient of the weights at half the rate of the rest: always with AVX2 alone, with
AVX512 where the kernel moves in steps. Windows laid out as rows and multiplied (Chellapilla, Puri & Simard, 2006) are
faster, a few at a time so that they stay in the cache.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

MIN_CHANNELS = 128  # with fewer, oneDNN is as fast
SMALL = 9  # cells of a map
ROWS = 2048  # windows at a time


def speed_up(network: nn.Module) -> None:
    """Exchange the convolutions of a network that are faster as matrix products on this processor.

    Weights, names and results stay as they are, save for rounding. In other precisions and on other devices the
    convolutions go on as torch's.
    """
    if not faster_in():
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and _suits(module):
            module.__class__ = Conv2d


@lru_cache(maxsize=1)
def _units() -> dict[str, Any]:
    return torch.cpu.get_capabilities()


def faster_in() -> tuple[torch.dtype, ...]:
    """Return the precisions in which this processor multiplies matrices faster than oneDNN convolves small maps."""
    if not _units().get("avx2") or _units().get("amx_bf16"):
        return ()
    return (torch.float32, torch.bfloat16) if _units().get("avx512_bf16") else (torch.float32,)


def _suits(module: nn.Conv2d) -> bool:
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    sized = module.in_channels >= MIN_CHANNELS and min(module.kernel_size) > 1
    return plain and sized and not isinstance(module.padding, str)


class Conv2d(nn.Conv2d):
    """A convolution without groups and dilation, as matrix products on the CPU."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if input.device.type != "cpu" or input.ndim != 4:
            return super()._conv_forward(input, weight, bias)
        low = torch.is_autocast_enabled("cpu") and torch.float64 not in (input.dtype, weight.dtype)
        dtype = torch.get_autocast_dtype("cpu") if low else input.dtype
        if dtype not in faster_in() or not (low or weight.dtype == dtype):
            return super()._conv_forward(input, weight, bias)
        bias = None if bias is None else bias.to(dtype)
        return _Convolution.apply(input.to(dtype), weight.to(dtype), bias, self.stride, self.padding)


class Shape(NamedTuple):
    """Sizes of a convolution, each down and across."""

    map: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @classmethod
    def of(cls, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Shape:
        """Return the sizes for an input ``(n, channels, height, width)``; the output may have no cell."""
        size, kernel = tuple(x.shape[2:]), tuple(weight.shape[2:])
        out = ((s + 2 * p - k) // d + 1 for s, k, d, p in zip(size, kernel, stride, padding, strict=True))
        return cls(size, tuple(out), kernel, tuple(stride), tuple(padding))

    @property
    def small(self) -> bool:
        """Whether cells are taken one by one."""
        return min(self.out) > 0 and self.out[0] * self.out[1] <= SMALL


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.shape = Shape.of(x, weight, stride, padding)
        return convolve(x, weight, bias, ctx.shape) if ctx.shape.small else F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor):
        (x, weight), shape, (for_x, for_weight, for_bias, *_) = ctx.saved_tensors, ctx.shape, ctx.needs_input_grad
        of_x = of_weight = None
        if for_x and shape.small:
            of_x = input_gradient(gradient, weight, shape)
        elif for_x:
            of_x = _torchs(gradient, x, weight, shape, [True, False, False])[0]
        if for_weight:
            of_weight = _weight_gradient(x, gradient, weight, shape)
        return of_x, of_weight, gradient.sum((0, 2, 3)) if for_bias else None, None, None


def _torchs(gradient, x, weight, shape: Shape, wanted: list[bool]) -> tuple[torch.Tensor, ...]:
    options = (None, shape.stride, shape.padding, [1, 1], False, [0, 0], 1, wanted)
    return torch.ops.aten.convolution_backward(gradient, x, weight, *options)


def _weight_gradient(x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return it the fastest way that this processor has."""
    if shape.small:
        return weight_gradient(x, gradient, shape)
    if _units().get("avx512_f") and max(shape.stride) == 1:
        return _torchs(gradient, x, weight, shape, [False, True, False])[1]
    return weight_gradient_by_windows(x, gradient, shape)


@lru_cache(maxsize=64)
def _meetings(shape: Shape) -> list[tuple[int, int, int, int]]:
    """List the cells of the output, with the cells of the map that the kernel meets there, and where in the kernel."""
    found = []
    for down, across, i, j in product(*map(range, (*shape.out, *shape.kernel))):
        y = down * shape.stride[0] + i - shape.padding[0]
        x = across * shape.stride[1] + j - shape.padding[1]
        if 0 <= y < shape.map[0] and 0 <= x < shape.map[1]:
            found.append((down * shape.out[1] + across, y * shape.map[1] + x, i, j))
    return found


def _cells(maps: torch.Tensor) -> torch.Tensor:
    """Return maps ``(n, channels, height, width)`` as ``(n, height * width, channels)``."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _maps(cells: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return cells.unflatten(1, size).permute(0, 3, 1, 2)


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: Shape) -> torch.Tensor:
    """Convolve small maps ``(n, channels in, height, width)`` with ``(channels out, channels in, *kernel)``."""
    cells, n_out = _cells(x), len(weight)
    out = x.new_zeros(len(x), shape.out[0] * shape.out[1], n_out)
    if bias is not None:
        out += bias
    for to, cell, i, j in _meetings(shape):
        out[:, to].addmm_(cells[:, cell], weight[:, :, i, j].T)
    return _maps(out, shape.out)


def input_gradient(gradient: torch.Tensor, weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return the gradient of the input of `convolve`, given that of its output."""
    outer = _cells(gradient)
    found = gradient.new_zeros(len(gradient), shape.map[0] * shape.map[1], weight.shape[1])
    for to, cell, i, j in _meetings(shape):
        found[:, cell].addmm_(outer[:, to], weight[:, :, i, j])
    return _maps(found, shape.map)


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return the gradient of the weights of `convolve`, given that of its output."""
    cells, outer = _cells(x), _cells(gradient)
    found = x.new_zeros(*shape.kernel, gradient.shape[1], x.shape[1])
    for to, cell, i, j in _meetings(shape):
        found[i, j].addmm_(outer[:, to].T, cells[:, cell])
    return found.permute(2, 3, 0, 1)


def weight_gradient_by_windows(x: torch.Tensor, gradient: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return the same for maps of any size."""
    (down, across), (n_in, n_out), lines = shape.out, (x.shape[1], gradient.shape[1]), x.permute(0, 2, 3, 1)
    step = max(1, ROWS // (down * across))
    rows = x.new_empty(step, down, across, *shape.kernel, n_in)
    # this way up MKL is a fifth faster; parts are added in float32, however many there are
    found = torch.zeros(shape.kernel[0] * shape.kernel[1] * n_in, n_out)
    border = (0, 0, shape.padding[1], shape.padding[1], shape.padding[0], shape.padding[0])
    for start in range(0, len(x), step):
        part = F.pad(lines[start : start + step], border).contiguous()
        picture, line, cell, _ = part.stride()
        strides = (picture, shape.stride[0] * line, shape.stride[1] * cell, line, cell, 1)
        filled = rows[: len(part)].copy_(part.as_strided((len(part), *rows.shape[1:]), strides))
        outer = gradient[start : start + step].permute(0, 2, 3, 1).reshape(-1, n_out)
        found += filled.view(len(outer), -1).T @ outer
    return found.to(x.dtype).view(*shape.kernel, n_in, n_out).permute(3, 2, 0, 1)
