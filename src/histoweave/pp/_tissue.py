"""Telling tissue from the empty slide: one rule for checks and for crops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave._resolve import SectionImage, section_image

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

THUMBNAIL_PX = 600
BLACK = 8  #: below this in every channel a pixel was masked out: no stain is as dark
FALLBACK_OD = 0.1
GAP_PX = 3.0  #: pixels of a thumbnail over which the mask of a section is smoothed
LEAST_CONTRAST = 0.03  #: between the mean optical densities of tissue and slide; less is noise


def optical_density(pixels: np.ndarray) -> np.ndarray:
    """Return the mean over the channels of ``-log10((value + 1) / 256)``; 0 where masked out in black."""
    density = _DENSITY[pixels].mean(axis=-1)
    return np.where((pixels < BLACK).all(axis=-1), 0, density).astype(np.float32)


_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)


def thumbnail(picture: SectionImage) -> np.ndarray:
    """Return a small version of an image, in memory: means of whole blocks of pixels."""
    from PIL import Image

    step = max(1, max(picture.array.shape[:2]) // THUMBNAIL_PX)
    height, width = (size // step * step for size in picture.array.shape[:2])
    if min(height, width) == 0:  # a strip narrower than a block
        return np.asarray(picture.array[::step, ::step])
    whole = picture.array[:height, :width]
    if isinstance(whole, np.ndarray):
        return np.asarray(Image.fromarray(whole).reduce(step))
    import dask.array as da

    means = da.coarsen(np.mean, whole, {0: step, 1: step})
    return np.asarray((means + 0.5).astype(np.uint8))


def tissue_threshold(small: np.ndarray) -> float | None:
    """Return the optical density that divides tissue from slide (Otsu), None without two kinds."""
    return _threshold(optical_density(small))


def tissue_mask(small: np.ndarray) -> np.ndarray | None:
    """Return where a thumbnail shows tissue, gaps within it included, None where it shows no two kinds."""
    from scipy.ndimage import gaussian_filter

    density = gaussian_filter(optical_density(small), GAP_PX)
    threshold = _threshold(density)
    return None if threshold is None else density > threshold


def _threshold(density: np.ndarray) -> float | None:
    from skimage.filters import threshold_otsu

    if density.min() == density.max():
        return None
    threshold = float(threshold_otsu(density))
    above = density > threshold
    if not above.any() or density[above].mean() - density[~above].mean() < LEAST_CONTRAST:
        return None
    return threshold


def coarse_image(data: AnnData | SpatialData, library_id: str, *, table_key: str) -> SectionImage:
    """Return the smallest image of a section that shows where tissue is."""
    for name in ("lowres", "hires"):
        try:
            picture = section_image(data, library_id, image=name, table_key=table_key)
        except KeyError:
            continue
        if max(picture.array.shape[:2]) >= THUMBNAIL_PX // 2:
            return picture
    return section_image(data, library_id, table_key=table_key)


def require_crops(crops: Any, key: str) -> None:
    """Raise unless ``crops`` is ``(n, height, width, 3)`` uint8."""
    if getattr(crops, "ndim", 0) != 4 or crops.shape[3] != 3 or crops.dtype != np.uint8:
        found = f"{getattr(crops, 'shape', type(crops).__name__)} {getattr(crops, 'dtype', '')}".strip()
        msg = f"`adata.obsm[{key!r}]` must hold crops (n_obs, height, width, 3) uint8, got {found}. Run `hw.pp.crops`."
        raise ValueError(msg)
