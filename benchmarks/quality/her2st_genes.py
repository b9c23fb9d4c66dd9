"""Regions of HER2-positive breast tumours from counts alone: fit on some patients, predict another.

Labelled sections of Andersson et al. (2021), one patient left out at a time. `undetermined` is left out. Encoders see
the counts of the training patients only. Every embedding goes through the same head: standardised within each
section, with or without the mean of the first ring beside it, balanced logistic regression. Its regularisation, and the
number of principal components, are chosen by leaving one training patient's labels out at a time. A region without
labelled spots among the training patients cannot be predicted: it is named, and its spots are left out of the scores.

`within_macro_f1` asks where an arm loses: the head is fitted on three quarters of the left-out patient's own section
and scored on the fourth, on the same embeddings, whose encoder has not seen the patient. `seen_macro_f1` is the same
within the training patients, whom the encoder has seen. An arm that is ahead there and behind on the patient left out
has learned its patients; one that is level within and behind between loses what it knows on the way.

    python benchmarks/quality/her2st_genes.py [--data ../shared/data] [--seeds 3] [--jobs 2] [--epochs 30] [--no-scvi]
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression

import histoweave as hw
from histoweave.models._sections import SectionScaler
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
METRICS = ["macro_f1", "balanced_accuracy", "accuracy", "adjusted_rand"]
STRENGTHS = (0.001, 0.01, 0.1)  # of the head's regularisation, to choose from
COMPONENTS = (10, 20, 50)  # of the principal components, to choose from
BASE = "PCA"


def load(folder: Path, names: list[str]):
    sections = [hw.datasets.her2st(section=name, image=False, data_dir=folder) for name in names]
    adata = hw.io.to_anndata(hw.io.concat(sections))
    region = adata.obs["region"].astype(object)
    adata.obs["region"] = region.where(region != "undetermined", None)
    return adata


def encoder(arm: str, seed: int, epochs: int, scvi_epochs: int) -> Any:
    """Return an unfitted encoder by the name of its arm."""
    if arm == BASE:
        return hw.models.GenePCA(max(COMPONENTS), random_state=seed)
    if arm == "scVI":
        return hw.models.ScviEncoder(max_epochs=scvi_epochs, random_state=seed)
    _, masking, likelihood = arm.split(", ")
    return hw.models.GeneAutoencoder(
        likelihood=likelihood, masking=masking, max_epochs=epochs, patience=None, random_state=seed
    )


def one_fit(task: tuple[str, str, int], adata: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit one arm without one patient, choose its head on the training patients, score it on the patient left out."""
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # scvi-tools announces every seed
    hw.settings.progress = False
    warnings.simplefilter("ignore")
    patient, arm, seed = task
    donor = adata.obs["donor"].astype(str).to_numpy()
    held_out = donor == patient
    if arm == "library size":
        Z = np.log1p(np.asarray(adata.X.sum(axis=1))).reshape(-1, 1)
    else:
        model = encoder(arm, seed, args.epochs, args.scvi_epochs).fit(adata[~held_out].copy())
        Z = model.embed(adata)
    rings, rows_of = ring_graphs(adata, n_rings=1), hw._resolve.sections(adata)
    widths = [k for k in COMPONENTS if k <= Z.shape[1]] if arm == BASE else [Z.shape[1]]
    views: dict[str, list[np.ndarray]] = {"": [], " + ring": []}
    for k in widths:
        values = SectionScaler().fit(Z[:, :k]).transform(Z[:, :k], rows_of)
        views[""].append(values)
        views[" + ring"].append(context_features(values, rings))
    rows = []
    for context, candidates in views.items():
        (choice, strength), inner = choose(candidates, adata, ~held_out, donor)
        scores = score(candidates[choice], adata, ~held_out, held_out, strength)
        within = {p: within_patient(candidates[choice], adata, donor == p, strength) for p in np.unique(donor)}
        chosen = {
            "width": widths[choice],
            "C": strength,
            "inner_macro_f1": inner,
            "within_macro_f1": within.pop(patient),
        }
        chosen["seen_macro_f1"] = float(np.mean(list(within.values())))
        rows.append({"patient": patient, "seed": seed, "arm": arm + context} | chosen | scores)
    return rows


def choose(candidates: list[np.ndarray], adata: Any, train: np.ndarray, donor: np.ndarray) -> tuple[Any, float]:
    """Return the features and strength with the best mean macro-F1 over training patients left out in turn."""
    found = {}
    for i, X in enumerate(candidates):
        for C in STRENGTHS:
            parts = [score(X, adata, train & (donor != p), train & (donor == p), C) for p in np.unique(donor[train])]
            found[i, C] = float(np.mean([part["macro_f1"] for part in parts]))
    best = max(found, key=found.get)
    return best, found[best]


def score(X: np.ndarray, adata: Any, train: np.ndarray, test: np.ndarray, C: float) -> dict[str, float]:
    """Fit the head on the labelled rows of one mask and score it on another's whose region it knows."""
    y = adata.obs["region"].astype(object)
    measured = y.notna().to_numpy() & ~np.isnan(X).any(axis=1)
    y = y.astype(str).to_numpy()
    fit = train & measured
    head = LogisticRegression(C=C, class_weight="balanced", max_iter=300, tol=1e-3).fit(X[fit], y[fit])
    rows = test & measured & np.isin(y, head.classes_)
    found = hw.metrics.classification(y[rows], head.predict(X[rows]), classes=list(head.classes_))
    return {name: found[name] for name in METRICS}


