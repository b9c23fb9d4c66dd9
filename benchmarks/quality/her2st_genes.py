"""Regions of HER2-positive breast tumours from counts alone: fit on some patients, predict another.

Labelled sections of Andersson et al. (2021), one patient left out at a time. `undetermined` is left out. Encoders see
the training patients only. Every embedding goes through the same head: standardised within each section, balanced
logistic regression with its regularisation fixed. A region without labelled spots among the training patients
cannot be predicted: it is named, and macro-F1 is over the others. Nothing is chosen on test patients.

    python benchmarks/quality/her2st_genes.py [--data ../shared/data] [--seeds 3] [--scvi] [--sections A1 B1 ...]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

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


def load(folder: Path, names: list[str]):
    sections = [hw.datasets.her2st(section=name, image=False, data_dir=folder) for name in names]
    adata = hw.io.to_anndata(hw.io.concat(sections))
    region = adata.obs["region"].astype(object)
    adata.obs["region"] = region.where(region != "undetermined", None)
    return adata


def encoders(seed: int, with_scvi: bool, max_epochs: int | None) -> dict[str, object]:
    found = {"PCA": hw.models.GenePCA(50, random_state=seed)}
    found["PCA, depth 3,000"] = hw.models.GenePCA(50, target_sum=3e3, random_state=seed)
    for likelihood in ("mse", "nb"):
        for masking in ("random", "programme", "mixed"):
            found[f"masked, {masking}, {likelihood}"] = hw.models.GeneAutoencoder(
                likelihood=likelihood, masking=masking, max_epochs=max_epochs, random_state=seed
            )
    if with_scvi:
        found["scVI"] = hw.models.ScviEncoder(max_epochs=max_epochs, random_state=seed)
    return found


def features(adata, held_out: np.ndarray, seed: int, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Embeddings, standardised within each section, alone and beside the mean of the first ring."""
    rings, rows_of = ring_graphs(adata, n_rings=1), hw._resolve.sections(adata)
    depth = np.log1p(np.asarray(adata.X.sum(axis=1))).reshape(-1, 1)
    found = {"library size": depth}
    for name, encoder in encoders(seed, args.scvi, args.epochs).items():
        encoder.fit(adata[~held_out].copy())
        found[name] = encoder.embed(adata)
    out = {}
    for name, values in found.items():
        values = SectionScaler().fit(values).transform(values, rows_of)
        out[name] = values
        out[f"{name} + ring"] = context_features(values, rings)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scvi", action="store_true")
    parser.add_argument("--sections", nargs="+", default=["A1", "B1", "C1", "D1", "E1"])
    parser.add_argument("--epochs", type=int, help="epochs of every network; default: each model's own rule")
    parser.add_argument("--out", type=Path, help="CSV of all scores")
    args = parser.parse_args()
    hw.settings.progress = False
    warnings.simplefilter("ignore")
    adata = load(args.data, args.sections)
    y, donor = adata.obs["region"].astype(object).to_numpy(), adata.obs["donor"].astype(str).to_numpy()
    labelled = adata.obs["region"].notna().to_numpy()
    print(pd.crosstab(pd.Series(donor[labelled], name="patient"), pd.Series(y[labelled], name="region")).to_markdown())
    rows = []
    for patient in dict.fromkeys(donor):
        held_out = donor == patient
        train, test = labelled & ~held_out, labelled & held_out
        known = sorted(set(y[train]))
        unseen = sorted(set(y[test]) - set(known))
        if unseen:
            print(f"\nPatient {patient}: no training spots of {', '.join(unseen)}; left out of the scores.")
        test &= np.isin(y.astype(str), known)
        majority = pd.Series(y[train]).value_counts().index[0]
        for seed in range(args.seeds):
            guesses = {"majority": np.full(test.sum(), majority, dtype=object)}
            for name, X in features(adata, held_out, seed, args).items():
                usable = ~np.isnan(X).any(axis=1)
                head = LogisticRegression(C=0.01, class_weight="balanced", max_iter=3000)
                head.fit(X[train & usable], y[train & usable].astype(str))
                guesses[name] = head.predict(np.nan_to_num(X[test])).astype(object)
            for arm, guess in guesses.items():
                scores = hw.metrics.classification(y[test].astype(str), guess.astype(str), classes=known)
                rows.append({"patient": patient, "seed": seed, "arm": arm} | {m: scores[m] for m in METRICS})
    report(pd.DataFrame(rows), args)


def report(table: pd.DataFrame, args: argparse.Namespace) -> None:
    if args.out:
        table.to_csv(args.out, index=False)
    print(f"\nmean over {table['patient'].nunique()} patients and {args.seeds} seeds\n")
    mean = table.groupby("arm", sort=False)[METRICS].mean()
    over_seeds = table.groupby(["arm", "seed"], sort=False)["macro_f1"].mean().groupby("arm").std()
    print(mean.assign(seed_sd=over_seeds).round(3).to_markdown())
    print("\nmacro-F1 against PCA, paired by patient (mean over seeds), the same context\n")
    wide = table.groupby(["patient", "arm"])["macro_f1"].mean().unstack()
    rows = []
    for arm in mean.index:
        base = "PCA + ring" if arm.endswith("+ ring") else "PCA"
        if arm not in (base, "majority"):
            gap = wide[arm] - wide[base]
            half = stats.t.ppf(0.975, len(gap) - 1) * gap.std() / np.sqrt(len(gap))
            interval = f"{gap.mean() - half:+.3f}..{gap.mean() + half:+.3f}"
            rows.append({"arm": arm, "difference": f"{gap.mean():+.3f}", "95 % interval": interval,
                         "better in": f"{(gap > 0).sum()} of {len(gap)}"})  # fmt: skip
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
