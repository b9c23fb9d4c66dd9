from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.color import rgb_from_hed

from histoweave.loaders._augment import PRESETS, STAINS, Augmentation, augment, augmentation, sample_parameters

STILL = Augmentation(scale=(1.0, 1.0), rotation=0, flip=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (11, 20, 26, 3), dtype=torch.uint8, generator=generator(5))


def naive(image: np.ndarray, params, i: int, noise: np.ndarray) -> np.ndarray:
    """One view of one picture (h, w, 3) uint8, pixel by pixel in double precision."""
    height, width = image.shape[:2]
    theta = params.affine[i].double().numpy()
    rows, columns = np.mgrid[:height, :width].astype(float)
    centre = np.array([width - 1, height - 1])[:, None, None] / 2
    away = np.stack([columns, rows]) - centre  # in pixels, so that circles stay round
    shift = theta[:, 2, None, None] * np.array([width, height])[:, None, None] / 2
    x, y = centre + np.einsum("ij,jhw->ihw", theta[:, :2], away) + shift
    where = [y, x]
    planes = image.astype(float).transpose(2, 0, 1)
    view = np.stack([map_coordinates(plane, where, order=1, mode="reflect") for plane in planes], axis=-1)
    matrix, offset = params.matrix[i].double().numpy(), params.offset[i, :, 0].double().numpy()
    if params.density:
        density = math.log(256) - np.log(view + 1)
        view = (256 * np.exp(-(density @ matrix.T + offset)) - 1) / 255
    else:
        view = view / 255 @ matrix.T + offset
    view = view.clip(0, 1)
    sigma = float(params.sigma[i]) * max(height, width)
    if sigma:
        radius = math.ceil(3 * float(params.sigma.max()) * max(height, width))
        view = np.stack([gaussian_filter(view[..., c], sigma, mode="mirror", radius=radius) for c in range(3)], axis=-1)
    return (view + float(params.noise[i]) * noise).clip(0, 1).transpose(2, 0, 1)


@pytest.mark.parametrize(
    "aug",
    [*PRESETS.values(), Augmentation(stain=0.3, contrast=0.3, grey=0.5, blur=0.6, noise=0.1), Augmentation(blur=1.0)],
)
def test_a_batch_is_what_pictures_one_by_one_give(images, aug):
    params = sample_parameters(aug, len(images), generator())
    noise = torch.randn((len(images), 3, 20, 26), generator=generator(params.noise_seed)).numpy()
    found = augment(images, params)
    assert found.dtype == torch.float32
    for i, image in enumerate(images.numpy()):
        np.testing.assert_allclose(found[i], naive(image, params, i, noise[i].transpose(1, 2, 0)), atol=3e-4)


@pytest.mark.parametrize("stain", [None, 0.0])
def test_nothing_asked_for_changes_nothing(images, stain):
    view = augment(images, sample_parameters(replace(STILL, stain=stain), len(images), generator()))
    np.testing.assert_allclose(view, images.permute(0, 3, 1, 2) / 255, atol=2e-5)


def test_float_pictures_are_treated_as_bytes_are(images):
    params = sample_parameters(PRESETS["histology"], len(images), generator())
    floats = images.permute(0, 3, 1, 2) / 255
    before = floats.clone()
    torch.testing.assert_close(augment(floats, params), augment(images, params), atol=1e-4, rtol=0)
    assert torch.equal(floats, before)


def test_work_in_pieces_gives_what_one_piece_gives(images, monkeypatch):
    params = sample_parameters(PRESETS["histology"], len(images), generator())
    monkeypatch.setattr("histoweave.loaders._augment.CACHED", 2000)
    several = augment(images, params)
    monkeypatch.setattr("histoweave.loaders._augment.CACHED", 10**9)
    torch.testing.assert_close(augment(images, params), several)


def test_flips_and_right_angles_move_pixels_and_nothing_else(images):
    square = images[:, :, :20]
    mirrored = augment(square, sample_parameters(replace(STILL, flip=True), 11, generator()))
    plain = square.permute(0, 3, 1, 2) / 255
    kinds = {next(k for k, v in {"as it is": p, "mirrored": p.flip(2)}.items() if torch.allclose(m, v, atol=1e-5))
             for m, p in zip(mirrored, plain, strict=True)}  # fmt: skip
    assert kinds == {"as it is", "mirrored"}
    params = sample_parameters(STILL, 11, generator())
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]).expand(11, 2, 3)
    turned = augment(square, replace(params, affine=turn))
    torch.testing.assert_close(turned, torch.rot90(plain, 1, dims=(2, 3)), atol=1e-5, rtol=0)


