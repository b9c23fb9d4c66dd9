"""Maps of networks on a task whose evidence lies at a known place."""

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import histoweave as hw
from histoweave._record import recorded
from histoweave._validate import HistoweaveWarning
from histoweave.models.image_encoder._module import Tiny

SIDE, PATCH, N = 32, 8, 96
COLOURS = {"blue": (60, 60, 230), "red": (230, 60, 60)}


@pytest.fixture(scope="module")
def task():
    """Noise with a blue or a red patch somewhere: only the patch tells the class. With a mask of the patch."""
    rng = np.random.default_rng(0)
    labels = rng.choice(list(COLOURS), N)
    crops, masks = rng.integers(60, 200, (N, SIDE, SIDE, 3), dtype=np.uint8), np.zeros((N, SIDE, SIDE), dtype=bool)
    for label, crop, mask in zip(labels, crops, masks, strict=True):
        y, x = rng.integers(0, SIDE - PATCH + 1, 2)
        mask[y : y + PATCH, x : x + PATCH] = True
        crop[mask] = COLOURS[label]
    table = ad.AnnData(obs=pd.DataFrame({"region": labels, "library_id": "s"}, index=[f"c{i}" for i in range(N)]))
    table.obsm["crops"] = crops
    return table, masks


def pictures(table):
    return torch.from_numpy(table.obsm["crops"]).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def trained(task):
    """A small network that was trained on the task by a plain loop."""
    table, _ = task
    torch.manual_seed(0)
    network = nn.Sequential(Tiny(), nn.Linear(64, 2))
    x, y = pictures(table), torch.from_numpy((table.obs["region"] == "red").to_numpy().astype(int))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert float((network.eval()(x).argmax(1) == y).float().mean()) > 0.95
    return SimpleNamespace(network=network.eval(), classes=["blue", "red"], crops_keys=("crops",))


@pytest.fixture
def table(task):
    return task[0].copy()


@pytest.mark.parametrize(("method", "layers"), [("grad_cam", "0.5"), ("occlusion", None)])
def test_maps_land_on_the_evidence(table, task, trained, method, layers):
    hw.tl.grad_cam(table, model=trained, method=method, layers=layers)
    scores = hw.metrics.localisation(table.obsm["grad_cam"], task[1])
    assert scores["pointing"].mean() > 0.9
    assert scores["energy"].mean() > 4 * scores["area"].mean()
    assert (table.obs["grad_cam_class"] == table.obs["region"]).mean() > 0.95
    expected = trained.network(pictures(table)).softmax(1).max(1).values.detach()
    np.testing.assert_allclose(table.obs["grad_cam_probability"], expected, rtol=1e-4)
    assert recorded(table, "grad_cam")["params"]["method"] == method


def test_a_named_class_is_explained_in_every_row(table, task, trained):
    hw.tl.grad_cam(table, model=trained, target="red")
    assert table.obsm["grad_cam"].shape == (N, 4, 4)
    assert (table.obs["grad_cam_class"] == "red").all()
    scores, red = hw.metrics.localisation(table.obsm["grad_cam"], task[1]), table.obs["region"] == "red"
    assert scores["energy"][red.to_numpy()].mean() > 3 * scores["area"].mean()
    assert scores["energy"][~red.to_numpy()].mean() < 0.5 * scores["area"].mean()  # blue is no evidence for red


def test_checks_tell_a_trained_network_from_chance(table, trained):
    checks = hw.tl.grad_cam(table, model=trained, checks=True, n_checked=N).set_index("check")
    value, null = checks["value"], checks["null"]
    assert value["deletion_area"] < null["deletion_area"] - 0.02
    assert value["insertion_area"] > null["insertion_area"] + 0.02
    assert value["randomised_spearman"] < 0.6
    numbers = (table.obs["grad_cam_class"] == "red").to_numpy().astype(int)

    def score(images):
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        return trained.network(x).softmax(1)[torch.arange(N), numbers].detach().numpy()

    _, areas = hw.metrics.perturbation(score, table.obsm["crops"], table.obsm["grad_cam"])
    assert value["deletion_area"] == pytest.approx(areas.mean(), rel=1e-4)
    assert checks["n"]["deletion_area"] == N


def test_one_crop_has_no_other_to_be_compared_with(table, trained):
    checks = hw.tl.grad_cam(table, model=trained, rows=[3], checks=True).set_index("check")
    assert checks["null"].notna().to_dict() == {
        "deletion_area": True, "insertion_area": True, "randomised_spearman": False, "randomised_ssim": False,
    }  # fmt: skip


