"""Predict hidden genes of HER2-positive breast tumours, one patient left out at a time.

Labelled sections of Andersson et al. (2021); labels are not used. The masked autoencoder is fitted on the other
patients and predicts each gene of the patient left out from the other genes of its spot, a fifth hidden at a time.
Beside it stand two nulls that see the patient's own values of that gene: its mean over the section and over the spot's
neighbours, which are leave-one-out as well. Correlations are over the spots of a section, then averaged over genes.

    python benchmarks/quality/her2st_imputation.py [--data ../shared/data] [--epochs 30] [--likelihoods mse nb]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import histoweave as hw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
METRICS = ["pearson", "spearman", "rmse"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sections", nargs="+", default=["A1", "B1", "C1", "D1", "E1"])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--likelihoods", nargs="+", default=["mse"])
    parser.add_argument("--out", type=Path, help="CSV of all scores")
    args = parser.parse_args()
    hw.settings.progress = False
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sections = [hw.datasets.her2st(section=name, image=False, data_dir=args.data) for name in args.sections]
    adata = hw.io.to_anndata(hw.io.concat(sections))
    donor, frames = adata.obs["donor"].astype(str).to_numpy(), []
    for patient in dict.fromkeys(donor):
        new = adata[donor == patient].copy()
        seen = np.asarray((new.X > 0).mean(axis=0)).ravel()
        for likelihood in args.likelihoods:
            model = hw.models.GeneAutoencoder(likelihood=likelihood, max_epochs=args.epochs, patience=None)
            scores = hw.tl.impute(new, model=model.fit(adata[donor != patient].copy()))
            scores["seen"] = pd.Series(seen, index=new.var_names)[scores["gene"]].to_numpy()
            scores["method"] = scores["method"].replace("model", f"masked, {likelihood}")
            frames.append(scores.assign(patient=patient))
            print(f"{patient}, {likelihood}: done", flush=True)
    table = pd.concat(frames).drop_duplicates(["patient", "section", "gene", "method"])
    if args.out:
        table.to_csv(args.out, index=False)
    report(table)


def report(table: pd.DataFrame) -> None:
    groups = {"all genes of the model": table, "genes seen in a quarter of the spots": table[table["seen"] > 0.25]}
    for name, part in groups.items():
        print(f"\n{name} ({part.groupby('patient')['gene'].nunique().mean():.0f} a patient), mean over patients\n")
        by_patient = part.groupby(["method", "patient"], sort=False)[METRICS].mean()
        print(by_patient.groupby("method", sort=False).mean().round(3).to_markdown())
        print("\nPearson by patient\n")
        print(by_patient["pearson"].unstack("patient").round(3).to_markdown())
        wide = part.pivot_table(index=["patient", "gene"], columns="method", values="pearson")
        for method in (m for m in wide if m.startswith("masked")):
            better = (wide[method] > wide["neighbour mean"]).groupby("patient").mean()
            print(f"\n{method}: share of genes above the neighbours' mean, by patient: {better.round(2).to_dict()}")


if __name__ == "__main__":
    main()
