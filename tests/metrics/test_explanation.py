"""Scores of maps against closed forms: linear scores, whose right map is known, and hand-made masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from skimage.metrics import structural_similarity

import histoweave as hw

BLACK = (0, 0, 0)


@pytest.fixture
def linear():
    """A linear score of pictures, and the map that is right for it: what each pixel contributes."""
    rng = np.random.default_rng(0)
    images, weights = rng.random((6, 8, 8, 3)), rng.gamma(0.3, size=(8, 8, 3))
    return images, lambda x: (x * weights).sum(axis=(1, 2, 3)), (images * weights).sum(axis=3)


def naive_curve(score, image, importance, fill, mode, n_steps):
    """One picture at a time, one pixel at a time."""
    places = sorted(np.ndindex(importance.shape), key=lambda p: -importance[p])
    picture = image.copy() if mode == "deletion" else np.broadcast_to(fill, image.shape).astype(float)
    values, done = [score(picture[None])[0]], 0
    for step in range(1, n_steps + 1):
        while done < round(step * len(places) / n_steps):
            picture[places[done]] = fill if mode == "deletion" else image[places[done]]
            done += 1
        values.append(score(picture[None])[0])
    return values


@pytest.mark.parametrize("mode", ["deletion", "insertion"])
def test_curves_are_those_of_a_pixel_by_pixel_loop(linear, mode):
    images, score, maps = linear
    curves, areas = hw.metrics.perturbation(score, images, maps, mode=mode, n_steps=16, fill=(0.2, 0.5, 0.1))
    for image, importance, curve, area in zip(images, maps, curves, areas, strict=True):
        expected = naive_curve(score, image, importance, (0.2, 0.5, 0.1), mode, 16)
        np.testing.assert_allclose(curve, expected, atol=1e-10)
        assert area == pytest.approx(np.trapezoid(expected, np.linspace(0, 1, 17)))


def test_no_map_beats_the_right_one_of_a_linear_score(linear):
    images, score, maps = linear
    right = {mode: hw.metrics.perturbation(score, images, maps, mode=mode, fill=BLACK)[1] for mode in
             ("deletion", "insertion")}  # fmt: skip
    for seed in range(5):
        other = np.random.default_rng(seed).random(maps.shape)
        assert (hw.metrics.perturbation(score, images, other, mode="deletion", fill=BLACK)[1] > right["deletion"]).all()
        inserted = hw.metrics.perturbation(score, images, other, mode="insertion", fill=BLACK)[1]
        assert (inserted < right["insertion"]).all()


def test_pixels_of_one_importance_come_in_random_order():
    """In the order of memory, a map without content would delete the top first."""
    images = np.zeros((1, 16, 16, 3))
    images[:, :8] = 1
    curves, _ = hw.metrics.perturbation(lambda x: x[:, :8].mean(axis=(1, 2, 3)), images, np.zeros((1, 4, 4)), n_steps=2,
                                        fill=BLACK)  # fmt: skip
    assert 0.35 < curves[0, 1] < 0.65


def test_fills_keep_the_mean_colour_and_type():
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    for fill in ("mean", "blur"):
        seen = []
        hw.metrics.perturbation(
            lambda x, seen=seen: seen.append(x) or np.zeros(2), images, np.ones((2, 1, 1)), fill=fill
        )
        assert seen[-1].dtype == np.uint8
        np.testing.assert_array_equal(seen[0], images)
        np.testing.assert_allclose(seen[-1].mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=4)
        assert seen[-1].std(axis=(1, 2)).max() < 0.25 * images.std()


def test_similarity_is_scipys_and_scikit_images():
    a, b = np.random.default_rng(0).random((2, 3, 40, 36))
    found = hw.metrics.map_similarity(5 * a - 1, b)
    for i in range(3):
        assert found.loc[i, "spearman"] == pytest.approx(stats.spearmanr(a[i].ravel(), b[i].ravel())[0])
        x, y = ((m - m.min()) / np.ptp(m) for m in (a[i], b[i]))
        assert found.loc[i, "ssim"] == pytest.approx(structural_similarity(x, y, data_range=1.0))


def test_similarity_of_small_and_of_constant_maps():
    maps = np.random.default_rng(0).random((2, 4, 4))
    np.testing.assert_allclose(hw.metrics.map_similarity(maps, maps), 1)
    assert hw.metrics.map_similarity(maps, np.ones_like(maps)).isna().all(axis=None)
    assert hw.metrics.map_similarity(maps, -maps)["spearman"].tolist() == pytest.approx([-1, -1])


def test_localisation_of_hand_made_maps():
    masks = np.zeros((4, 2, 4), dtype=bool)
    masks[:, 0, :2] = True
    maps = np.zeros((4, 2, 4))
    maps[0, 0, 0], maps[0, 1, 3] = 3, 1  # inside
    maps[1, 1, 2], maps[1, 0, 1], maps[1, 1, 0] = 2, 1, -5  # outside; what speaks against does not count
    maps[2] = 1  # everywhere
    found = hw.metrics.localisation(maps, masks)
    assert found["pointing"].tolist()[:3] == [1, 0, 0.25]
    assert found["energy"].tolist()[:3] == pytest.approx([0.75, 1 / 3, 0.25])
    assert (found["area"] == 0.25).all()
    assert found.loc[3, ["pointing", "energy"]].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 4, 4))}, "`images` must be pictures"),
        ({"maps": np.zeros((4, 4))}, "`maps` must be maps"),
        ({"maps": np.full((2, 4, 4), np.nan)}, "`maps` has NaN or infinite values in 2 of 2"),
        ({"maps": np.zeros((3, 4, 4))}, "same number of rows"),
        ({"mode": "erase"}, "`mode` must be one of"),
        ({"n_steps": 0}, "`n_steps` must be"),
        ({"fill": "white"}, "`fill` must be"),
        ({"fill": (1, 2)}, "a colour of 3 numbers"),
        ({"score": lambda x: x}, "`score` must return one finite number"),
        ({"score": lambda x: np.full(len(x), np.nan)}, "some not finite"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"score": lambda x: x.mean(axis=(1, 2, 3)), "images": np.ones((2, 4, 4, 3)), "maps": np.ones((2, 4, 4))}
    with pytest.raises(ValueError, match=message):
        hw.metrics.perturbation(**arguments | change)


def test_bad_maps_and_masks_are_named():
    with pytest.raises(ValueError, match="same shape"):
        hw.metrics.map_similarity(np.zeros((1, 4, 4)), np.zeros((1, 4, 5)))
    for masks in (np.zeros((1, 4, 4), dtype=bool), np.ones((1, 4, 4))):
        with pytest.raises(ValueError, match="`masks` must be True or False"):
            hw.metrics.localisation(np.zeros((1, 4, 4)), masks)
