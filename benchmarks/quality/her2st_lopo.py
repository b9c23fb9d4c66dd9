"""Regions of HER2ST from counts, one patient left out: the default classifier against every other arm.

The five labelled sections (Andersson et al., 2021), one of each of five patients; `undetermined` is left out. Every arm
is a `RegionClassifier` scored by `hw.tl.cross_validate` on the same folds, or one of its nulls, or PCA with logistic
regression as anyone would write it. `pooled` scores are of all held-out spots together; `mean` is over patients, where
regions that the training patients lack count as errors. Nothing is chosen by these scores.

    python benchmarks/quality/her2st_lopo.py [--data ../shared/data] [--seeds 3] [--arms ...]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import histoweave as hw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SECTIONS = ("A1", "B1", "C1", "D1", "E1")
LINEAR = {"heads": ("linear",)}
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "no context": {"n_rings": 0},
    "two rings": {"n_rings": 2},
    "linear head alone": {"fusion_options": LINEAR},
    "forest alone": {"fusion_options": {"heads": ("forest",)}},
    "attention": {"fusion": "cross_attention"},
    "decided by accuracy": {"fusion_options": {"decision": "accuracy"}},
    "Potts smoothing": {"fusion_options": {"smoothing": "potts"}},
    "vote smoothing": {"fusion_options": {"smoothing": "vote"}},
    "smoothing over similar spots": {"fusion_options": {"smoothing": "similar"}},
    "masked autoencoder": {"genes": "masked", "gene_options": {"max_epochs": 30}},
}
METRICS = ["macro_f1", "balanced_accuracy", "accuracy", "adjusted_rand"]


def load(folder: Path):
    table = hw.io.to_anndata(
        hw.io.concat([hw.datasets.her2st(section=name, image=False, data_dir=folder) for name in SECTIONS])
    )
    region = table.obs["region"].astype(object)
    table.obs["region"] = region.where(region != "undetermined", None)
    hw.pp.split(table, by="donor", n_folds=len(SECTIONS))
    return table


def scores(truth: np.ndarray, guess: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    classes = sorted(set(truth))
    pooled = hw.metrics.classification(truth, guess, classes=classes)
    each = [hw.metrics.classification(truth[folds == f], guess[folds == f], classes=classes) for f in np.unique(folds)]
    found = {f"pooled {m}": pooled[m] for m in METRICS}
    return found | {f"mean {m}": float(np.mean([s[m] for s in each])) for m in METRICS}


def ours(table, arm: dict[str, Any], seed: int) -> pd.Series:
    model = hw.models.RegionClassifier(image=None, random_state=seed, **arm)
    hw.tl.cross_validate(table, model=model, arms=["gene"], nulls=False, key_added="held_out")
    return table.obs["held_out_predicted"].astype(str)


def by_hand(table) -> pd.Series:
    """Log shares, 2,000 variable genes of the training patients, 50 components, balanced logistic regression."""
    log = table.copy()
    sc.pp.normalize_total(log, target_sum=1e4)
    sc.pp.log1p(log)
    guess = pd.Series(index=table.obs_names, dtype=object)
    labelled = table.obs["region"].notna()
    for fold in table.obs["fold"].unique():
        test = table.obs["fold"] == fold
        known = log[(~test & labelled).to_numpy()].copy()
        sc.pp.highly_variable_genes(known, n_top_genes=2000)
        genes = known.var["highly_variable"].to_numpy()
        model = make_pipeline(StandardScaler(), PCA(50, random_state=0), StandardScaler(),
                              LogisticRegression(class_weight="balanced", max_iter=2000))  # fmt: skip
        model.fit(known.X[:, genes].toarray(), known.obs["region"].astype(str))
        guess[test] = model.predict(log.X[test.to_numpy()][:, genes].toarray())
    return guess


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    hw.settings.progress = False
    table = load(args.data)
    labelled = table.obs["region"].notna().to_numpy()
    truth, folds = table.obs["region"].astype(str).to_numpy()[labelled], table.obs["fold"].astype(str)[labelled]
    print(pd.crosstab(table.obs["region"], table.obs["donor"]).to_markdown())
    rows = [{"arm": "PCA + logistic regression, by hand", "seed": 0}
            | scores(truth, by_hand(table).astype(str).to_numpy()[labelled], folds.to_numpy())]  # fmt: skip
    for seed in range(args.seeds):
        for name in args.arms:
            guess = ours(table, ARMS[name], seed).to_numpy()[labelled]
            rows.append({"arm": name, "seed": seed} | scores(truth, guess, folds.to_numpy()))
    frame = pd.DataFrame(rows)
    mean = frame.groupby("arm", sort=False).mean().drop(columns="seed")
    mean["sd over seeds"] = frame.groupby("arm")["pooled macro_f1"].std()
    print(f"\nmean over {args.seeds} seeds; sd is of pooled macro-F1\n")
    print(mean.round(3).to_markdown())
    model = hw.models.RegionClassifier(image=None)
    nulls = hw.tl.cross_validate(table, model=model, arms=["gene"])
    print("\nthe nulls, mean over patients\n")
    print(nulls.groupby("arm", sort=False)[METRICS].mean().round(3).to_markdown())


if __name__ == "__main__":
    main()