def within_patient(X: np.ndarray, adata: Any, rows: np.ndarray, C: float) -> float:
    """Return the mean macro-F1 over quarters of a section, each left out in turn where the rest has two regions."""
    xy, y = adata.obsm["spatial"], adata.obs["region"]
    right, low = (xy[:, i] > np.median(xy[rows, i]) for i in (0, 1))
    quarters = [rows & (right == a) & (low == b) for a in (False, True) for b in (False, True)]
    pairs = [(rows & ~quarter, quarter) for quarter in quarters]
    pairs = [(rest, q) for rest, q in pairs if y[rest].nunique() > 1 and y[q].isin(y[rest].dropna()).any()]
    return float(np.mean([score(X, adata, rest, quarter, C)["macro_f1"] for rest, quarter in pairs]))


def majority(adata: Any, patient: str) -> dict[str, Any]:
    """Score the most frequent region of the training patients, and say which regions they lack."""
    donor, y = adata.obs["donor"].astype(str).to_numpy(), adata.obs["region"].astype(object).to_numpy()
    labelled = adata.obs["region"].notna().to_numpy()
    train, test = labelled & (donor != patient), labelled & (donor == patient)
    known = sorted(set(y[train]))
    unseen = sorted(set(y[test]) - set(known))
    if unseen:
        print(f"\nPatient {patient}: no training spots of {', '.join(unseen)}; its spots are left out of the scores.")
    test &= np.isin(y.astype(str), known)
    guess = np.full(test.sum(), pd.Series(y[train]).value_counts().index[0], dtype=object)
    scores = hw.metrics.classification(y[test].astype(str), guess.astype(str), classes=known)
    return {"patient": patient, "seed": 0, "arm": "majority"} | {m: scores[m] for m in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the masked autoencoder")
    parser.add_argument("--scvi-epochs", type=int, default=40)
    parser.add_argument("--likelihoods", nargs="+", default=["mse"])
    parser.add_argument("--no-scvi", action="store_true")
    parser.add_argument("--sections", nargs="+", default=["A1", "B1", "C1", "D1", "E1"])
    parser.add_argument("--out", type=Path, help="CSV of all scores")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes that are started below
    warnings.simplefilter("ignore")
    adata = load(args.data, args.sections)
    labelled = adata.obs.loc[adata.obs["region"].notna()]
    print(pd.crosstab(labelled["donor"], labelled["region"]).to_markdown())
    patients = list(dict.fromkeys(adata.obs["donor"].astype(str)))
    rows = [majority(adata, patient) for patient in patients]
    masked = [f"masked, {m}, {k}" for k in args.likelihoods for m in ("random", "programme", "mixed")]
    random = [BASE, *masked, *([] if args.no_scvi else ["scVI"])]
    tasks = [(p, "library size", 0) for p in patients]
    tasks += [(p, arm, seed) for seed in range(args.seeds) for arm in random for p in patients]
    with ProcessPoolExecutor(args.jobs) as pool:
        for i, (task, found) in enumerate(
            zip(tasks, pool.map(partial(one_fit, adata=adata, args=args), tasks), strict=True)
        ):
            rows += found
            if (i + 1) % len(patients) == 0:
                print(f"{i + 1} of {len(tasks)} fits done ({task[1]}, seed {task[2]})", flush=True)
                if args.out:
                    pd.DataFrame(rows).to_csv(args.out, index=False)
    report(pd.DataFrame(rows), args)


def report(table: pd.DataFrame, args: argparse.Namespace) -> None:
    print(f"\nmean over {table['patient'].nunique()} patients and {args.seeds} seeds; masked: {args.epochs} epochs, ")
    print(f"the best by loss on held-out spots; scVI: {args.scvi_epochs} epochs\n")
    columns = [*METRICS, "inner_macro_f1", "within_macro_f1", "seen_macro_f1"]
    per_patient = table.groupby(["arm", "patient"], sort=False)[columns].mean()
    mean = per_patient.groupby("arm", sort=False).mean()
    over_seeds = table.groupby(["arm", "seed"], sort=False)["macro_f1"].mean().groupby("arm").std()
    print(mean.assign(seed_sd=over_seeds).round(3).to_markdown())
    print("\nmacro-F1 by patient (mean over seeds)\n")
    wide = per_patient["macro_f1"].unstack("arm")
    print(wide.T.loc[mean.index].round(3).to_markdown())
    print(f"\nmacro-F1 against {BASE}, paired by patient (mean over seeds), the same context\n")
    rows = []
    for arm in mean.index:
        base = f"{BASE} + ring" if arm.endswith("+ ring") else BASE
        if arm not in (base, "majority"):
            gap = wide[arm] - wide[base]
            half = stats.t.ppf(0.975, len(gap) - 1) * gap.std() / np.sqrt(len(gap))
            interval = f"{gap.mean() - half:+.3f}..{gap.mean() + half:+.3f}"
            rows.append({"arm": arm, "difference": f"{gap.mean():+.3f}", "95 % interval": interval,
                         "better in": f"{(gap > 0).sum()} of {len(gap)}"})  # fmt: skip
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
