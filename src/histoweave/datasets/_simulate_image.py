"""Paint an H&E-like image from a region map, in optical density, stain by stain."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields

import numpy as np
from scipy.special import ndtri

from histoweave.datasets._simulate_layout import Layout

# Absorption in red, green, blue, unit length: haematoxylin from Ruifrok & Johnston 2001, eosin from
# Macenko et al. 2009, whose vector gives the salmon pink of most slides (Ruifrok's gives magenta).
HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.216, 0.801, 0.558)
BACKGROUND = 0.035  # optical density of the empty slide
TILE_UM = 570.0  # period of the background; no multiple of the spots' pitch, so that no two share it
BAND_PX = 512


@dataclass(frozen=True)
class Texture:
    """What a tissue class looks like.

    Attributes
    ----------
    density
        Nuclei per square millimetre.
    radius
        Radius of a nucleus in um (of the circle of the same area).
    elongation
        Long over short axis of a nucleus.
    clumping
        Contrast of the nuclear density over about 50 um; 0 is even.
    fibre
        Thickness of the eosinophilic fibres in um.
    anisotropy
        Their length over their thickness.
    contrast
        Their contrast, relative to ``eosin``.
    eosin
        Mean eosin density.
    gaps
        Share of the area that is empty (fat, lumina, retraction).
    """

    density: float
    radius: float
    elongation: float
    clumping: float
    fibre: float
    anisotropy: float
    contrast: float
    eosin: float
    gaps: float


TEXTURES: dict[str, Texture] = {
    "stroma": Texture(1300, 2.5, 2.6, 0.4, 3.0, 7.0, 0.35, 0.55, 0.03),
    "tumour": Texture(4200, 4.0, 1.3, 0.4, 4.0, 1.5, 0.20, 0.45, 0.02),
    "lymphoid": Texture(6200, 2.9, 1.1, 0.3, 3.0, 1.0, 0.20, 0.28, 0.01),
    "loose": Texture(700, 2.6, 1.8, 0.5, 5.0, 2.0, 0.35, 0.32, 0.40),
    "muscle": Texture(900, 2.4, 3.0, 0.2, 6.0, 9.0, 0.30, 0.80, 0.03),
    "neuropil": Texture(1700, 3.6, 1.1, 0.2, 2.0, 1.0, 0.20, 0.40, 0.00),
    "gland": Texture(3000, 3.3, 1.5, 1.2, 4.0, 2.0, 0.25, 0.50, 0.15),
    "necrosis": Texture(500, 2.0, 1.2, 0.8, 8.0, 1.5, 0.40, 0.70, 0.08),
}


def region_textures(image_regions: np.ndarray, image_signal: float) -> list[Texture]:
    """Texture of each region: its class's own at signal 1, the mean of the classes in use at 0."""
    table = np.array([astuple(t) for t in TEXTURES.values()])
    mean = table[np.unique(image_regions)].mean(axis=0)
    return [Texture(*(mean + image_signal * (table[k] - mean))) for k in image_regions]


