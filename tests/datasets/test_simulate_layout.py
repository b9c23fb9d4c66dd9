from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from histoweave.datasets._simulate_layout import Layout, array_positions, draw_layout, smooth_noise


def make(**changes: object) -> Layout:
    arguments = {
        "n_rows": 14, "n_cols": 16, "n_regions": 4, "um_per_px": 2.5, "array_grid": "hex", "layout": "blobs",
        "tissue_fraction": 1.0, "margin_um": 100.0,
    }  # fmt: skip
    return draw_layout(np.random.default_rng(0), **arguments | changes)


def whole(layout: Layout) -> np.ndarray:
    """Region of every pixel, painted in uneven bands."""
    height = layout.frame.shape[0]
    cuts = [0, 100, 137, height]
    return np.concatenate([layout.region_band(slice(a, b)) for a, b in pairwise(cuts)])


@pytest.mark.parametrize("kind", ["blobs", "layers"])
@pytest.mark.parametrize("um_per_px", [0.9, 2.5, 8.0])
def test_pixels_and_points_agree_on_the_region(kind: str, um_per_px: float) -> None:
    layout = make(layout=kind, um_per_px=um_per_px)
    painted = whole(layout)
    assert painted.shape == layout.frame.shape
    y, x = (np.random.default_rng(1).integers(0, n, 4000) for n in painted.shape)
    assert (layout.region_at(y, x) == painted[y, x]).mean() > 0.999


@pytest.mark.parametrize("kind", ["blobs", "layers"])
def test_regions_have_about_equal_shares(kind: str) -> None:
    layout = make(layout=kind)
    region = layout.region_at(layout.xy[:, 1], layout.xy[:, 0])
    assert np.bincount(region, minlength=4).min() > 0.8 * len(region) / 4


def test_layers_are_the_bands_between_quantiles() -> None:
    """The highest field names the band: the same as counting the borders below the position across."""
    layout = make(layout="layers", n_regions=5)
    zero, across = layout.fields[0], layout.fields[1] - layout.fields[0]
    borders = -np.diff(np.array([(f - k * across).mean() for k, f in enumerate(layout.fields)]))
    position = across + borders[0]
    expected = np.digitize(position, borders)
    assert np.allclose(zero, 0)
    assert (np.argmax(layout.fields, axis=0) == expected).mean() > 0.999


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_tissue_covers_the_spots_and_ends_within_the_slide(fraction: float) -> None:
    layout = make(tissue_fraction=fraction)
    assert len(layout.xy) == round(14 * 16 * fraction)
    assert layout.frame.at(layout.depth_um, layout.xy[:, 1], layout.xy[:, 0]).min() > 30
    edge = np.concatenate([layout.depth_um[[0, -1]].ravel(), layout.depth_um[:, [0, -1]].ravel()])
    assert edge.max() < -30


@pytest.mark.parametrize("cell", [3.0, 20.0])
def test_noise_is_smooth_and_of_unit_variance(cell: float) -> None:
    field = smooth_noise(np.random.default_rng(0), (600, 500), cell)
    assert field.shape == (600, 500)
    assert field.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.diff(field, axis=0)).mean() < 1.5 / cell


def test_hex_positions() -> None:
    row, col, um = array_positions(3, 2, "hex")
    assert list(zip(row, col, strict=True)) == [(0, 0), (0, 2), (1, 1), (1, 3), (2, 0), (2, 2)]
    np.testing.assert_allclose(um[2], [50, 100 * np.sqrt(3) / 2])
