"""Domains where the regions are known: graph or mixture, genes or image and genes, told the number or not.

Simulated sections in designs that differ in shape of the regions, in how much each modality tells and in the number of
sections. `hw.tl.domains` was designed on the same designs with other seeds, so the methods' order is checked here,
on new draws, and not discovered. Told the number of regions, as the peers are, or "by the rule", which is told nothing.

    python benchmarks/quality/domains_simulated.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import warnings

import anndata as ad
import pandas as pd
import scanpy as sc
from domains import ours, scanpy_kmeans, scanpy_leiden, squidpy_joint
from sklearn.metrics import adjusted_rand_score

import histoweave as hw

FIRST_SEED = 500
SIDE = {"n_rows": 22, "n_cols": 22}
DESIGNS = {
    "six regions": SIDE | {"n_regions": 6, "gene_signal": 0.6},
    "five layers": SIDE | {"n_regions": 5, "gene_signal": 0.6, "layout": "layers"},
    "faint": SIDE | {"gene_signal": 0.35, "image_signal": 0.5},
    "each tells a part": SIDE | {"image_regions": [0, 1, 2, 2], "gene_regions": [0, 0, 1, 2]},
    "image is noise": SIDE | {"image_signal": 0.0, "gene_signal": 0.7},
    "genes are noise": SIDE | {"image_signal": 0.7, "gene_signal": 0.0},
    "three sections": {"n_sections": 3, "n_rows": 14, "n_cols": 14, "n_regions": 5, "gene_signal": 0.7,
                       "batch_effect": 0.4, "stain_shift": 0.4},
}  # fmt: skip
BOTH = ["X_image", "X_gene"]
ARMS = {
    "Scanpy: PCA + Leiden": scanpy_leiden,
    "Scanpy: PCA + k-means": scanpy_kmeans,
    "Squidpy: joint graph + Leiden": squidpy_joint,
    "histoweave: genes, Leiden": ours("leiden"),
    "histoweave: genes, mixture": ours("mixture"),
    "histoweave: image and genes, Leiden": ours("leiden", BOTH),
    "histoweave: image and genes, mixture": ours("mixture", BOTH),
    "histoweave: genes, Leiden, by the rule": ours("leiden", told=False),
    "histoweave: genes, mixture, by the rule": ours("mixture", told=False),
    "histoweave: image and genes, Leiden, by the rule": ours("leiden", BOTH, told=False),
    "histoweave: image and genes, mixture, by the rule": ours("mixture", BOTH, told=False),
}


def prepared(design: dict, seed: int) -> ad.AnnData:
    simulate = hw.datasets.simulate_sections if "n_sections" in design else hw.datasets.simulate_section
    table = simulate(**design, random_state=seed)
    hw.pp.crops(table, size_um={"crops": 110, "crops_context": 300})
    hw.tl.image_encoder(table, method="statistics", crops_key=["crops", "crops_context"])
    hw.tl.gene_encoder(table, method="pca")
    scaled = sc.pp.log1p(sc.pp.normalize_total(table, copy=True), copy=True)
    sc.pp.pca(scaled, n_comps=30)
    table.obsm["X_pca"] = scaled.obsm["X_pca"]
    return table


def one_draw(name: str, seed: int) -> list[dict]:
    table, rows = prepared(DESIGNS[name], seed), []
    truth = table.obs["region_truth"].astype(str)
    for arm, method in ARMS.items():
        found = method(table, truth.nunique(), seed)
        rows.append({"design": name, "arm": arm, "ari": adjusted_rand_score(truth, found),
                     "found": len(set(found))})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    hw.settings.progress = False
    draws = [(name, FIRST_SEED + i) for name in DESIGNS for i in range(args.seeds)]
    cells = pd.DataFrame([row for draw in draws for row in one_draw(*draw)]).groupby(["arm", "design"], sort=False)
    ari = cells["ari"].agg(["mean", "std"]).apply(lambda c: f"{c['mean']:.2f} +- {c['std']:.2f}", axis=1)
    print(f"ARI, mean and SD over {args.seeds} draws\n\n{ari.unstack('design').to_markdown()}")
    found = cells["found"].mean().unstack("design")
    told = [arm for arm in ARMS if "rule" not in arm]
    print(f"\nDomains found by the rule\n\n{found.drop(index=told).round(1).to_markdown()}")


if __name__ == "__main__":
    main()