def test_models_classes_and_layers_side_by_side(table, trained):
    torch.manual_seed(1)
    other = SimpleNamespace(**vars(trained) | {"network": nn.Sequential(Tiny(), nn.Linear(64, 2)).eval()})
    models = {"trained": trained, "random": other}
    checks = hw.tl.grad_cam(
        table, model=models, target=["red", "blue"], layers=["0.5", "0.8"], checks=True, n_checked=4
    )
    keys = [f"grad_cam_{m}_{t}_{x}" for m in models for t in ("red", "blue") for x in ("0.5", "0.8")]
    assert [k for k in table.obsm if k != "crops"] == keys
    assert table.obsm[keys[0]].shape == (N, 8, 8)
    assert table.obsm[keys[1]].shape == (N, 4, 4)
    assert len(checks) == 4 * len(keys)
    assert checks.groupby(["model", "target", "layer"], sort=False).ngroups == len(keys)
    alone = table.copy()
    hw.tl.grad_cam(alone, model=other, target="blue", layers="0.8")
    np.testing.assert_array_equal(alone.obsm["grad_cam"], table.obsm["grad_cam_random_blue_0.8"])


@pytest.mark.parametrize("rows", [["c3", "c70"], [70, 3], np.isin(np.arange(N), [3, 70])])
def test_only_chosen_rows_are_explained_and_as_all_at_once(table, trained, rows):
    whole = table.copy()
    hw.tl.grad_cam(whole, model=trained, batch_size=7)
    hw.tl.grad_cam(table, model=trained, rows=rows)
    maps = table.obsm["grad_cam"]
    assert np.flatnonzero(np.isfinite(maps).all(axis=(1, 2))).tolist() == [3, 70]
    np.testing.assert_allclose(maps[[3, 70]], whole.obsm["grad_cam"][[3, 70]], rtol=1e-3, atol=1e-6)
    assert table.obs["grad_cam_class"].notna().sum() == 2


def test_an_encoder_is_explained_through_the_classifier_on_it(table, trained):
    options = {"backbone": "tiny", "n_components": 8, "max_epochs": 1, "batch_size": 32, "precision": "float32"}
    encoder = hw.models.ImageEncoder("simclr", **options).fit(table)
    before = {k: v.clone() for k, v in encoder._network.state_dict().items()}
    hw.tl.grad_cam(table, model=encoder)
    clf = hw.models.ImageClassifier(encoder).fit(table)
    np.testing.assert_allclose(table.obs["grad_cam_probability"], clf.predict_proba(table).max(axis=1), rtol=1e-3)
    assert (table.obs["grad_cam_class"].astype(str).to_numpy() == clf.predict(table)["predicted"].to_numpy()).all()
    other = table.copy()
    hw.tl.grad_cam(other, model=clf)
    np.testing.assert_allclose(other.obsm["grad_cam"], table.obsm["grad_cam"])
    assert all(torch.equal(v, before[k]) for k, v in encoder._network.state_dict().items())


def test_rows_without_crops_are_left_out_and_said(table, trained):
    table.obs["crops_available"] = np.arange(N) > 4
    with pytest.warns(HistoweaveWarning, match="2 of 3 rows have no crops"):
        hw.tl.grad_cam(table, model=trained, rows=["c0", "c1", "c9"])
    with pytest.raises(ValueError, match="None of the rows has crops"):
        hw.tl.grad_cam(table, model=trained, rows=["c0"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "lime"}, ValueError, "`method` must be one of"),
        ({"target": "green"}, ValueError, "`target` must be one of 'predicted', 'blue', 'red'"),
        ({"layers": "layer9"}, ValueError, "`layers='layer9'` is not a layer of the network. Its stages: '0.2'"),
        ({"method": "occlusion", "layers": "0.8"}, ValueError, "occlusion looks at the whole network"),
        ({"rows": ["nobody"]}, ValueError, "`rows` must be names of rows.*'nobody'"),
        ({"rows": []}, ValueError, "`rows` must be"),
        ({"rows": [N]}, ValueError, "`rows` must be"),
        ({"crops_key": "crops_context"}, ValueError, "`crops_key` must be one of 'crops'"),
        ({"model": hw.models.ImageEncoder("statistics")}, ValueError, "no network whose gradients"),
        ({"model": hw.models.GenePCA()}, TypeError, "got GenePCA"),
        ({"device": "cuda:7"}, RuntimeError, "`device='cuda:7'` was asked for"),
        ({"n_checked": 1}, ValueError, "`n_checked` must be"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(table, trained, change, error, message):
    with pytest.raises(error, match=message):
        hw.tl.grad_cam(table, **{"model": trained} | change)
    assert list(table.obsm) == ["crops"]
    assert list(table.obs) == ["region", "library_id"]


def test_missing_crops_are_named(table, trained):
    del table.obsm["crops"]
    with pytest.raises(KeyError, match=r"Run `hw\.pp\.crops"):
        hw.tl.grad_cam(table, model=trained)
