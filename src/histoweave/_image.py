"""Any image, from a file or in memory, as an array of pixels; and any such array as RGB uint8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoweave import _image_readers as _readers

if TYPE_CHECKING:
    import dask.array as da

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".svs", ".qptiff")
SLIDE_SUFFIXES = (".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif")


def open_image(path: str | os.PathLike[str]) -> np.ndarray | da.Array:
    """Open an image file as ``(height, width, channels)``, lazily where the format allows it.

    Parameters
    ----------
    path
        PNG, JPEG and other plain formats are read into memory. TIFF in all its forms (OME-TIFF, BigTIFF,
        ``.btf``, ``.svs``), Zarr arrays and OME-Zarr groups become Dask arrays at their finest level. Other
        whole-slide formats (``.ndpi``, ``.mrxs``, ``.scn``, ...) become Dask arrays through OpenSlide, the
        extra ``wsi``.

    Returns
    -------
    The stored values, channels last; see :func:`to_rgb8` for their meaning. A Dask array reads the file one
    chunk of some 512 x 512 pixels at a time (a strip where the file has no tiles), holds a path and no
    pixels, and can be used from several threads or sent to other processes.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated, no image, or stores something other than grey or RGB values.
    ImportError
        The format needs OpenSlide and the extra ``wsi`` is not installed.
    """
    path = Path(path)
    if not path.exists():
        msg = f"There is no image file {str(path)!r}. Check the path; relative paths start at {os.getcwd()!r}."
        raise FileNotFoundError(msg)
    suffix = path.suffix.lower()
    if suffix == ".zarr" or (path.is_dir() and any((path / n).exists() for n in ("zarr.json", ".zarray", ".zgroup"))):
        return _readers.open_zarr(path)
    if path.is_dir():
        msg = f"{str(path)!r} is a folder, not an image file."
        raise ValueError(msg)
    if suffix in TIFF_SUFFIXES:
        return _readers.open_tiff(path)
    if suffix in SLIDE_SUFFIXES:
        return _readers.open_slide(path)
    return _readers.open_plain(path)


def to_rgb8(pixels: np.ndarray | da.Array) -> np.ndarray | da.Array:
    """Bring an image to ``(height, width, 3)`` uint8, without guessing.

    Grey (two axes, or one channel) is repeated three times. A fourth channel is opacity: the colour is laid
    over white, as a slide lies on a lit background. 16-bit values are divided by 257, so that 65535 becomes
    255 (a 12-bit camera's values come out dark: scale them first). Floating-point values must lie in 0..1 and
    are multiplied by 255. Everything is rounded to the nearest level. RGB uint8 comes back as it is.

    Parameters
    ----------
    pixels
        ``(height, width)`` or ``(height, width, 1 | 3 | 4)``; uint8, uint16 or floating point; NumPy or Dask.

    Returns
    -------
    An array of the same kind; in a Dask array floating-point values are checked when they are computed.

    Raises
    ------
    ValueError
        Two or more than four channels, another type (boolean, wider integers), floating-point values that are
        NaN, below 0 or above 1.
    """
    if not isinstance(pixels, np.ndarray) and not hasattr(pixels, "dask"):
        pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        msg = (
            f"An image must have shape (height, width) or (height, width, 1, 3 or 4 channels), "
            f"got {pixels.shape}. Move the channels last (`np.moveaxis(image, 0, -1)`), or pick three."
        )
        raise ValueError(msg)
    native = pixels.dtype.newbyteorder("=")
    if native not in (np.uint8, np.uint16) and not np.issubdtype(pixels.dtype, np.floating):
        msg = (
            f"An image must hold uint8, uint16 or floating-point values in 0..1, got {pixels.dtype}. "
            "Convert it with a scale that you choose, e.g. `image.astype('uint8')` for values in 0..255."
        )
        raise ValueError(msg)
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return pixels
    if isinstance(pixels, np.ndarray):
        return _rgb8_block(pixels)
    pixels = pixels.rechunk({2: -1})
    return pixels.map_blocks(
        _rgb8_block, dtype=np.uint8, chunks=(*pixels.chunks[:2], (3,)), meta=np.empty((0,) * 3, "u1")
    )


def _rgb8_block(pixels: np.ndarray) -> np.ndarray:
    eight_bit = _to_8bit(pixels)
    if pixels.shape[2] == 1:
        return np.repeat(eight_bit, 3, axis=2)
    if pixels.shape[2] == 3:
        return eight_bit
    alpha = eight_bit[..., 3:].astype(np.float32) / 255
    return np.rint(eight_bit[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _to_8bit(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "u":
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN fails both comparisons
        msg = (
            f"A floating-point image must lie in 0..1, got values from {pixels.min():g} to {pixels.max():g}. "
            "Divide it by its full scale (255 or 65535), or convert it to uint8."
        )
        raise ValueError(msg)
    return np.rint(pixels * 255).astype(np.uint8)
