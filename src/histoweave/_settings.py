"""What a user sets once for a session: data folder, device, precision, progress."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def _default_data_dir() -> Path:
    if "HISTOWEAVE_DATA_DIR" in os.environ:
        return Path(os.environ["HISTOWEAVE_DATA_DIR"])
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "histoweave"


@dataclass
class Settings:
    """Session-wide settings; change them by assignment, e.g. ``hw.settings.progress = False``.

    Parameters
    ----------
    data_dir
        Where public data sets are cached. Environment variable ``HISTOWEAVE_DATA_DIR``.
    offline
        Never download; a data set that is not in ``data_dir`` raises. Environment variable
        ``HISTOWEAVE_OFFLINE=1``.
    device
        ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` (bfloat16 autocast where the processor has units for it), ``"float32"``, ``"bfloat16"``.
    progress
        Show progress bars.
    embedding_dir
        Folder in which to keep what networks find in crops, so that the same network does not look at the same crops
        twice; ``None`` to keep nothing. It may be deleted at any time.
    """

    data_dir: Path = field(default_factory=_default_data_dir)
    offline: bool = field(default_factory=lambda: os.environ.get("HISTOWEAVE_OFFLINE", "") not in ("", "0"))
    device: str = "auto"
    precision: str = "auto"
    progress: bool = True
    embedding_dir: str | os.PathLike[str] | None = None


settings = Settings()


def track(items: Iterable[T], description: str, *, total: int | None = None, unit: str = "it") -> Iterable[T]:
    """Iterate with a progress bar, unless ``settings.progress`` is off."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=description, total=total, unit=unit, disable=not settings.progress, leave=False)
