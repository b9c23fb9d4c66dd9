"""Crop statistics against naive NumPy and scikit-image, crop by crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from skimage.color import rgb2hed

import histoweave as hw
from histoweave.models.image_encoder._statistics import arrangement, crop_statistics, feature_names, stain_channels


@pytest.fixture(scope="module")
def crops():
    adata = hw.datasets.simulate_section(n_rows=5, n_cols=5, n_genes=60, um_per_px=2.0)
    hw.pp.crops(adata, out_px=64)
    return torch.from_numpy(np.asarray(adata.obsm["crops"]))


def columns(crops: torch.Tensor) -> dict[str, np.ndarray]:
    return dict(zip(feature_names(), crop_statistics(crops).numpy().T, strict=True))


def test_every_column_has_a_name(crops):
    assert crop_statistics(crops).shape == (len(crops), len(feature_names()))
    assert len(set(feature_names())) == len(feature_names())
    assert [name.split("_strip")[1] for name in np.array(feature_names())[arrangement()]] == [*"01234"] * 4


def test_stains_are_an_unmixing_of_optical_density(crops):
    found = stain_channels(crops).numpy()
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for crop, stains in zip(crops.numpy(), found, strict=True):
        density = -np.log10((crop.astype(float) + 1) / 256)
        amounts = np.linalg.lstsq(vectors.T, density.reshape(-1, 3).T, rcond=None)[0].reshape(3, *crop.shape[:2])
        np.testing.assert_allclose(stains[:2], amounts[:2], atol=1e-4)
        np.testing.assert_allclose(stains[2], density.mean(-1), atol=1e-5)


def test_haematoxylin_follows_scikit_image(crops):
    found = stain_channels(crops)[:, 0].numpy().ravel()
    peer = np.concatenate([rgb2hed(c)[..., 0].ravel() for c in crops.numpy()])
    assert np.corrcoef(found, peer)[0, 1] > 0.99  # it clips at 0 and uses another logarithm


def test_moments_and_quantiles(crops):
    found, stains = columns(crops), stain_channels(crops).numpy().astype(float)
    for i, name in enumerate(("haematoxylin", "eosin", "density")):
        for j, crop in enumerate(stains[:, i].reshape(len(crops), -1)):
            assert found[f"{name}_mean"][j] == pytest.approx(crop.mean(), abs=1e-4)
            assert found[f"{name}_sd"][j] == pytest.approx(crop.std(ddof=1), abs=1e-4)
            skewness = ((crop - crop.mean()) ** 3).mean() / (crop.std(ddof=1) ** 3 + 1e-6)
            assert found[f"{name}_skewness"][j] == pytest.approx(np.clip(skewness, -5, 5), abs=0.01)
            for q in (5, 25, 50, 75, 95):
                assert found[f"{name}_q{q:02d}"][j] == pytest.approx(np.quantile(crop, q / 100), abs=1e-4)


def test_bands_are_a_pyramid_of_differences_from_smoothed_versions(crops):
    found = columns(crops[:4])
    for j, stains in enumerate(stain_channels(crops[:4]).numpy().astype(float)):
        for channel, name in zip(stains, ("haematoxylin", "eosin", "density"), strict=True):
            image = channel
            for b in range(4):
                smooth = uniform_filter(image, 3, mode="nearest")
                band = image - smooth
                energy = np.log((band**2).mean() + 1e-8)
                assert found[f"{name}_band{b}_energy"][j] == pytest.approx(energy, abs=0.01)
                peaked = np.log((band**4).mean() / ((band**2).mean() ** 2 + 1e-10) + 1)
                assert found[f"{name}_band{b}_peakedness"][j] == pytest.approx(peaked, abs=0.02)
                size = image.shape[0] // 2
                image = smooth.reshape(size, 2, size, 2).mean((1, 3))


def test_layout_and_extremes(crops):
    found, stains = columns(crops), stain_channels(crops).numpy()
    density = stains[:, 2]
    np.testing.assert_allclose(found["density_centre"], density[:, 16:48, 16:48].mean((1, 2)), atol=1e-5)
    inside = np.zeros((64, 64), dtype=bool)
    inside[16:48, 16:48] = True
    np.testing.assert_allclose(found["density_edge"], density[:, ~inside].mean(1), atol=1e-5)
    np.testing.assert_allclose(found["white"], (density < 0.06).mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(found["dark"], (density > 0.5).mean((1, 2)), atol=1e-5)


def boundary(degrees: float, offset: float, side: int = 64) -> np.ndarray:
    """A crop with dense nuclei beyond a straight boundary, ``offset`` of half a side from the middle."""
    y, x = np.mgrid[:side, :side] * (2 / (side - 1)) - 1
    beyond = x * np.cos(np.deg2rad(degrees)) + y * np.sin(np.deg2rad(degrees)) > offset
    return np.where(beyond[..., None], [90, 60, 140], [230, 190, 215]).astype(np.uint8)


@pytest.mark.parametrize("offset", [-0.4, 0.0, 0.4])
def test_strips_run_across_a_boundary_whatever_its_direction(offset):
    found = columns(torch.from_numpy(np.stack([boundary(d, offset) for d in (0, 25, 110, 200, 335)])))
    for name in ("haematoxylin", "density"):
        strips = np.stack([found[f"{name}_strip{i}"] for i in range(5)], axis=1)
        step = strips[0, 4] - strips[0, 0]
        np.testing.assert_allclose(strips, strips[[0]].repeat(5, axis=0), atol=0.05 * step)
        assert (np.diff(strips, axis=1) > -0.02 * step).all()
        # half the step is reached where the boundary lies; the strips' middles are 0.4 apart
        crossing = [np.interp(row[[0, 4]].mean(), row, np.linspace(-0.8, 0.8, 5)) for row in strips]
        np.testing.assert_allclose(crossing, offset, atol=0.1)


def test_strips_are_means_over_cells_weighted_by_their_distance_along_the_tilt(crops):
    found, stains = columns(crops), stain_channels(crops).numpy().astype(float)
    for j, crop in enumerate(stains):
        cells = crop.reshape(3, 16, 4, 16, 4).mean((2, 4))
        at = [(r, c, (c - 7.5) / 8, (r - 7.5) / 8) for r in range(16) for c in range(16)]
        at = [(r, c, x, y) for r, c, x, y in at if x * x + y * y <= 1]
        mean = np.mean([cells[:, r, c] for r, c, _, _ in at], axis=0)
        tilt = sum((cells[0, r, c] - mean[0]) * np.array([x, y]) for r, c, x, y in at)
        tilt = tilt / np.linalg.norm(tilt)
        for i, middle in enumerate((-0.8, -0.4, 0.0, 0.4, 0.8)):
            weights = [max(0.0, 1 - abs(np.dot(tilt, [x, y]) - middle) / 0.4) for _, _, x, y in at]
            strip = np.average([cells[:, r, c] for r, c, _, _ in at], axis=0, weights=weights) - mean
            for channel, name in enumerate(("haematoxylin", "eosin", "density")):
                assert found[f"{name}_strip{i}"][j] == pytest.approx(strip[channel], abs=1e-4)


TURNS = {
    "quarter turn": lambda c: torch.rot90(c, 1, (1, 2)),
    "half turn": lambda c: torch.rot90(c, 2, (1, 2)),
    "flip": lambda c: c.flip(2),
}


@pytest.mark.parametrize("turn", list(TURNS))
def test_turning_the_slide_changes_nothing(crops, turn):
    before, after = columns(crops), columns(TURNS[turn](crops).contiguous())
    for name in feature_names():
        np.testing.assert_allclose(after[name], before[name], atol=2e-4, rtol=1e-3, err_msg=name)


def test_stripes_are_oriented_and_noise_is_not():
    rng = np.random.default_rng(0)
    noise = rng.integers(50, 250, (64, 64, 1), dtype=np.uint8).repeat(3, axis=2)
    stripes = rng.integers(50, 250, (1, 64, 1), dtype=np.uint8).repeat(64, axis=0).repeat(3, axis=2)
    found = columns(torch.from_numpy(np.stack([noise, stripes])))
    assert found["density_orientation0"][0] < 0.2
    assert found["density_orientation0"][1] > 0.95


def test_coarse_and_fine_texture_are_told_apart():
    rng = np.random.default_rng(0)
    fine = rng.integers(50, 250, (64, 64, 1), dtype=np.uint8)
    coarse = rng.integers(50, 250, (8, 8, 1), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    found = columns(torch.from_numpy(np.stack([fine, coarse]).repeat(3, axis=3)))
    assert found["density_band0_energy"][0] > found["density_band0_energy"][1] + 1
    assert found["density_band3_energy"][1] > found["density_band3_energy"][0] + 1


def test_batches_do_not_matter(crops):
    whole = crop_statistics(crops)
    single = torch.cat([crop_statistics(crops[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole[:5], single, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("side", [16, 33, 64])
def test_crops_of_one_colour_are_finite(value, side):
    assert torch.isfinite(crop_statistics(torch.full((2, side, side, 3), value, dtype=torch.uint8))).all()
