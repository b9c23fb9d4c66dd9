"""Convolutions with gradients of our own: against torch's in double precision."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import timm
import torch
from torch import nn

from histoweave.models.image_encoder import _convolution
from histoweave.models.image_encoder._convolution import Conv2d, speed_up


def processor(monkeypatch, *units: str) -> None:
    """Let this processor have these units."""
    monkeypatch.setattr(_convolution, "_units", lambda: dict.fromkeys(units, True))


@pytest.fixture(autouse=True)
def avx2(monkeypatch):
    processor(monkeypatch, "avx2")


@pytest.fixture
def avx512(monkeypatch):
    processor(monkeypatch, "avx2", "avx512_f", "avx512_bf16")


def ours(**options) -> nn.Conv2d:
    torch.manual_seed(0)
    module = nn.Conv2d(**options)
    module.__class__ = Conv2d
    return module


def gradients(module: nn.Conv2d, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    (module(x).sin()).sum().backward()
    found = [x.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    return found


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("small", [0, 1000])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [
        (3, 1, 1, 2, 2),
        (3, 1, 1, 1, 1),
        (3, 2, 1, 5, 6),
        (3, 1, 0, 7, 4),
        ((2, 5), (1, 3), (0, 2), 6, 9),
        (7, 2, 3, 16, 16),
        (1, 2, 0, 5, 5),
    ],
)
def test_results_and_gradients_are_torchs(monkeypatch, kernel, stride, padding, height, width, small, memory_format):
    monkeypatch.setattr(_convolution, "SMALL", small)
    monkeypatch.setattr(_convolution, "ROWS", 30)  # several parts, the last of them smaller
    module = ours(in_channels=6, out_channels=5, kernel_size=kernel, stride=stride, padding=padding)
    x = torch.randn(11, 6, height, width).to(memory_format=memory_format)
    exact = copy.deepcopy(module).double()
    torch.testing.assert_close(module(x).double(), exact(x.double()), rtol=1e-4, atol=1e-5)
    for found, expected in zip(gradients(module, x), gradients(exact, x.double()), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_no_more_products_than_cells_that_the_kernel_meets():
    # of the 36 places of a 3 x 3 kernel on a 2 x 2 map, 20 lie beyond it
    shape = _convolution.Shape((2, 2), (2, 2), (3, 3), (1, 1), (1, 1))
    assert len(_convolution._meetings(shape)) == 16


@pytest.mark.parametrize("n", [0, 1, 3])
def test_any_number_of_pictures(n):
    module = ours(in_channels=4, out_channels=4, kernel_size=3, padding=1)
    for side in (2, 8):
        x = torch.randn(n, 4, side, side, requires_grad=True)
        assert module(x).shape == (n, 4, side, side)
        module(x).sum().backward()
        assert x.grad.shape == x.shape
        assert torch.isfinite(module.weight.grad).all()


def test_pictures_smaller_than_the_kernel_are_torchs_error():
    with pytest.raises(RuntimeError, match="Kernel size"):
        ours(in_channels=4, out_channels=4, kernel_size=5)(torch.zeros(1, 4, 3, 3))


def test_first_layer_and_no_bias():
    module = ours(in_channels=3, out_channels=4, kernel_size=3, bias=False)
    x = torch.randn(2, 3, 8, 8)  # a picture: nobody asks for its gradient
    module(x).square().sum().backward()
    plain = nn.Conv2d(3, 4, 3, bias=False)
    plain.load_state_dict(module.state_dict())
    plain(x).square().sum().backward()
    torch.testing.assert_close(module.weight.grad, plain.weight.grad)


def called(monkeypatch) -> list[str]:
    """Name the ways of ours that are taken."""
    calls: list[str] = []

    def noted(name):
        plain = getattr(_convolution, name)
        return lambda *args: calls.append(name) or plain(*args)

    for name in ("convolve", "input_gradient", "weight_gradient", "weight_gradient_by_windows"):
        monkeypatch.setattr(_convolution, name, noted(name))
    return calls


def test_other_precisions_are_torchs(monkeypatch):
    calls = called(monkeypatch)
    module, x = ours(in_channels=4, out_channels=4, kernel_size=3), torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
        module(x).sum().backward()
    module.double()(x.double()).sum().backward()
    assert not calls


def test_nothing_is_computed_that_nobody_asked_for(monkeypatch):
    calls = called(monkeypatch)
    module, x = ours(in_channels=4, out_channels=4, kernel_size=3), torch.randn(2, 4, 5, 5)
    module(x).sum().backward()  # a picture has no gradient
    assert calls == ["convolve", "weight_gradient"]
    module.weight.requires_grad_(False)
    calls.clear()
    module(x.requires_grad_()).sum().backward()
    assert calls == ["convolve", "input_gradient"]
    calls.clear()
    with torch.inference_mode():
        module(x)
    assert calls == ["convolve"]


def test_convolutions_it_helps_are_exchanged_and_nothing_else():
    network = nn.Sequential(
        nn.Conv2d(128, 8, 3, padding=1),
        nn.Conv2d(64, 128, 3),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, groups=2),
        nn.Conv2d(128, 128, 3, dilation=2),
        nn.Conv2d(128, 128, 3, padding="same"),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"),
    )
    speed_up(network)
    assert [type(part) is Conv2d for part in network] == [True] + [False] * 6


@pytest.mark.parametrize("units", [(), ("neon",), ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")])
def test_other_processors_keep_torchs(monkeypatch, units):
    processor(monkeypatch, *units)
    network = nn.Sequential(nn.Conv2d(128, 8, 3))
    speed_up(network)
    assert type(network[0]) is nn.Conv2d


@pytest.mark.usefixtures("avx512")
def test_bfloat16_is_as_near_to_double_precision_as_torchs(monkeypatch):
    calls = called(monkeypatch)
    for stride, side in ((1, 3), (2, 8)):
        module = ours(in_channels=64, out_channels=32, kernel_size=3, stride=stride, padding=1)
        x = torch.randn(256, 64, side, side).to(memory_format=torch.channels_last)
        plain, exact = nn.Conv2d(64, 32, 3, stride, 1), copy.deepcopy(module).double()
        plain.load_state_dict(module.state_dict())
        found = []
        for one in (module, plain):
            with torch.autocast("cpu", torch.bfloat16):
                out = one(x)
                assert out.dtype == torch.bfloat16
                found.append([out, *gradients(one, x)])
        truth = [exact(x.double()), *gradients(exact, x.double())]
        for own, torchs, true in zip(*found, truth, strict=True):
            assert (own - true).norm() <= 2 * (torchs - true).norm()
    assert Counter(calls) == {
        "convolve": 2, "input_gradient": 1, "weight_gradient": 1, "weight_gradient_by_windows": 1
    }  # fmt: skip


@pytest.mark.usefixtures("avx512")
def test_windows_only_for_steps_where_the_rest_is_fast(monkeypatch):
    calls = called(monkeypatch)
    for stride in (1, 2):
        module = ours(in_channels=8, out_channels=8, kernel_size=3, stride=stride)
        module(torch.randn(2, 8, 12, 12)).sum().backward()
    assert calls == ["weight_gradient_by_windows"]


def test_a_whole_network_learns_the_same(monkeypatch):
    calls = called(monkeypatch)
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", num_classes=0)
    quick = copy.deepcopy(plain)
    speed_up(quick)
    assert list(quick.state_dict()) == list(plain.state_dict())
    x = torch.randn(8, 3, 64, 64)
    for network in (plain, quick):
        network(x).square().mean().backward()
    # 128 channels and more go into three convolutions on 8 x 8 cells, four on 4 x 4, four on 2 x 2
    assert Counter(calls) == {
        "weight_gradient_by_windows": 7, "convolve": 4, "input_gradient": 4, "weight_gradient": 4
    }  # fmt: skip
    for (name, expected), found in zip(plain.named_parameters(), quick.parameters(), strict=True):
        scale = expected.grad.abs().max().item()
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