def test_views_show_the_asked_share_of_the_picture_and_stay_inside_without_rotation():
    aug = Augmentation(scale=(0.25, 0.64), rotation=0, flip=False)
    affine = sample_parameters(aug, 500, generator()).affine
    side = affine[:, 0, 0]
    assert 0.5 <= side.min() < 0.53
    assert 0.77 < side.max() <= 0.8
    assert torch.all(affine[:, :, 2].abs() <= 1 - side[:, None] + 1e-6)
    rotation = sample_parameters(Augmentation(), 500, generator()).affine[:, :, :2]
    area = torch.linalg.det(rotation).abs()
    assert 0.4 <= area.min()
    assert area.max() <= 1 + 1e-5


def test_stain_jitter_scales_and_moves_each_stain_of_its_own(images):
    np.testing.assert_allclose(STAINS, rgb_from_hed / np.linalg.norm(rgb_from_hed, axis=1, keepdims=True), atol=0.01)
    params = sample_parameters(replace(STILL, stain=0.2), len(images), generator())
    before = (math.log(256) - np.log(images.double().numpy() + 1)).reshape(len(images), -1, 3)
    matrix, offset = params.matrix.double().numpy(), params.offset.double().numpy()
    after = before @ matrix.transpose(0, 2, 1) + offset.transpose(0, 2, 1)
    old, new = (density @ np.linalg.inv(STAINS.double().numpy()) for density in (before, after))
    for i in range(len(images)):
        for stain in range(3):
            slope, shift = np.polyfit(old[i, :, stain], new[i, :, stain], 1)
            assert abs(slope - 1) <= 0.2
            assert abs(shift) <= 0.2
            np.testing.assert_allclose(slope * old[i, :, stain] + shift, new[i, :, stain], atol=1e-4)


def test_grey_views_have_no_colour(images):
    for stain in (None, 0.1):
        view = augment(images, sample_parameters(Augmentation(stain=stain, grey=1.0), len(images), generator()))
        torch.testing.assert_close(view, view[:, :1].expand_as(view), atol=1e-5, rtol=0)


def test_the_seed_decides_and_the_global_generator_is_left_alone(images):
    state = torch.get_rng_state()
    first, again, other = (sample_parameters(PRESETS["radiograph"], 11, generator(s)) for s in (1, 1, 2))
    assert all(
        torch.equal(augment(images, first), augment(images, p)) is same for p, same in ((again, True), (other, False))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[2:4].affine, first.affine[2:4])
    assert {f.name for f in fields(first)} >= {"affine", "matrix", "offset"}


def test_pictures_of_one_colour_and_of_every_extreme_stay_in_range():
    images = torch.stack([torch.full((16, 16, 3), v, dtype=torch.uint8) for v in (0, 1, 128, 255)])
    for aug in PRESETS.values():
        view = augment(images, sample_parameters(aug, 4, generator()))
        assert torch.isfinite(view).all()
        assert view.min() >= 0
        assert view.max() <= 1


def test_bad_input_is_named(images):
    params = sample_parameters(STILL, len(images), generator())
    for wrong in (images[:3], images[..., :2], images.permute(0, 3, 1, 2), images[0]):
        with pytest.raises(ValueError, match="RGB pictures"):
            augment(wrong, params)
    with pytest.raises(ValueError, match="'histology', 'radiograph', 'light'"):
        augmentation("histologie")
    for wrong in ({"scale": (0.9, 0.2)}, {"scale": (0, 1)}, {"grey": 1.5}, {"stain": -0.1}, {"rotation": 200}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Augmentation(**wrong)
    assert augmentation(STILL) is STILL
    assert augmentation("light") is PRESETS["light"]


def test_a_circle_on_a_picture_that_is_not_square_stays_round():
    y, x = np.mgrid[:40, :80] - np.array([19.5, 39.5])[:, None, None]
    away = np.hypot(y, x)
    disc = np.where(away < 14.5, 255, 0).astype(np.uint8)
    images = torch.from_numpy(disc)[None, ..., None].expand(6, 40, 80, 3).contiguous()
    params = sample_parameters(replace(STILL, rotation=180), 6, generator())
    for view in augment(images, params)[:, 0].numpy():
        assert view[away < 13].min() > 0.9
        assert view[(away > 16) & (away < 19)].max() < 0.1  # further out the picture is reflected at its edges
