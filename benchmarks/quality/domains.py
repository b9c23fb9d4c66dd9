"""Domains of HER2ST sections without labels, beside Scanpy and Squidpy.

The five labelled sections (Andersson et al., 2021), each by itself. As in published comparisons every method is told
how many regions the pathologist named, and nothing else of the labels; the arms "by the rule" are not told. Spots
named `undetermined` are clustered but not scored. Published means over eight sections: DeepST .185, ConGI .176,
CCST .175, SpaGCN .151, GraphST .146. Stability is the mean ARI between seeds.

    python benchmarks/quality/domains.py [--data ../shared/data] [--seeds 3]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
from ablation_her2st_a1 import load as load_a1
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import histoweave as hw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SECTIONS = ("A1", "B1", "C1", "D1", "E1")
WITH_IMAGE = ("A1",)  # of the labelled ones
Arm = Callable[[ad.AnnData, int, int], np.ndarray]  # table, number of regions, seed -> labels


def prepared(folder: Path, section: str) -> ad.AnnData:
    data = load_a1(folder) if section == "A1" else hw.datasets.her2st(section=section, image=False, data_dir=folder)
    table = hw.io.to_anndata(data)
    if section in WITH_IMAGE:
        hw.pp.crops(table, size_um={"crops": 110, "crops_context": 300})
        hw.tl.image_encoder(table, method="statistics", crops_key=["crops", "crops_context"])
    hw.pp.expression(table, n_top_genes=2000)
    hw.tl.gene_encoder(table, method="pca")
    chosen = table[:, table.var["highly_variable"]].copy()
    sc.pp.pca(chosen, n_comps=30)
    table.obsm["X_pca"] = chosen.obsm["X_pca"]
    return table


def scanpy_leiden(table: ad.AnnData, k: int, seed: int) -> np.ndarray:
    sc.pp.neighbors(table, use_rep="X_pca", random_state=seed)
    return _leiden(table, table.obsp["connectivities"], k, seed)


def scanpy_kmeans(table: ad.AnnData, k: int, seed: int) -> np.ndarray:
    return KMeans(k, n_init=10, random_state=seed).fit_predict(table.obsm["X_pca"])


def squidpy_joint(table: ad.AnnData, k: int, seed: int) -> np.ndarray:
    """Squidpy's tutorial: Leiden on the sum of the expression graph and 0.2 of the spatial one."""
    sc.pp.neighbors(table, use_rep="X_pca", random_state=seed)
    sq.gr.spatial_neighbors(table, coord_type="generic", n_neighs=6)
    joint = 0.8 * table.obsp["connectivities"] + 0.2 * table.obsp["spatial_connectivities"]
    return _leiden(table, joint, k, seed)


def _leiden(table: ad.AnnData, graph, k: int, seed: int) -> np.ndarray:
    """Scanpy's Leiden at the resolution that gives k communities, found by halving an interval."""
    low, high = 0.01, 3.0
    for _ in range(20):
        middle = (low + high) / 2
        sc.tl.leiden(table, resolution=middle, adjacency=graph, random_state=seed, flavor="igraph", n_iterations=2,
                     directed=False)  # fmt: skip
        n = table.obs["leiden"].nunique()
        if n == k:
            break
        low, high = (middle, high) if n < k else (low, middle)
    return table.obs["leiden"].cat.codes.to_numpy()


def ours(method: str, use: str | list[str] = "X_gene", told: bool = True, **options) -> Arm:
    def run(table: ad.AnnData, k: int, seed: int) -> np.ndarray:
        hw.tl.domains(table, use=use, method=method, n_domains=k if told else None, random_state=seed, **options)
        return table.obs["domain"].cat.codes.to_numpy()

    return run


ARMS: dict[str, Arm] = {
    "Scanpy: PCA + Leiden": scanpy_leiden,
    "Scanpy: PCA + k-means": scanpy_kmeans,
    "Squidpy: joint graph + Leiden": squidpy_joint,
    "chance": lambda table, k, seed: np.random.default_rng(seed).integers(0, k, table.n_obs),
    "histoweave: genes, Leiden": ours("leiden"),
    "histoweave: genes, mixture": ours("mixture"),
    "histoweave: genes, Leiden, by the rule": ours("leiden", told=False),
    "histoweave: genes, mixture, by the rule": ours("mixture", told=False),
    "histoweave: genes, mixture, two rings": ours("mixture", n_rings=2),
    "histoweave: genes, mixture, no neighbourhood": ours("mixture", n_rings=0),
}
IMAGE_ARMS: dict[str, Arm] = {
    "histoweave: image, mixture": ours("mixture", "X_image"),
    "histoweave: image and genes, mixture": ours("mixture", ["X_image", "X_gene"]),
    "histoweave: image and genes, Leiden": ours("leiden", ["X_image", "X_gene"]),
}


def one_section(table: ad.AnnData, section: str, n_seeds: int) -> list[dict]:
    truth = table.obs["region"].astype(object).where(table.obs["region"] != "undetermined")
    scored, k, rows = truth.notna().to_numpy(), truth.nunique(), []
    for name, arm in {**ARMS, **(IMAGE_ARMS if section in WITH_IMAGE else {})}.items():
        found = [arm(table, k, seed) for seed in range(n_seeds)]
        stability = np.mean([adjusted_rand_score(a, b) for a, b in combinations(found, 2)]) if n_seeds > 1 else np.nan
        for seed, labels in enumerate(found):
            scores = hw.metrics.clustering(truth[scored].astype(str), labels[scored].astype(str))
            rows.append({"section": section, "arm": name, "seed": seed, "stability": stability,
                         "n_domains": len(np.unique(labels)),
                         "ari": scores["adjusted_rand"],
                         "nmi": scores["nmi"]})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    hw.settings.progress = False
    rows = [row for name in SECTIONS for row in one_section(prepared(args.data, name), name, args.seeds)]
    table = pd.DataFrame(rows)
    wide = table.pivot_table(index="arm", columns="section", values="ari", sort=False)
    wide["mean ARI"] = wide[list(SECTIONS)].mean(axis=1, skipna=False)
    by_seed = table.groupby(["arm", "seed"], sort=False)["ari"].mean()
    wide["SD over seeds"] = by_seed.groupby("arm").std()
    for name in ("nmi", "stability", "n_domains"):
        wide[f"mean {name}"] = table.groupby("arm")[name].mean()
    print(wide.round(3).to_markdown())


if __name__ == "__main__":
    main()
