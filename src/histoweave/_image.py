"""Opening image files lazily and bringing any image to RGB uint8."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import dask.array as da


def open_image(path: str | os.PathLike[str]) -> np.ndarray | da.Array:
    """Open an image file as ``(height, width, channels)``; replaced by a lazy reader for TIFF."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return np.asarray(Image.open(path))


def to_rgb8(pixels: np.ndarray | da.Array) -> np.ndarray | da.Array:
    """Return ``(height, width, 3)`` uint8."""
    return pixels[..., :3]
