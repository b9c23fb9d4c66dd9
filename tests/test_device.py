from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from histoweave._device import resolve_device, resolve_precision
from histoweave._settings import settings


@pytest.fixture
def hardware(monkeypatch):
    """Pretend to a machine: number of CUDA GPUs, their compute capability, an Apple GPU, units of the CPU."""

    def pretend(*, gpus=0, capability=8, mps=False, units=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=capability))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(units, True))
        monkeypatch.setattr(torch.version, "hip", None)

    return pretend


@pytest.mark.parametrize(
    ("machine", "expected"),
    [({}, "cpu"), ({"gpus": 1}, "cuda"), ({"mps": True}, "mps"), ({"gpus": 2, "mps": True}, "cuda")],
)
def test_auto_takes_a_gpu_when_there_is_one(hardware, machine, expected):
    hardware(**machine)
    assert resolve_device() == expected


def test_auto_follows_the_settings(hardware, monkeypatch):
    hardware(gpus=2)
    monkeypatch.setattr(settings, "device", "cuda:1")
    monkeypatch.setattr(settings, "precision", "float32")
    assert resolve_device() == "cuda:1"
    assert resolve_precision() == "float32"
    assert resolve_device("cpu") == "cpu"
    assert resolve_precision("bfloat16") == "bfloat16"


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("mps", 1)])
def test_a_gpu_that_is_not_there_is_an_error_not_a_fallback(hardware, device, gpus):
    hardware(gpus=gpus)
    with pytest.raises(RuntimeError, match=f"device='{device}'.*'cpu'"):
        resolve_device(device)


def test_the_error_says_why_there_is_no_gpu(hardware, monkeypatch):
    hardware(gpus=2)
    with pytest.raises(RuntimeError, match="has 2 GPUs"):
        resolve_device("cuda:2")
    hardware(gpus=0)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    with pytest.raises(RuntimeError, match="no driver"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="without GPU support"):
        resolve_device("cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:first", "", "CPU", "cpu:x", None, 0])
def test_unknown_device_names_are_refused(device):
    with pytest.raises(ValueError, match="`device` must be"):
        resolve_device(device)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"units": ["avx2"]}, "float32"),
        ({"units": ["avx512_f", "avx512_bf16"]}, "bfloat16"),
        ({"units": ["amx_bf16"]}, "bfloat16"),
        ({"gpus": 1, "capability": 7, "units": ["amx_bf16"]}, "float32"),
        ({"gpus": 1, "capability": 9}, "bfloat16"),
        ({"mps": True, "units": ["amx_bf16"]}, "float32"),
    ],
)
def test_precision_follows_the_units_of_the_device_in_use(hardware, machine, expected):
    hardware(**machine)
    assert resolve_precision() == expected
    assert resolve_precision("float32") == "float32"


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`precision` must be one of"):
        resolve_precision("float16")


def test_chosen_device_and_precision_run_on_this_machine():
    device = resolve_device()
    dtype = getattr(torch, resolve_precision(device=device))
    with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32):
        product = torch.ones(4, 4, device=device) @ torch.ones(4, 4, device=device)
    assert product.float().eq(4).all()
