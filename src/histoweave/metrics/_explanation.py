"""Whether a map over a picture shows what decided a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from histoweave._maps import spread
from histoweave._random import SeedLike, rng
from histoweave._validate import require_choice, require_number
from histoweave.metrics._check import same_length

MODES = ("deletion", "insertion")
BLUR = 1 / 12  # standard deviation of the blurred picture as a share of its side: no nucleus is left
SSIM_SIDE = 32  # smaller maps are interpolated to so many cells: the window of the SSIM has 7


def perturbation(
    score: Callable[[np.ndarray], Any],
    images: Any,
    maps: Any,
    *,
    mode: str = "deletion",
    n_steps: int = 20,
    fill: Any = None,
    random_state: SeedLike = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Delete or insert pixels in the order of a map, and follow the score.

    Parameters
    ----------
    score
        Takes all pictures ``(n, height, width, 3)``, in the order and type of ``images``, and returns one score for
        each ``(n,)``, such as the probability of the class that its map explains.
    images
        Pictures ``(n, height, width, 3)``.
    maps
        Importance ``(n, h, w)``, of any resolution: interpolated to the pictures.
    mode
        ``"deletion"``: the most important pixels go first; a low area is good. ``"insertion"``: they come first; a
        high area is good.
    n_steps
        Steps from none to all pixels; the score is called ``n_steps + 1`` times.
    fill
        What stands where pixels are missing: a colour (3 numbers), ``"mean"``, the mean colour of each picture, or
        ``"blur"``, the blurred picture. Default: ``"mean"`` for deletion, ``"blur"`` for insertion, which would
        otherwise show edges that no picture has.
    random_state
        Seed; pixels of the same importance come in random order.

    Returns
    -------
    The curves ``(n, n_steps + 1)``, at equal steps of the share of pixels from 0 to 1, and the areas below them
    ``(n,)``. Areas depend on the score: compare them with those of another map of the same pictures.

    Raises
    ------
    ValueError
        Shapes that disagree, maps with NaN, or a score that is not one finite number a picture.

    Notes
    -----
    Petsiuk et al. (2018). RISE: randomized input sampling for explanation of black-box models. BMVC.

    Examples
    --------
    >>> import numpy as np, histoweave as hw
    >>> image = np.zeros((1, 4, 4, 3))
    >>> image[:, 0, 0] = 1
    >>> def brightness(x):
    ...     return x.mean(axis=(1, 2, 3)) * 16
    >>> curve, area = hw.metrics.perturbation(brightness, image, image[..., 0], n_steps=4, fill=(0, 0, 0))
    >>> curve.round(2).tolist(), area.tolist()
    ([[1.0, 0.0, 0.0, 0.0, 0.0]], [0.125])
    """
    require_choice(mode, MODES, argument="mode")
    require_number(n_steps, argument="n_steps", at_least=1, integer=True)
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or not images.size:
        msg = f"`images` must be pictures (n, height, width, 3), got {images.shape}."
        raise ValueError(msg)
    maps = spread(_maps(maps, "maps"), images.shape[1:3])
    same_length(images=images, maps=maps)
    canvas = _canvas(images, ("mean" if mode == "deletion" else "blur") if fill is None else fill)
    before, after = (images, canvas) if mode == "deletion" else (canvas, images)
    flat = maps.reshape(len(maps), -1)
    order = np.lexsort((rng(random_state).random(flat.shape), -flat), axis=1)
    rank = np.argsort(order, axis=1).reshape(maps.shape)[..., None]
    curves = np.empty((len(images), n_steps + 1))
    for step in range(n_steps + 1):
        values = np.asarray(score(np.where(rank < step / n_steps * flat.shape[1], after, before)), dtype=float)
        if values.shape != (len(images),) or not np.isfinite(values).all():
            msg = f"`score` must return one finite number for each of {len(images)} pictures, got {values.shape}"
            raise ValueError(msg + (", some not finite." if values.shape == (len(images),) else "."))
        curves[:, step] = values
    return curves, np.trapezoid(curves, dx=1 / n_steps, axis=1)


