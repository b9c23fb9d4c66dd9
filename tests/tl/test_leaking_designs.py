"""What a leaking design would have claimed, where by construction nothing can be learned for a new patient."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import histoweave as hw

SIDE, N_GENES, N_CLASSES, N_DONORS = 12, 60, 3, 4
CHANCE = 1 / N_CLASSES


def fields(rng: np.random.Generator, xy: np.ndarray) -> np.ndarray:
    """Smooth random functions of the place, one a gene (random Fourier features of a Gaussian kernel)."""
    waves = rng.normal(scale=1 / 3, size=(2, 40))
    basis = np.cos(xy @ waves + rng.uniform(0, 2 * np.pi, 40))
    return basis @ rng.normal(size=(40, N_GENES)) / np.sqrt(20)


def patches(rng: np.random.Generator, xy: np.ndarray) -> np.ndarray:
    """Regions that have nothing to do with the genes: each spot takes that of the nearest of nine random points."""
    points = rng.uniform(0, SIDE, size=(9, 2))
    nearest = np.square(xy[:, None] - points).sum(axis=2).argmin(axis=1)
    return rng.permutation(np.arange(9) % N_CLASSES)[nearest]


@pytest.fixture(scope="module")
def table() -> ad.AnnData:
    """Two serial sections of each of four patients; regions of a patient are drawn without regard to expression."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1).reshape(-1, 2).astype(float)
    parts = []
    for donor in range(N_DONORS):
        rate, region = np.exp(fields(rng, xy)) * 3, patches(rng, xy)
        for serial in "ab":
            obs = pd.DataFrame({
                "library_id": f"{donor}{serial}", "donor": f"patient {donor}", "region": [f"r{k}" for k in region],
                "array_row": xy[:, 1].astype(int), "array_col": xy[:, 0].astype(int),
            })  # fmt: skip
            obs.index = [f"{donor}{serial}-{i}" for i in range(len(obs))]
            counts = sp.csr_matrix(rng.poisson(rate).astype(np.float32))
            parts.append(ad.AnnData(counts, obs=obs, obsm={"spatial": xy * 100}))
    return ad.concat(parts)


@pytest.fixture(scope="module")
def model() -> hw.models.RegionClassifier:
    return hw.models.RegionClassifier(image=None, n_rings=0, fusion_options={"heads": ("forest",)})


def score(table, model, **options) -> float:
    scores = hw.tl.cross_validate(table, model=model, arms=["gene"], nulls=False, **options)
    return float(scores["macro_f1"].mean())


@pytest.fixture(scope="module")
def honest(table, model, few_trees) -> float:
    table.obs["fold"] = table.obs["donor"].astype(str)
    return score(table, model)


def test_nothing_can_be_learned_for_a_new_patient(honest):
    assert abs(honest - CHANCE) < 0.08


@pytest.mark.parametrize("design", ["random spots", "serial sections"])
def test_a_leaking_design_is_refused_and_would_have_claimed_much(table, model, honest, design, few_trees):
    if design == "random spots":
        table.obs["fold"] = (np.random.default_rng(1).permutation(table.n_obs) % 4).astype(str)
    else:
        table.obs["fold"] = table.obs["library_id"].astype(str).str[-1]  # train on the one, test on its neighbour
    with pytest.raises(ValueError, match="The folds leak: .*one donor"):
        score(table, model)
    assert score(table, model, allow_leakage=True) > honest + 0.35
