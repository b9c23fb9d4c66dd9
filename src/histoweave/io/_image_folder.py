"""Labelled image tiles without expression: one row an image, labels from the sub-folders."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._image import open_image, to_rgb8
from histoweave._record import record
from histoweave._settings import track
from histoweave._validate import listing, require_number, warn
from histoweave.io._elements import sanitise

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})


def read_image_folder(
    path: str | os.PathLike[str],
    *,
    pattern: str = "**/*",
    out_px: int | None = None,
    labels_key: str | None = _keys.REGION,
    key_added: str = _keys.CROPS,
) -> AnnData:
    """Read a folder of images as one table: a row an image, its label the folder it lies in.

    Parameters
    ----------
    path
        The folder, for example with ``train/tumor/001.png``.
    pattern
        Which files below ``path`` to read, e.g. ``"train/*/*.png"``. Files that are not images by their name
        and what is hidden, or lies in a hidden folder, are passed over.
    out_px
        Bring every image to ``out_px`` x ``out_px`` pixels: the shorter side is resized to it (Lanczos), then
        the centre is cut out, so that nothing is stretched. Without it all images must have one size.
    labels_key
        Column of ``obs`` for the labels; None for none.
    key_added
        Key of ``obsm`` for the images.

    Returns
    -------
    AnnData
        ``obsm[key_added]`` ``(n_images, height, width, 3)`` uint8 (grey and RGBA images are made RGB),
        ``obs[labels_key]`` the name of the folder an image lies in (missing for images directly in ``path``),
        ``obs["path"]`` the file, ``obs["library_id"]`` the name of ``path``. Rows are named by their path
        below ``path`` and sorted by it. There are no genes.

    Raises
    ------
    FileNotFoundError
        The folder is missing or holds no image that fits ``pattern``.
    ValueError
        Images differ in size and ``out_px`` is not given, or an image is damaged (the message names the
        file).

    Examples
    --------
    >>> import histoweave as hw
    >>> tiles = hw.io.read_image_folder("tiles/", out_px=96)  # doctest: +SKIP
    """
    root = Path(path)
    if out_px is not None:
        require_number(out_px, argument="out_px", at_least=1, integer=True)
    if not root.is_dir():
        msg = f"`path={str(root)!r}` is not a folder."
        raise FileNotFoundError(msg)
    found = [p for p in root.glob(pattern) if p.suffix.lower() in SUFFIXES and not _hidden(p, root) and p.is_file()]
    below = root.glob("**/*") if "**" in pattern else ()
    if links := [p.relative_to(root).as_posix() for p in below if p.is_symlink() and p.is_dir()]:
        warn(
            f"`pattern={pattern!r}` does not enter folders that are links ({listing(links)}); one without '**' does, "
            "such as '*/*.png'."
        )
    found.sort(key=lambda p: p.relative_to(root).as_posix())
    if not found:
        msg = (
            f"No image in {str(root)!r} fits `pattern={pattern!r}` (read: {listing(sorted(SUFFIXES))}); the "
            f"folder holds {listing(sorted(p.name for p in root.iterdir()))}."
        )
        raise FileNotFoundError(msg)
    names = [p.relative_to(root).as_posix() for p in found]
    pixels = _stack(found, names, out_px)
    obs = pd.DataFrame(index=pd.Index(names))
    obs[_keys.LIBRARY] = pd.Categorical([sanitise(Path(os.path.abspath(root)).name)] * len(found))
    obs["path"] = [str(p.resolve()) for p in found]
    if labels_key is not None:
        obs[labels_key] = pd.Categorical([p.parent.name if p.parent != root else None for p in found])
    table = AnnData(obs=obs, obsm={key_added: pixels})
    record(table, key_added, "io.read_image_folder", {"path": str(root), "pattern": pattern, "out_px": out_px})
    return table


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _stack(paths: list[Path], names: list[str], out_px: int | None) -> np.ndarray:
    first = _read(paths[0], out_px)
    pixels = np.empty((len(paths), *first.shape), dtype=np.uint8)
    pixels[0] = first
    sizes = Counter({first.shape[:2]: 1})
    for row in track(range(1, len(paths)), "reading images", unit="image"):
        image = _read(paths[row], out_px)
        sizes[image.shape[:2]] += 1
        if len(sizes) == 1:
            pixels[row] = image
    if len(sizes) > 1:
        shown = ", ".join(f"{h} x {w} ({n} images)" for (h, w), n in sizes.most_common(5))
        msg = f"The images differ in size (height x width): {shown}. Pass `out_px=` to bring them to one size."
        raise ValueError(msg)
    return pixels


def _read(path: Path, out_px: int | None) -> np.ndarray:
    from PIL import Image

    image = np.asarray(to_rgb8(open_image(path)))
    if out_px is None or image.shape[:2] == (out_px, out_px):
        return image
    height, width = image.shape[:2]
    factor = out_px / min(height, width)
    size = (max(out_px, round(width * factor)), max(out_px, round(height * factor)))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    top, left = (size[1] - out_px) // 2, (size[0] - out_px) // 2
    return resized[top : top + out_px, left : left + out_px]
