from __future__ import annotations

import numpy as np
import pytest

from histoweave.datasets._simulate_image import (
    BACKGROUND,
    TEXTURES,
    _draw_nuclei,
    _stamp,
    draw_stains,
    paint,
    region_textures,
)
from histoweave.datasets._simulate_layout import Layout, draw_layout


@pytest.fixture(scope="module")
def layout() -> Layout:
    return draw_layout(
        np.random.default_rng(0), n_rows=12, n_cols=12, n_regions=3, um_per_px=2.0, array_grid="hex",
        layout="blobs", tissue_fraction=1.0, margin_um=100.0,
    )  # fmt: skip


def test_textures_go_from_the_common_mean_to_their_own() -> None:
    classes = np.array([0, 1, 4])
    none, half, full = (region_textures(classes, s) for s in (0.0, 0.5, 1.0))
    assert none[0] == none[1] == none[2]
    table = list(TEXTURES.values())
    assert full == [table[0], table[1], table[4]]
    assert half[1].density == pytest.approx((none[1].density + full[1].density) / 2)
    assert none[0].density == pytest.approx(np.mean([t.density for t in full]))


def test_nuclei_have_the_density_size_and_shape_asked_for(layout: Layout) -> None:
    textures = region_textures(np.array([0, 1, 4]), 1.0)
    nuclei = _draw_nuclei(np.random.default_rng(1), layout, textures)
    region = layout.region_at(nuclei["y"], nuclei["x"])
    rows, cols = np.mgrid[: layout.frame.shape[0], : layout.frame.shape[1]].reshape(2, -1)
    tissue = layout.frame.at(layout.depth_um, rows, cols) > 0
    area = np.bincount(layout.region_at(rows[tissue], cols[tissue])) * 4e-6  # square millimetres
    for k, texture in enumerate(textures):
        here = region == k
        assert here.sum() / area[k] == pytest.approx(texture.density, rel=0.12)
        radius = np.sqrt(nuclei["long"][here] * nuclei["short"][here]) * 2
        assert radius.mean() == pytest.approx(texture.radius, rel=0.05)
        assert (nuclei["long"] / nuclei["short"])[here].mean() == pytest.approx(texture.elongation, rel=0.05)


def test_stamped_nuclei_cover_their_ellipses_whatever_the_band() -> None:
    one = {"x": 20.3, "y": 63.8, "long": 9.0, "short": 5.0, "angle": 0.6, "dark": 1.0, "wobble": 0.0}
    nuclei = {k: np.array([v], dtype=np.float32) for k, v in one.items()}
    ink = _stamp(nuclei, slice(0, 128), 40, 0.5)
    y, x = np.mgrid[:128, :40]
    u = (x - 20.3) * np.cos(0.6) + (y - 63.8) * np.sin(0.6)
    v = (y - 63.8) * np.cos(0.6) - (x - 20.3) * np.sin(0.6)
    ellipse = (u / 9) ** 2 + (v / 5) ** 2
    assert (ink[ellipse < 0.7] > 0.5).all()
    assert (ink[ellipse > 1.5] < 0.1).all()
    halves = np.concatenate([_stamp(nuclei, slice(0, 64), 40, 0.5), _stamp(nuclei, slice(64, 128), 40, 0.5)])
    np.testing.assert_array_equal(halves, ink)


def test_colours_are_mixtures_of_the_two_stains(layout: Layout) -> None:
    """Optical density minus that of the slide lies in the plane of the stain vectors, up to noise."""
    stains = draw_stains(np.random.default_rng(2), 0.5)
    image = paint(np.random.default_rng(3), layout, region_textures(np.array([0, 1, 2]), 1.0), stains)
    density = -np.log(np.maximum(image, 1) / 255).reshape(-1, 3) - BACKGROUND
    stained = density[density.sum(axis=1) > 0.3]
    amounts, *_ = np.linalg.lstsq(stains.T, stained.T, rcond=None)
    residual = stained - (stains.T @ amounts).T
    assert np.sqrt((residual**2).mean()) < 0.03
    assert np.percentile(amounts, 1) > -0.1


def test_stains_are_the_textbook_ones_without_shift() -> None:
    first, second = (draw_stains(np.random.default_rng(s), 0.0) for s in (0, 1))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1)
    cosine = (draw_stains(np.random.default_rng(0), 1.0) * first).sum(axis=1)
    assert (cosine > 0.6).all()
