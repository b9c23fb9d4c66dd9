"""Layers of the mouse olfactory bulb from H&E alone: fit on some animals, predict others.

Sections 01-07 of Stahl et al. (2016) in three groups of animals; a group is never split. The default
`RegionClassifier`, plain and with its answers smoothed over the spots of a section that look alike, stands beside
floors that anyone can build in an hour: two-scale colour statistics with a random forest, the same with the
probabilities averaged over neighbours, and the majority. A split that leaks, of single spots, says how well these
labels can be told at all. The default crop scales were chosen within group A, so
B, C -> A is not independent of that choice.

    python benchmarks/quality/mob_groups.py [--data ../shared/data] [--seeds 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold

import histoweave as hw
from histoweave.pp._graph import ring_graphs

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DESIGNS = {"A -> B, C": ("A", "BC"), "B, C -> A": ("BC", "A"), "A, C -> B": ("AC", "B"), "A, B -> C": ("AB", "C")}
ARMS = {"histoweave RegionClassifier": {}, "the same, smoothed over similar spots": {"smoothing": "similar"}}
METRICS = ["macro_f1", "accuracy", "balanced_accuracy", "adjusted_rand", "log_loss", "ece"]


def load(folder: Path):
    sections = [hw.datasets.mob_st(section=i, data_dir=folder) for i in range(1, 8)]
    adata = hw.io.to_anndata(hw.io.concat(sections))
    hw.pp.crops(adata, size_um={"crops_detail": 110, "crops": 220, "crops_context": 600})
    return adata


def colour_statistics(adata) -> np.ndarray:
    """Mean and SD of R, G, B of the own and the wider crop, standardised within each section."""
    blocks = []
    for key in ("crops", "crops_context"):
        pixels = adata.obsm[key].reshape(adata.n_obs, -1, 3).astype(np.float32)
        blocks += [pixels.mean(axis=1), pixels.std(axis=1)]
    values = pd.DataFrame(np.concatenate(blocks, axis=1))
    groups = values.groupby(adata.obs["library_id"].astype(str).to_numpy())
    return ((values - groups.transform("mean")) / groups.transform("std")).to_numpy()


def floors(adata, X: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    y = adata.obs["region"].astype(str).to_numpy()
    forest = RandomForestClassifier(500, min_samples_leaf=2, class_weight="balanced_subsample", random_state=seed,
                                    n_jobs=-1).fit(X[train], y[train])  # fmt: skip
    p = forest.predict_proba(X)
    ring = ring_graphs(adata, n_rings=1)[0].astype(float)
    neighbours = (ring @ p + p) / (ring.sum(axis=1) + 1)
    share = pd.Series(y[train]).value_counts(normalize=True).reindex(forest.classes_).to_numpy()
    return {
        "colour statistics + random forest": p[test],
        "the same + neighbour means": np.asarray(neighbours)[test],
        "majority": np.tile(share, (test.sum(), 1)),
    }


def ceiling(adata, seed: int) -> float:
    """Macro-F1 of spots held out at random, the labels of all others known, also those beside them in their section."""
    known = np.flatnonzero(adata.obs["region"].notna())
    y = adata.obs["region"].astype(str).to_numpy()
    guess = y.copy()
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(known, y[known]):
        part = adata.copy()
        part.obs["region"] = adata.obs["region"].where(np.isin(np.arange(adata.n_obs), known[train]))
        clf = hw.models.RegionClassifier(random_state=seed).fit(part)
        guess[known[test]] = clf.predict_proba(part).iloc[known[test]].idxmax(axis=1)
    return hw.metrics.classification(y[known], guess[known])["macro_f1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    hw.settings.progress = False
    adata = load(args.data)
    X = colour_statistics(adata)
    y, donor = adata.obs["region"].astype(str).to_numpy(), adata.obs["donor"].astype(str).to_numpy()
    labelled = adata.obs["region"].notna().to_numpy()
    rows = []
    for design, (known, asked) in DESIGNS.items():
        here, there = np.isin(donor, list(known)), np.isin(donor, list(asked))
        train, test = here & labelled, there & labelled
        for seed in range(args.seeds):
            found = {}
            for arm, options in ARMS.items():
                clf = hw.models.RegionClassifier(random_state=seed, fusion_options=options).fit(adata[here].copy())
                found[arm] = clf.predict_proba(adata[there].copy()).loc[adata.obs_names[test]].to_numpy()
            found |= floors(adata, X, train, test, seed)
            for arm, values in found.items():
                guess = np.asarray(clf.classes)[values.argmax(axis=1)]
                scores = hw.metrics.classification(y[test], guess, values, classes=clf.classes)
                rows.append({"design": design, "arm": arm, "seed": seed} | {m: scores[m] for m in METRICS})
            if seed == 0:
                guess = np.asarray(clf.classes)[found[next(iter(ARMS))].argmax(axis=1)]
                per_class = hw.metrics.per_class(y[test], guess)
                print(f"\n{design}: F1 by layer, seed 0")
                print(per_class[["f1", "precision", "recall", "support"]].round(3).to_markdown())
    table = pd.DataFrame(rows)
    mean, sd = (table.groupby(["design", "arm"], sort=False)[METRICS].agg(f) for f in ("mean", "std"))
    print(f"\nmean over {args.seeds} seeds (SD of macro-F1 over seeds)\n")
    print(mean.assign(sd=sd["macro_f1"]).round(3).reset_index().to_markdown(index=False))
    print(f"\nspots held out at random, which leaks, as a ceiling: macro-F1 {ceiling(adata, 0):.3f}")


if __name__ == "__main__":
    main()
