import matplotlib as mpl

mpl.use("Agg")

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest


@pytest.fixture(autouse=True)
def no_side_effects(monkeypatch):
    """No picture shows itself, changes the global settings or stays open after its test."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")


def section(name, n_side=6, pitch=100.0, image=True, seed=0):
    """A square array, left half tumour and right half stroma; its image is red left and green right."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(n_side), np.arange(n_side), indexing="xy"), -1).reshape(-1, 2)
    left = grid[:, 0] < n_side / 2
    n = len(grid)
    names = [f"{name}-{i}" for i in range(n)]
    obs = pd.DataFrame({"library_id": name, "region": np.where(left, "tumour", "stroma")}, index=names)
    obs.loc[names[0], "region"] = None
    predicted = np.where(left, "tumour", "stroma")
    predicted[-1] = "fat"
    obs["region_predicted"] = pd.Categorical(predicted, categories=["fat", "stroma", "tumour"])
    obs["region_confidence"] = np.linspace(0.4, 1.0, n)
    obs["region_abstain"] = obs["region_confidence"] < 0.5
    table = ad.AnnData(rng.poisson(3, (n, 5)).astype("float32"), obs=obs)
    table.obsm["spatial"] = (grid + 1.0) * pitch
    side = (n_side + 1) * pitch
    entry = {
        "scalefactors": {
            "spot_diameter_fullres": 55.0,
            "tissue_hires_scalef": 0.5,
            "microns_per_pixel": 65 / 55,
        },
        "metadata": {"platform": "visium"},
    }
    if image:
        pixels = np.zeros((int(side / 2), int(side / 2), 3), dtype=np.uint8)
        pixels[:, : pixels.shape[1] // 2, 0] = 255
        pixels[:, pixels.shape[1] // 2 :, 1] = 255
        entry["images"] = {"hires": pixels}
    table.uns["spatial"] = {name: entry}
    return table


@pytest.fixture
def table():
    return section("s1")


@pytest.fixture
def two():
    first, second = section("s1"), section("s2", n_side=4, image=False, seed=1)
    both = ad.concat([first, second], uns_merge="first")
    both.uns["spatial"] = {**first.uns["spatial"], **second.uns["spatial"]}
    return both
