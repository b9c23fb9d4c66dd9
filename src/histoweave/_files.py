"""Writing without damage: to a temporary name first, then one rename."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(folder: Path) -> None:
    """Raise a clear error unless files can be created in ``folder`` (which is created when missing)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".histoweave-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        msg = f"Cannot write to the folder {str(folder)!r}: {error.strerror}. Choose a folder you may write to."
        raise PermissionError(msg) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    Works for files and for folders: the block decides which it creates.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        msg = f"{str(target)!r} exists already. Choose another path, or pass `overwrite=True`."
        raise FileExistsError(msg)
    check_writable(target.parent)
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}-{target.name}")
    try:
        yield temporary
        if temporary.is_dir() and target.exists():  # a folder cannot be renamed over a folder
            old = target.with_name(f".{uuid.uuid4().hex[:8]}-{target.name}")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            temporary.replace(target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