def map_similarity(maps: Any, others: Any) -> pd.DataFrame:
    """Compare maps with other maps of the same pictures.

    The check of Adebayo et al. (2018): maps of a trained network that resemble those of the same network with random
    weights show the picture, not what the network has learned.

    Parameters
    ----------
    maps, others
        Two sets of maps ``(n, h, w)``.

    Returns
    -------
    A DataFrame with a row for each picture: ``spearman``, the rank correlation of the cells, and ``ssim``, the
    structural similarity after each map has been scaled to 0..1. NaN where a map is constant.

    Raises
    ------
    ValueError
        Shapes that disagree, or NaN.

    Notes
    -----
    Adebayo et al. (2018). Sanity checks for saliency maps. NeurIPS.

    Examples
    --------
    >>> import numpy as np, histoweave as hw
    >>> maps = np.arange(16.0).reshape(1, 4, 4)
    >>> hw.metrics.map_similarity(maps, 10 * maps).round(3).iloc[0].tolist()
    [1.0, 1.0]
    """
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity

    maps, others = _maps(maps, "maps"), _maps(others, "others")
    if maps.shape != others.shape:
        msg = f"`maps` and `others` must have the same shape, got {maps.shape} and {others.shape}."
        raise ValueError(msg)
    found = np.full((len(maps), 2), np.nan)
    size = tuple(max(SSIM_SIDE, side) for side in maps.shape[1:])
    for i, (a, b) in enumerate(zip(maps, others, strict=True)):
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            large = spread(np.stack([(m - m.min()) / np.ptp(m) for m in (a, b)]), size)
            found[i] = spearmanr(a, b, axis=None).statistic, structural_similarity(*large, data_range=1.0)
    return pd.DataFrame(found, columns=["spearman", "ssim"])


def localisation(maps: Any, masks: Any) -> pd.DataFrame:
    """Score maps where the place of the evidence is known.

    Parameters
    ----------
    maps
        Importance ``(n, h, w)``, of any resolution: interpolated to the masks. Negative values count as 0.
    masks
        True where the evidence is, ``(n, height, width)``.

    Returns
    -------
    A DataFrame with a row for each picture: ``pointing``, 1 where the highest value lies inside the mask (a share
    where several places are highest); ``energy``, the share of the map inside the mask; ``area``, the share of the
    picture that the mask covers, which a map that knows nothing gets in both. NaN for a map without positive values.

    Raises
    ------
    ValueError
        Shapes that disagree, NaN, or an empty mask.

    Notes
    -----
    The pointing game: Zhang et al. (2018), IJCV. Its energy: Wang et al. (2020), Score-CAM.

    Examples
    --------
    >>> import numpy as np, histoweave as hw
    >>> mask = np.array([[[True, False], [False, False]]])
    >>> hw.metrics.localisation([[[3, 1], [0, 0]]], mask).iloc[0].tolist()
    [1.0, 0.75, 0.25]
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool or not masks.any(axis=(1, 2)).all():
        msg = f"`masks` must be True or False (n, height, width), each with a True; got {masks.shape} {masks.dtype}."
        raise ValueError(msg)
    maps = np.clip(spread(_maps(maps, "maps"), masks.shape[1:]), 0, None)
    same_length(maps=maps, masks=masks)
    total, highest = maps.sum(axis=(1, 2)), maps == maps.max(axis=(1, 2), keepdims=True)
    known = total > 0
    inside = (maps * masks).sum(axis=(1, 2)) / np.where(known, total, 1)
    pointing = (highest & masks).sum(axis=(1, 2)) / highest.sum(axis=(1, 2))
    columns = {"pointing": np.where(known, pointing, np.nan), "energy": np.where(known, inside, np.nan)}
    return pd.DataFrame(columns | {"area": masks.mean(axis=(1, 2))})


def _maps(values: Any, argument: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 3 or not array.size:
        msg = f"`{argument}` must be maps (n, h, w), got {array.shape}."
        raise ValueError(msg)
    bad = ~np.isfinite(array).all(axis=(1, 2))
    if bad.any():
        msg = f"`{argument}` has NaN or infinite values in {int(bad.sum())} of {len(array)} maps. Leave them out."
        raise ValueError(msg)
    return array


def _canvas(images: np.ndarray, fill: Any) -> np.ndarray:
    """Pictures without their content, of the type of ``images``."""
    if isinstance(fill, str):
        require_choice(fill, ("mean", "blur"), argument="fill")
    if isinstance(fill, str) and fill == "blur":
        from scipy.ndimage import gaussian_filter

        out = gaussian_filter(images.astype(np.float32), (0, *(BLUR * side for side in images.shape[1:3]), 0))
    elif isinstance(fill, str):
        out = np.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)
    else:
        color = np.asarray(fill, dtype=float)
        if color.shape != (3,):
            msg = f"`fill` must be 'mean', 'blur' or a colour of 3 numbers, got {fill!r}."
            raise ValueError(msg)
        out = np.broadcast_to(color, images.shape)
    return (np.round(out) if images.dtype.kind in "iu" else out).astype(images.dtype)
