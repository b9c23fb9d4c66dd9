"""Colour and texture statistics of crops in stain space: an encoder with nothing to train.

Every number is a plain description of a crop (how much haematoxylin, how coarse, how oriented, what changes from one
side to the other), so the embedding is a strong and honest floor for learned encoders.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from histoweave.loaders._augment import STAINS

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BANDS = 4  # octaves of the band-pass pyramid
_STAINS = ("haematoxylin", "eosin", "density")
_STRIPS = 5
_GRID = 16  # cells a side that strips are made of


def feature_names() -> list[str]:
    """Names of the statistics of one crop, in the order of the columns of `crop_statistics`."""
    names = [
        f"{s}_{v}" for s in _STAINS for v in ("mean", "sd", "skewness", *(f"q{int(100 * q):02d}" for q in _QUANTILES))
    ]
    names += [f"{s}_band{b}_{v}" for s in _STAINS for b in range(_BANDS) for v in ("energy", "peakedness")]
    names += [f"{s}_orientation{b}" for s in _STAINS for b in range(_BANDS - 1)]
    names += [f"{s}_{v}" for s in _STAINS for v in ("centre", "edge", "slope")]
    names += [f"{m}_strip{i}" for m in (*_STAINS, "grain") for i in range(_STRIPS)]
    names += [f"stain_correlation{b}" for b in range(_BANDS)]
    return [*names, "white", "dark"]


def arrangement() -> np.ndarray:
    """Which columns of `crop_statistics` say how tissue is arranged around the middle, and not what it is made of."""
    return np.array(["_strip" in name for name in feature_names()])


def stain_channels(crops: torch.Tensor) -> torch.Tensor:
    """Convert RGB crops ``(n, height, width, 3)`` uint8 to haematoxylin, eosin, density ``(n, 3, height, width)``.

    Optical density ``-log10((value + 1) / 256)`` unmixed with the stain vectors of Ruifrok and Johnston (2001).
    """
    density = -torch.log10((crops.permute(0, 3, 1, 2).float() + 1.0) / 256.0)
    unmix = torch.linalg.inv(STAINS).T.to(crops.device)
    stains = torch.einsum("sc,nchw->nshw", unmix, density)
    return torch.cat([stains[:, :2], density.mean(1, keepdim=True)], dim=1)


def crop_statistics(crops: torch.Tensor) -> torch.Tensor:
    """Describe RGB crops ``(n, height, width, 3)`` uint8 by ``(n, n_features)`` statistics, see `feature_names`."""
    stains = stain_channels(crops)
    pixels = stains.flatten(2)
    mean, sd = pixels.mean(2), pixels.std(2)
    skewness = ((pixels - mean[..., None]) ** 3).mean(2) / (sd**3 + 1e-6)
    quantiles = torch.quantile(pixels, torch.tensor(_QUANTILES, device=pixels.device), dim=2).permute(1, 2, 0)
    moments = torch.cat([torch.stack([mean, sd, skewness.clamp(-5, 5)], 2), quantiles], 2)

    bands = _band_pass(stains)
    energy = torch.stack([torch.stack([b.square().mean((2, 3)).add(1e-8).log(), _peakedness(b)], 2) for b in bands], 2)
    orientation = torch.stack([_orientation(b) for b in bands[:-1]], 2)
    correlation = torch.stack([_correlation(b[:, 0], b[:, 1]) for b in bands], 1)
    density = pixels[:, 2]
    extremes = torch.stack([(density < 0.06).float().mean(1), (density > 0.5).float().mean(1)], 1)
    grain = bands[0][:, :1].abs()
    parts = [moments, energy, orientation, _layout(stains), _strips(torch.cat([stains, grain], 1))]
    return torch.cat([p.flatten(1) for p in parts] + [correlation, extremes], 1)


def _band_pass(image: torch.Tensor) -> list[torch.Tensor]:
    """Split into octave bands: each level minus its own smoothed version (a Laplacian pyramid)."""
    bands = []
    for _ in range(_BANDS):
        smooth = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        bands.append(image - smooth)
        image = F.avg_pool2d(smooth, 2) if min(image.shape[2:]) >= 4 else smooth
    return bands


def _peakedness(band: torch.Tensor) -> torch.Tensor:
    """Fourth over squared second moment, on a log scale: nuclei give rare strong responses, fibres even ones."""
    return (band.pow(4).mean((2, 3)) / (band.square().mean((2, 3)).square() + 1e-10) + 1.0).log()


def _orientation(band: torch.Tensor) -> torch.Tensor:
    """Coherence of the structure tensor in 0..1: 1 for parallel fibres, 0 for isotropic texture."""
    # slopes in the middle of four pixels: slopes at a corner would change when the slide is turned
    down, right = band[:, :, 1:] - band[:, :, :-1], band[..., 1:] - band[..., :-1]
    gy, gx = down[..., 1:] + down[..., :-1], right[:, :, 1:] + right[:, :, :-1]
    xx, yy, xy = (v.mean((2, 3)) for v in (gx * gx, gy * gy, gx * gy))
    return ((xx - yy).square() + 4 * xy.square()).sqrt() / (xx + yy + 1e-8)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.flatten(1), b.flatten(1)
    return (a * b).mean(1) / (a.square().mean(1) * b.square().mean(1)).add(1e-12).sqrt()


def _layout(stains: torch.Tensor) -> torch.Tensor:
    """Mean of the centre, of the edge, and the steepness of the plane through a 4 x 4 grid of means."""
    grid = F.adaptive_avg_pool2d(stains, 4)
    centre = grid[:, :, 1:3, 1:3].mean((2, 3))
    edge = (grid.sum((2, 3)) - 4 * centre) / 12
    ramp = torch.tensor([-1.5, -0.5, 0.5, 1.5], device=stains.device)
    slope_x, slope_y = (grid * ramp).mean((2, 3)), (grid * ramp[:, None]).mean((2, 3))
    return torch.stack([centre, edge, (slope_x.square() + slope_y.square()).sqrt()], 2)


def _strips(maps: torch.Tensor) -> torch.Tensor:
    """Mean of strips across the crop, from where the first map is low to where it is high, less the crop's mean.

    Layers lie side by side. Turned so that the steepest way points in one direction, all crops on the same boundary
    look alike, and how far off the boundary the spot lies shows as a shift of the strips.
    """
    cells = F.adaptive_avg_pool2d(maps, _GRID)
    axis = (torch.arange(_GRID, device=maps.device) + 0.5) * (2 / _GRID) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    disc = (x.square() + y.square() <= 1).float()  # corners would be in the strips of some directions only
    cells = cells - (cells * disc).sum((2, 3), keepdim=True) / disc.sum()
    tilt_x, tilt_y = ((cells[:, 0] * disc * along).sum((1, 2)) for along in (x, y))
    angle = torch.atan2(tilt_y, tilt_x)[:, None, None]
    along = x * angle.cos() + y * angle.sin()
    middles = torch.linspace(-1, 1, 2 * _STRIPS + 1, device=maps.device)[1::2]
    weights = (1 - (along[..., None] - middles).abs() * (_STRIPS / 2)).clamp(min=0) * disc[..., None]
    return torch.einsum("nchw,nhws->ncs", cells, weights / weights.sum((1, 2), keepdim=True))
