"""Do suggested spots teach more than random ones? Rounds of labels, simulated and on the olfactory bulb.

A round asks for labels, fits logistic regression on the embeddings with context of all labels so far, and asks again.
A quarter of the spots of the labelled sections is never asked for: the map is scored there, and on sections of other
donors. All arms of a seed share sections, embeddings and reserved spots. `hw.tl.suggest_labels` was designed on
simulated seeds below 100; those printed here are from 100 on, and nothing was chosen on the olfactory bulb.

    python benchmarks/quality/suggest_labels.py [--data ../shared/data] [--seeds 6] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

import histoweave as hw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BUDGETS = (10, 20, 30, 50)
FIRST_SEED = 100
SIMULATED = {
    "simulated, 6 regions": {"n_regions": 6, "gene_signal": 0.4},
    "simulated, 8 regions": {"n_regions": 8, "gene_signal": 0.5},
    "simulated, layers": {"n_regions": 5, "gene_signal": 0.35, "layout": "layers"},
}
REAL = "olfactory bulb, H&E"
ARMS = ("suggested", "diversity alone", "uncertainty alone", "random")


@cache
def olfactory_bulb(folder: Path):
    sections = [hw.datasets.mob_st(section=i, data_dir=folder) for i in range(1, 8)]
    adata = hw.io.to_anndata(hw.io.concat(sections))
    scales = {"crops_detail": 110, "crops": 220, "crops_context": 600}
    hw.pp.crops(adata, size_um=scales)
    hw.tl.image_encoder(adata, crops_key=list(scales))
    for key in scales:
        del adata.obsm[key]
    return adata[adata.obs["region"].notna()].copy()


def load(task: str, seed: int, folder: Path):
    """A table with one embedding and its context; ``new`` marks the sections that are never labelled."""
    if task == REAL:
        adata = olfactory_bulb(folder).copy()
        key, adata.obs["new"] = "X_image", (adata.obs["donor"] != "A").to_numpy()
    else:
        options = {"n_rows": 24, "n_cols": 24, "n_genes": 200, "image": False} | SIMULATED[task]
        adata = hw.datasets.simulate_sections(3, random_state=seed, **options)
        hw.tl.gene_encoder(adata, method="pca", n_components=30)
        key, adata.obs["new"] = "X_gene", (adata.obs["library_id"] == "section_3").to_numpy()
    hw.pp.spatial_context(adata, keys=key, n_rings=1)
    adata.obs["truth"] = adata.obs["region"].astype(str)
    adata.obs["reserved"] = np.random.default_rng(seed).random(adata.n_obs) < 0.25
    adata.obs["askable"] = ~adata.obs["new"] & ~adata.obs["reserved"]
    return adata


def ask(adata, arm: str, n: int, rng: np.random.Generator) -> list[str]:
    """Names of the spots that an arm wants labelled next."""
    free = adata.obs["askable"] & adata.obs["region"].isna()
    probability = adata.obsm.get("region_probability")
    if arm == "random" or (arm == "uncertainty alone" and probability is None):
        return list(rng.choice(adata.obs_names[free], n, replace=False))
    if arm == "uncertainty alone":
        second, first = np.sort(probability[free].to_numpy(), axis=1)[:, -2:].T
        return list(adata.obs_names[free][np.argsort(first - second, kind="stable")[:n]])
    if arm == "diversity alone":
        adata = adata.copy()
        adata.obsm.pop("region_probability", None)
    return list(hw.tl.suggest_labels(adata, n=n, mask_key="askable").index)


def fit_and_map(adata, seed: int) -> np.ndarray:
    """Predict every spot from the labels so far; logistic regression only, for time's sake."""
    key = next(key for key in ("X_image_context", "X_gene_context") if key in adata.obsm)
    features = {"own": adata.obsm[key]}
    clf = hw.models.FusionClassifier(heads="linear", random_state=seed).fit(features, adata.obs["region"].to_numpy())
    p = clf.predict_proba(features)
    adata.obsm["region_probability"] = pd.DataFrame(p, index=adata.obs_names, columns=clf.classes)
    return clf.predict(features)["predicted"].to_numpy()


def run(task: str, seed: int, folder: Path) -> list[dict]:
    hw.settings.progress = False
    warnings.simplefilter("ignore")
    rows, whole = [], load(task, seed, folder)
    where = {"own": ~whole.obs["new"] & whole.obs["reserved"], "new": whole.obs["new"]}
    for arm in ARMS:
        adata, rng = whole.copy(), np.random.default_rng([seed, 1])
        adata.obs["region"] = pd.Series(None, index=adata.obs_names, dtype=object)
        for budget in BUDGETS:
            chosen = ask(adata, arm, budget - int(adata.obs["region"].notna().sum()), rng)
            adata.obs.loc[chosen, "region"] = adata.obs.loc[chosen, "truth"]
            seen = adata.obs["region"].nunique()
            guess = fit_and_map(adata, seed) if seen > 1 else adata.obs["region"].dropna().iloc[0]
            guess = pd.Series(guess, index=adata.obs_names)
            for place, mask in where.items():
                score = hw.metrics.classification(adata.obs["truth"][mask], guess[mask])["macro_f1"]
                about = {"task": task, "seed": seed, "arm": arm, "labels": budget, "scored on": place}
                rows.append(about | {"macro_f1": score})
    return rows


def tables(scores: pd.DataFrame) -> list[pd.DataFrame]:
    """Mean and SD over seeds; and differences to random, paired by seed, with 95 % t intervals."""
    from scipy.stats import t

    keys = ["task", "scored on", "labels"]
    levels, gaps = {}, {}
    for (*about, arm), part in scores.groupby([*keys, "arm"], sort=False):
        own = part.set_index("seed")["macro_f1"]
        levels[*about, arm] = f"{own.mean():.3f} +- {own.std():.3f}"
        same = (scores[keys] == about).all(axis=1) & (scores["arm"] == "random")
        gap = own - scores[same].set_index("seed")["macro_f1"]
        half = t.ppf(0.975, len(gap) - 1) * gap.std() / np.sqrt(len(gap))
        low, high = gap.mean() - half, gap.mean() + half
        gaps[*about, arm] = f"{gap.mean():+.3f} ({low:+.3f}..{high:+.3f}), {(gap > 0).sum()} of {len(gap)}"
    gaps = {key: text for key, text in gaps.items() if key[-1] != "random"}
    series = [pd.Series(found).rename_axis([*keys, "arm"]) for found in (levels, gaps)]
    # sorted and put back in order: `unstack(sort=False)` of pandas 2 puts values of an unsorted index in wrong cells
    return [found.unstack("labels").reindex(found.index.droplevel("labels").unique()).reset_index() for found in series]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", default=[*SIMULATED, REAL])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
        parts = [pool.submit(run, task, seed, options.data) for task, seed in product(options.tasks, seeds)]
        scores = pd.DataFrame([row for part in parts for row in part.result()])
    print(f"Macro-F1 by number of labels, mean and SD over {options.seeds} seeds\n")
    levels, gaps = tables(scores)
    print(levels.to_markdown(index=False))
    print("\nDifference to random spots, paired by seed: mean, 95 % interval, seeds in which it is better\n")
    print(gaps.to_markdown(index=False))


if __name__ == "__main__":
    main()
