"""Tissue and slide told apart on pictures whose tissue is known."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from histoweave._resolve import SectionImage
from histoweave.pp._tissue import optical_density, thumbnail, tissue_mask, tissue_threshold

RNG = np.random.default_rng(0)


def picture(slide=(235, 235, 238), tissue=(180, 110, 160), noise=5.0):
    truth = np.hypot(*(np.indices((300, 400)) - np.array([150, 200])[:, None, None])) < 100
    image = np.where(truth[..., None], tissue, slide) + RNG.normal(0, noise, (300, 400, 3))
    return image.clip(0, 255).astype(np.uint8), truth


def test_optical_density():
    pixels = np.array([[[255, 255, 255], [0, 0, 0], [127, 63, 31], [0, 0, 200]]], np.uint8)
    by_hand = -np.log10((pixels.astype(float) + 1) / 256).mean(axis=-1)
    by_hand[0, 1] = 0  # masked out
    np.testing.assert_allclose(optical_density(pixels), by_hand, rtol=1e-5)


@pytest.mark.parametrize("slide", [(250, 250, 250), (175, 177, 174), (0, 0, 0)])
def test_mask(slide):
    image, truth = picture(slide, (160, 90, 150) if slide[0] == 175 else (180, 110, 160))
    if slide == (0, 0, 0):
        image[~truth] = 0
    found = tissue_mask(image)
    assert (found == truth).mean() > 0.97
    density = optical_density(image)
    assert density[~truth].mean() < tissue_threshold(image) < density[truth].mean()


def test_one_colour_has_no_tissue():
    assert tissue_mask(np.full((50, 50, 3), 230, np.uint8)) is None
    assert tissue_threshold(np.zeros((50, 50, 3), np.uint8)) is None
    noise = (230 + RNG.normal(0, 2, (300, 300, 3))).astype(np.uint8)
    assert tissue_threshold(noise) is None


def test_thumbnail():
    image = np.repeat(np.repeat(RNG.integers(0, 256, (500, 400, 3), dtype=np.uint8), 4, axis=0), 4, axis=1)
    for array in (image, da.from_array(image, chunks=(512, 512, 3))):
        small = thumbnail(SectionImage(array, (1.0, 1.0), (0.0, 0.0), "full"))
        assert max(small.shape) <= 1000
        assert abs(small.mean() - image.mean()) < 2


def test_thumbnails_of_lazy_images_are_those_of_images_in_memory():
    image = RNG.integers(0, 256, (1387, 1911, 3), dtype=np.uint8)
    in_memory, lazy = (
        thumbnail(SectionImage(array, (1.0, 1.0), (0.0, 0.0), "full"))
        for array in (image, da.from_array(image, chunks=(250, 333, 3)))
    )
    assert in_memory.shape == (462, 637, 3)
    np.testing.assert_allclose(in_memory, image[:1386].reshape(462, 3, 637, 3, 3).mean(axis=(1, 3)), atol=1)
    np.testing.assert_allclose(lazy.astype(int), in_memory, atol=1)
    strip = thumbnail(SectionImage(image[:2], (1.0, 1.0), (0.0, 0.0), "full"))
    assert strip.size
