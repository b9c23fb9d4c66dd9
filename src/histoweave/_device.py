"""The device and the precision a model runs in: chosen for the hardware, or as asked, or a clear error."""

from __future__ import annotations

from histoweave._settings import settings
from histoweave._validate import require_choice

PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_device(device: str = "auto") -> str:
    """Return the torch device to run on.

    Parameters
    ----------
    device
        ``"auto"`` follows ``hw.settings.device`` and, where that is ``"auto"`` too, takes a GPU when there is
        one. Otherwise ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Returns
    -------
    A device string that torch can use on this machine; never ``"auto"``.

    Raises
    ------
    ValueError
        The name is not a device of one of these kinds.
    RuntimeError
        A GPU was asked for and this machine, or the installed build of torch, has none, or not that one.
    """
    import torch

    wanted = settings.device if device == "auto" else device
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, separator, number = str(wanted).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (separator and not (kind == "cuda" and number.isdecimal())):
        msg = f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:<number>' or 'mps', got {wanted!r}."
        raise ValueError(msg)
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise RuntimeError(_no_cuda(wanted, torch))
    if kind == "mps" and not torch.backends.mps.is_available():
        msg = "`device='mps'` was asked for, but torch finds no Apple GPU here. Use `device='auto'` or 'cpu'."
        raise RuntimeError(msg)
    return wanted


def _no_cuda(wanted: str, torch) -> str:
    count = torch.cuda.device_count()
    if count:
        found = f"this machine has {count} GPU{'s' if count > 1 else ''}, numbered from 0"
    elif torch.version.cuda or torch.version.hip:
        found = f"torch {torch.__version__} finds no GPU or no driver for it"
    else:
        found = f"torch {torch.__version__} is a build without GPU support"
    return (f"`device={wanted!r}` was asked for, but {found}. Use `device='auto'` or 'cpu', or see "
            "`histoweave doctor`.")  # fmt: skip


def resolve_precision(precision: str = "auto", device: str = "auto") -> str:
    """Return the precision a model runs in: ``"float32"`` or ``"bfloat16"`` (autocast).

    Parameters
    ----------
    precision
        ``"auto"`` follows ``hw.settings.precision`` and, where that is ``"auto"`` too, takes bfloat16 where
        the processor computes in it: AMX, AVX512-BF16 and SVE-BF16 CPUs, NVIDIA GPUs since Ampere, AMD GPUs.
        ``"float32"`` and ``"bfloat16"`` are taken as asked; without such units bfloat16 is slow, not wrong.
    device
        As for :func:`resolve_device`.

    Raises
    ------
    ValueError
        ``precision`` is none of these.
    """
    wanted = settings.precision if precision == "auto" else precision
    require_choice(wanted, PRECISIONS, argument="precision")
    if wanted != "auto":
        return wanted
    return "bfloat16" if _computes_bfloat16(resolve_device(device)) else "float32"


def _computes_bfloat16(device: str) -> bool:
    import torch

    if device == "cpu":
        units = torch.cpu.get_capabilities()
        return any(units.get(name, False) for name in ("amx_bf16", "avx512_bf16", "sve_bf16"))
    if device.startswith("cuda"):
        return bool(torch.version.hip) or torch.cuda.get_device_properties(device).major >= 8
    return False  # Apple GPUs: float32 until it has been measured there


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch failed for want of memory, on a GPU or on the CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