def draw_stains(rng: np.random.Generator, stain_shift: float) -> np.ndarray:
    """Draw the stain vectors of a section, ``(2, 3)``; ``stain_shift`` varies direction and strength."""
    vectors = np.array([HEMATOXYLIN, EOSIN]) * np.exp(stain_shift * rng.normal(0, 0.15, size=(2, 3)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * np.exp(stain_shift * rng.normal(0, 0.2, size=(2, 1)))


def paint(rng: np.random.Generator, layout: Layout, textures: list[Texture], stains: np.ndarray) -> np.ndarray:
    """Return the image ``(height, width, 3)`` uint8, made in bands so that memory stays near the result's."""
    frame = layout.frame
    height, width = frame.shape
    wave = [frame.noise(rng, 120) * np.float32(12 / frame.um_per_px) for _ in range(2)]
    eosin_tiles, tissue_tiles = _tiles(rng, textures, frame.um_per_px)
    nuclei = _draw_nuclei(rng, layout, textures)
    stains = stains.astype(np.float32)
    image = np.empty((height, width, 3), dtype=np.uint8)
    columns = np.arange(width, dtype=np.float32)
    period = eosin_tiles.shape[1]
    for top in range(0, height, BAND_PX):
        band = slice(top, min(top + BAND_PX, height))
        rows = np.arange(band.start, band.stop, dtype=np.float32)[:, None]
        y, x = ((p + frame.band(w, band)).astype(int) % period for p, w in zip((rows, columns), wave, strict=True))
        index = (layout.region_band(band), y, x)
        inside = _sigmoid(frame.band(layout.depth_um, band) / 4) * tissue_tiles[index]
        blue = _stamp(nuclei, band, width, frame.um_per_px) * inside
        pink = eosin_tiles[index] * inside * (1 - 0.6 * np.minimum(blue, 1))
        grain = BACKGROUND + (0.004 + 0.016 * inside[..., None]) * rng.standard_normal(
            (*inside.shape, 3), dtype=np.float32
        )
        density = blue[..., None] * stains[0] + pink[..., None] * stains[1] + grain
        image[band] = np.rint(255 * np.exp(-np.maximum(density, 0)))
    return image


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def _tiles(rng: np.random.Generator, textures: list[Texture], um_per_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Periodic tiles ``(n_regions, period, period)`` of eosin density and of presence of tissue.

    All regions filter the same white noise: equal parameters give equal pixels, so nothing but the
    parameters can tell regions apart.
    """
    period = min(2048, max(128, round(TILE_UM / um_per_px)))
    white = [np.fft.rfft2(rng.standard_normal((period, period))) for _ in range(3)]
    angle = rng.uniform(0, math.pi)
    v, u = np.meshgrid(np.fft.fftfreq(period), np.fft.rfftfreq(period), indexing="ij")
    along, across = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)

    def field(noise: np.ndarray, length_um: float, width_um: float) -> np.ndarray:
        scale = (2 * math.pi / um_per_px) ** 2 / 2
        gain = np.exp(-scale * ((along * length_um) ** 2 + (across * width_um) ** 2))
        gain[0, 0] = 0
        values = np.fft.irfft2(noise * gain, s=(period, period))
        return (values / values.std()).astype(np.float32)

    grain = field(white[1], 1.0, 1.0)
    eosin, tissue = [], []
    for t in textures:
        fibres = field(white[0], t.fibre * t.anisotropy, t.fibre / 2)
        eosin.append(t.eosin * np.exp(t.contrast * fibres + 0.12 * grain - (t.contrast**2 + 0.12**2) / 2))
        holes = field(white[2], 9.0 * math.sqrt(t.anisotropy), 9.0)
        edge = np.quantile(holes, 1 - t.gaps)
        tissue.append(_sigmoid((edge - holes) / 0.06))
    return np.stack(eosin).astype(np.float32), np.stack(tissue).astype(np.float32)


def _draw_nuclei(rng: np.random.Generator, layout: Layout, textures: list[Texture]) -> dict[str, np.ndarray]:
    """Draw nuclei, sorted by ``y``: a jittered lattice, so that few overlap, thinned to each density."""
    value = {f.name: np.array([getattr(t, f.name) for t in textures]) for f in fields(Texture)}
    frame = layout.frame
    height, width = frame.shape
    # At the densest texture's spacing, with room for clumps, where the density goes above its mean.
    densest = 1.15 * value["density"].max()
    scale = np.array([_clump_scale(t.density / densest, t.clumping) for t in textures])
    lattice = 1000 / math.sqrt(densest) / frame.um_per_px
    y, x = (a.ravel() for a in np.mgrid[0.5 : height / lattice, 0.5 : width / lattice])
    y, x = ((a + rng.uniform(-0.38, 0.38, a.size)) * lattice for a in (y, x))
    region = layout.region_at(y, x)
    chance = scale[region] * np.exp(value["clumping"][region] * frame.at(frame.noise(rng, 30), y, x))
    keep = (rng.random(y.size) < chance) & (frame.at(layout.depth_um, y, x) > 0)
    y, x, region = y[keep], x[keep], region[keep]

    order = np.argsort(y, kind="stable")
    n = order.size
    stretch = np.sqrt(1 + (value["elongation"][region] - 1) * rng.uniform(0.5, 1.5, n))
    radius = value["radius"][region] / frame.um_per_px * np.exp(rng.normal(0, 0.13, n))
    columns = {
        "x": x,
        "y": y,
        "long": radius * stretch,
        "short": radius / stretch,
        "angle": rng.uniform(0, math.pi, n),
        "dark": rng.normal(1.15, 0.2, n).clip(0.5, 1.8),
        "wobble": rng.uniform(0, 2 * math.pi, n),
    }
    return {name: column[order].astype(np.float32) for name, column in columns.items()}


def _clump_scale(share: float, clumping: float) -> float:
    """Factor ``s`` for which ``min(1, s * exp(clumping * z))`` with normal ``z`` has mean ``share``."""
    wish = np.exp(clumping * ndtri((np.arange(200) + 0.5) / 200))
    scale = share
    for _ in range(30):
        scale *= share / np.minimum(1, scale * wish).mean()
    return scale


def _stamp(nuclei: dict[str, np.ndarray], band: slice, width: int, um_per_px: float) -> np.ndarray:
    """Haematoxylin density of a band of rows: soft ellipses with a darker rim; the darkest wins."""
    height = band.stop - band.start
    half = math.ceil(1.4 * float(nuclei["long"].max(initial=1)))
    first, last = np.searchsorted(nuclei["y"], [band.start - half, band.stop + half])
    canvas = np.zeros((height + 4 * half + 2) * (width + 4 * half + 2), dtype=np.float32)
    stride = width + 4 * half + 2
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    sharp = max(2.5, 2.5 / um_per_px)
    step = max(1, 2_000_000 // dy.size)
    for start in range(first, last, step):
        part = {k: c[start : min(start + step, last), None, None] for k, c in nuclei.items()}
        row, col = np.rint(part["y"]), np.rint(part["x"])
        y, x = dy + row - part["y"], dx + col - part["x"]
        cos, sin = np.cos(part["angle"]), np.sin(part["angle"])
        u, v = (x * cos + y * sin) / part["long"], (y * cos - x * sin) / part["short"]
        r = np.sqrt(u * u + v * v)
        chromatin = 0.85 + 0.15 * np.sin(5 * u + part["wobble"]) * np.sin(4 * v + part["wobble"])
        ink = part["dark"] * _sigmoid((1 - r) * sharp * part["short"]) * (0.75 + 0.25 * np.minimum(r, 1)) * chromatin
        at = (row + dy - band.start + 2 * half).astype(int) * stride + (col + dx + 2 * half).astype(int)
        np.maximum.at(canvas, at.ravel(), ink.ravel())
    return canvas.reshape(-1, stride)[2 * half : 2 * half + height, 2 * half : 2 * half + width]
