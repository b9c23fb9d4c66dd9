"""Fitting and applying a stain, pixels in, pixels out; the one place that calls squidpy's stain code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave._random import SeedLike, rng

if TYPE_CHECKING:
    import dask.array as da

METHODS = ("macenko", "reinhard", "section")
TISSUE_OD = 0.15  # mean optical density (natural logarithm) above which a pixel is tissue
MIN_PIXELS = 500
MAX_PIXELS = 200_000
MOSAIC_WIDTH = 100
CACHED = 2**14  # pixels converted at a time: larger pieces leave the processor's cache and take 20 times longer

WHITE_PERCENTILE, DARKEST_WHITE = 99.5, 200
DARKEST_TISSUE = 30  # masked-out background and pen are darker in all channels, and would pass for stain

# Reinhard et al. 2001: RGB -> LMS, and log LMS -> decorrelated l, alpha, beta
LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])


def optical_density(pixels: np.ndarray, white_point: np.ndarray) -> np.ndarray:
    """Return ``log((white + 1) / (value + 1))`` of 8-bit pixels ``(..., 3)``, by table."""
    white = np.asarray(white_point, dtype=np.float64)
    table = np.log((white[:, None] + 1) / (np.arange(256) + 1)).astype(np.float32)
    return table[np.arange(3), pixels]


def is_tissue(density: np.ndarray) -> np.ndarray:
    """Tell which pixels are stained: mean optical density ``(..., 3)`` above 0.15."""
    return density.sum(axis=-1) > 3 * TISSUE_OD


def estimate_white(pixels: np.ndarray) -> np.ndarray:
    """Return the colour of empty glass ``(3,)``: the 99.5th percentile of each channel, at least 200.

    Glass is often tinted, and a tint taken for stain bends the fitted stain vectors by tens of degrees. The
    bound keeps pale tissue from passing for glass where crops show none.
    """
    return np.maximum(np.percentile(pixels, WHITE_PERCENTILE, axis=0), DARKEST_WHITE)


def sample_pixels(
    crops: np.ndarray | da.Array, rows: np.ndarray, *, n_crops: int = 200, random_state: SeedLike = 0
) -> np.ndarray:
    """Return pixels ``(n, 3)`` of a random sample of crops, at most 200,000 of them."""
    generator = rng(random_state)
    chosen = np.sort(generator.choice(rows, min(n_crops, len(rows)), replace=False))
    pixels = np.asarray(crops[chosen]).reshape(-1, 3)
    if len(pixels) > MAX_PIXELS:
        pixels = pixels[np.sort(generator.choice(len(pixels), MAX_PIXELS, replace=False))]
    return pixels


def fit_stain(
    pixels: np.ndarray, method: str, *, name: str = "the image", white_point: np.ndarray | None = None
) -> dict[str, Any]:
    """Return what describes the stain of an image.

    Parameters
    ----------
    pixels
        Pixels ``(n, 3)``, uint8, tissue and glass.
    method
        ``"macenko"``, ``"reinhard"`` or ``"section"``.
    name
        What the pixels are of, for errors.
    white_point
        Colour of empty glass ``(3,)``; estimated from the pixels by default.

    Returns
    -------
    ``method``, ``white_point`` ``(3,)`` and, by method, ``stain_matrix`` ``(3, 3)`` with
    ``max_concentrations`` ``(2,)``, or ``mu`` and ``sigma`` ``(3,)``.
    """
    white = estimate_white(pixels) if white_point is None else np.asarray(white_point, dtype=np.float64)
    density = optical_density(pixels, white)
    tissue = is_tissue(density) & (pixels.max(axis=1) >= DARKEST_TISSUE)
    pixels, density = pixels[tissue], density[tissue].astype(np.float64)
    if len(pixels) < MIN_PIXELS:
        msg = (
            f"{name[0].upper()}{name[1:]} shows too little tissue for a stain fit: {len(pixels)} pixels "
            f"sampled, {MIN_PIXELS} needed. Sample more crops (`n_crops=`), or leave out empty sections."
        )
        raise ValueError(msg)
    if method == "section":
        fitted = {"mu": density.mean(axis=0), "sigma": np.maximum(density.std(axis=0), 1e-6)}
        return {"method": method, "white_point": white} | fitted
    try:
        found = _fit_squidpy(pixels, method, white)
    except (RuntimeError, ValueError) as error:  # squidpy's StainFittingError is a RuntimeError
        msg = (
            f"{name[0].upper()}{name[1:]}: no {method} stain could be fitted ({getattr(error, 'reason', error)}). "
            "Is it H&E, with both stains visible? `method='section'` needs no stain separation."
        )
        raise ValueError(msg) from error
    names = ("stain_matrix", "max_concentrations") if method == "macenko" else ("mu", "sigma")
    return {"method": method, "white_point": white} | {key: np.asarray(getattr(found, key)) for key in names}


def mean_reference(fitted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of several fits: every section counts the same."""
    out = {key: np.mean([fit[key] for fit in fitted], axis=0) for key in fitted[0] if key != "method"}
    if "stain_matrix" in out:
        stains = out["stain_matrix"][:, :2] / np.linalg.norm(out["stain_matrix"][:, :2], axis=0)
        third = np.cross(stains[:, 0], stains[:, 1])
        out["stain_matrix"] = np.column_stack([stains, third / np.linalg.norm(third)])
    return {"method": fitted[0]["method"]} | out


