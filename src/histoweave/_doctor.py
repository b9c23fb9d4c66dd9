"""``histoweave doctor``: is this installation sound, and what will a model run on?"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import warnings
from importlib import metadata

from packaging.requirements import Requirement

from histoweave._files import check_writable
from histoweave._settings import settings
from histoweave._version import __version__

# distributions whose module has another name
MODULES = {"lightning": "lightning.pytorch", "pillow": "PIL", "openslide-python": "openslide",
           "scikit-image": "skimage", "scikit-learn": "sklearn"}  # fmt: skip
DEVELOPER_EXTRAS = {"bench", "dev", "docs", "test"}


def run_doctor(args: argparse.Namespace) -> int:
    """Print what is installed and what it runs on; return 1 when a required package is missing or broken."""
    required, extras = requirements()
    problems = {need.name: problem(need) for need in required}
    print(f"histoweave {__version__}\n\nRequired packages")
    for need in required:
        _row(need.name, problems[need.name] or metadata.version(need.name))
    print("\nOptional extras")
    for extra, needs in extras.items():
        missing = [need.name for need in needs if problem(need)]
        step = f'not complete ({", ".join(missing)}): pip install "histoweave[{extra}]"'
        _row(extra, step if missing else "installed")
    print("\nMachine")
    for name, value in machine(torch_works=not problems.get("torch")).items():
        _row(name, value)
    print("\nFolders")
    _row("data_dir", _data_dir())
    broken = [name for name, found in problems.items() if found]
    if not broken:
        print("\nHealthy.")
        return 0
    print(f"\nBroken: {', '.join(broken)}. Repair with: {_repair(broken)}")
    return 1


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """Return the required packages, and those of each extra for users, from the package's own metadata."""
    required: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    about = metadata.metadata("histoweave")
    names = [name for name in about.get_all("Provides-Extra") or [] if name not in DEVELOPER_EXTRAS]
    for need in map(Requirement, about.get_all("Requires-Dist") or []):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            required.append(need)
            continue
        for extra in names:
            if need.marker.evaluate({"extra": extra}):
                extras.setdefault(extra, []).append(need)
    return sorted(required, key=lambda need: need.name), extras


def problem(need: Requirement) -> str | None:
    """Return what is wrong with one required package, ``None`` when it is as it should be."""
    try:
        found = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return f"missing ({need.specifier} needed)"
    if not need.specifier.contains(found, prereleases=True):
        return f"{found} does not fit ({need.specifier} needed)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, about themselves
            importlib.import_module(MODULES.get(need.name, need.name.replace("-", "_")))
    # what a half-installed, mismatched or wrongly built package raises while it is imported
    except (AttributeError, ImportError, NameError, OSError, RuntimeError, TypeError, ValueError) as error:
        return f"{found} does not import: {type(error).__name__}: {error}"
    return None


def machine(*, torch_works: bool) -> dict[str, str]:
    """Return what models will run on: interpreter, system, processors, memory, devices, precision."""
    about = {
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "processors": str(_processors()),
        "memory": _memory(),
    }
    if not torch_works:
        return about | {"devices": "unknown: torch does not work"}
    import torch

    from histoweave._device import resolve_device, resolve_precision

    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    gpus += ["mps"] if torch.backends.mps.is_available() else []
    about["devices"] = ", ".join(["cpu", *gpus])
    try:
        device = resolve_device()
        about["chosen"] = f"{device}, {resolve_precision(device=device)}"
    except (RuntimeError, ValueError) as error:  # `hw.settings` names what is not there
        about["chosen"] = f"none: {error}"
    return about


def _processors() -> int:
    """Processors this process may use, which on a cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    if not hasattr(os, "sysconf"):  # Windows
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"


def _data_dir() -> str:
    try:
        check_writable(settings.data_dir)
    except PermissionError as error:
        return f"{settings.data_dir}, not writable: {error} (environment variable HISTOWEAVE_DATA_DIR)"
    return f"{settings.data_dir}, writable"


def _repair(broken: list[str]) -> str:
    # torchvision is built against one release of torch: they are only sound as a pair
    pair = {"torch", "torchvision"} & set(broken)
    names = sorted(set(broken) | ({"torch", "torchvision"} if pair else set()))
    return f"pip install --upgrade --force-reinstall {' '.join(names)}"


def _row(name: str, value: str) -> None:
    print(f"  {name:<18} {value}")