def apply_stain(pixels: np.ndarray, source: Mapping[str, Any], target: Mapping[str, Any]) -> np.ndarray:
    """Map 8-bit pixels ``(..., 3)`` from the stain ``source`` to ``target``, both of one method."""
    flat = pixels.reshape(-1, 3)
    mapped = np.empty_like(flat)
    convert = _converter(source, target)
    for start in range(0, len(flat), CACHED):
        part = slice(start, start + CACHED)
        mapped[part] = convert(flat[part])
    return mapped.reshape(pixels.shape)


def _converter(source: Mapping[str, Any], target: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The function that maps pixels ``(n, 3)``; glass goes to the target's glass."""
    white, new_white = np.asarray(source["white_point"]), np.asarray(target["white_point"])
    brightness = (new_white + 1).astype(np.float32)
    if source["method"] == "macenko":
        strength = np.append(np.divide(target["max_concentrations"], source["max_concentrations"]), 1.0)
        matrix = np.asarray(target["stain_matrix"]) @ np.diag(strength) @ np.linalg.inv(source["stain_matrix"])
        matrix = matrix.T.astype(np.float32)
        return lambda pixels: _round(brightness * np.exp(-optical_density(pixels, white) @ matrix) - 1)

    ratio = np.divide(target["sigma"], source["sigma"])
    shift = target["mu"] - ratio * source["mu"]
    scale_lab = _reinhard_map(ratio, shift)

    def convert(pixels: np.ndarray) -> np.ndarray:
        density = optical_density(pixels, white)
        if source["method"] == "section":
            mapped = brightness * np.exp(-(density * ratio.astype(np.float32) + shift.astype(np.float32))) - 1
        else:
            mapped = scale_lab(pixels)
        return _round(np.where(is_tissue(density)[:, None], mapped, brightness * np.exp(-density) - 1))

    return convert


def _reinhard_map(ratio: np.ndarray, shift: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Scale and shift in l-alpha-beta; both changes of basis folded into one affine map of log LMS."""
    back = np.linalg.inv(LAB)
    matrix = (back @ np.diag(ratio) @ LAB).T.astype(np.float32)
    offset = (back @ shift).astype(np.float32)
    to_lms, to_rgb = LMS.T.astype(np.float32), np.linalg.inv(LMS).T.astype(np.float32)
    return lambda pixels: (np.exp(np.log(pixels @ to_lms + np.float32(1)) @ matrix + offset) - 1) @ to_rgb


def _round(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def _fit_squidpy(pixels: np.ndarray, method: str, white_point: np.ndarray) -> Any:
    """Fit by squidpy's public function, which wants an image: the pixels laid out as one, all tissue."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel
    from squidpy.experimental.im import fit_stain_reference

    height = len(pixels) // MOSAIC_WIDTH
    mosaic = pixels[: height * MOSAIC_WIDTH].reshape(height, MOSAIC_WIDTH, 3)
    image = Image2DModel.parse(np.ascontiguousarray(mosaic.transpose(2, 0, 1)), dims=("c", "y", "x"))
    tissue = Labels2DModel.parse(np.ones((height, MOSAIC_WIDTH), dtype=np.int16), dims=("y", "x"))
    sdata = SpatialData(images={"mosaic": image}, labels={"mosaic_tissue": tissue})
    return fit_stain_reference(sdata, "mosaic", method=method, white_point=white_point, tissue_mask_key="mosaic_tissue")
