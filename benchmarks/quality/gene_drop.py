"""A new section without some of the genes: estimated from the others, or filled with zeros.

Encoder and linear head are fitted on some sections with all genes. From the section left out a share of the genes is
removed, at random, several times; it is then predicted as it is (missing genes are estimated) and with columns of zeros
for them. Printed are accuracy and macro-F1 and their loss against the complete section, and by how much zeros lose
more, with the standard error over sections (draws averaged). Simulated sections, and patients of HER2ST (Andersson et
al., 2021) left out one at a time. Nothing is chosen on the section left out.

    python benchmarks/quality/gene_drop.py [--data ../shared/data] [--shares 0.3 0.6] [--draws 5] [--figure drop.png]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import histoweave as hw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SECTIONS = ("A1", "B1", "C1", "D1", "E1")
METRICS = ["accuracy", "macro_f1"]


def encoders(seed: int, epochs: int | None) -> dict[str, Any]:
    options = {"max_epochs": epochs, "random_state": seed}
    return {
        "masked": hw.models.GeneAutoencoder(**options),
        "masked, not centred": hw.models.GeneAutoencoder(centre=False, **options),
        "PCA": hw.models.GenePCA(random_state=seed),
    }


def simulated(n: int) -> Iterator[tuple[str, str, Any, Any]]:
    for seed in range(n):
        adata = hw.datasets.simulate_sections(
            4, n_rows=20, n_cols=20, n_genes=400, n_regions=5, gene_signal=0.6, depth=1000, image=False,
            random_state=seed,
        )  # fmt: skip
        yield "simulated", f"seed {seed}", *_without(adata, "section_4")


def her2st(folder: Path) -> Iterator[tuple[str, str, Any, Any]]:
    adata = hw.io.to_anndata(
        hw.io.concat([hw.datasets.her2st(section=name, image=False, data_dir=folder) for name in SECTIONS])
    )
    region = adata.obs["region"].astype(object)
    adata.obs["region"] = region.where(region != "undetermined", None)
    for section in dict.fromkeys(adata.obs["library_id"].astype(str)):
        yield "HER2ST", section, *_without(adata, section)


def _without(adata: Any, section: str) -> tuple[Any, Any]:
    left_out = (adata.obs["library_id"] == section).to_numpy()
    return adata[~left_out].copy(), adata[left_out].copy()


def one_split(data: str, section: str, train: Any, new: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for arm, encoder in encoders(0, args.epochs).items():
        clf = hw.models.GeneClassifier(encoder.fit(train), n_rings=args.rings).fit(train)
        row = {"data": data, "section": section, "encoder": arm}
        yield row | {"share": 0.0, "missing": "none", "draw": 0} | score(clf, new)
        for share in args.shares:
            for draw in range(args.draws):
                lost = np.random.default_rng(draw).random(new.n_vars) < share
                filled = new.copy()
                counts = (new.layers["counts"] if "counts" in new.layers else new.X).tocsc(copy=True)
                counts.data[np.repeat(lost, np.diff(counts.indptr))] = 0
                filled.X = counts.tocsr()
                filled.layers.pop("counts", None)
                for kind, table in (("estimated", new[:, ~lost].copy()), ("zeros", filled)):
                    yield row | {"share": share, "missing": kind, "draw": draw} | score(clf, table)


def score(clf: Any, table: Any) -> dict[str, float]:
    predicted = clf.predict(table)["predicted"]  # missing where a spot has no counts of the genes left
    rows = (table.obs["region"].isin(clf.classes) & predicted.notna()).to_numpy()
    truth, guess = table.obs["region"].astype(str).to_numpy(), predicted.astype(str).to_numpy()
    found = hw.metrics.classification(truth[rows], guess[rows], classes=clf.classes)
    return {m: found[m] for m in METRICS}


def report(table: pd.DataFrame) -> pd.DataFrame:
    """Return the loss against the complete section, mean over sections and draws."""
    keys = ["data", "section", "encoder"]
    whole = table[table["missing"] == "none"].set_index(keys)[METRICS]
    rest = table[table["missing"] != "none"].join(whole, on=keys, rsuffix="_complete")
    wide = rest.groupby([*keys, "share", "missing"], sort=False)["accuracy"].mean().unstack("missing")
    ahead = (wide["estimated"] - wide["zeros"]).groupby(["data", "encoder", "share"], sort=False).agg(["mean", "sem"])
    print(ahead.round(4).to_markdown(), end="\n\n")
    for m in METRICS:
        rest[f"{m}_lost"] = rest[f"{m}_complete"] - rest[m]
    columns = [c for m in METRICS for c in (f"{m}_complete", m, f"{m}_lost")]
    return rest.groupby(["data", "encoder", "share", "missing"], sort=False)[columns].mean()


def draw(table: pd.DataFrame, path: Path) -> None:
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(table["data"]))
    _, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.5), squeeze=False, layout="compressed")
    for ax, name in zip(axes[0], names, strict=True):
        part = table[table["data"] == name]
        for color, arm in zip(("#0072B2", "#56B4E9", "#E69F00"), dict.fromkeys(part["encoder"]), strict=True):
            for kind, style in (("estimated", "-"), ("zeros", "--")):
                here = part[(part["encoder"] == arm) & part["missing"].isin([kind, "none"])]
                line = here.groupby("share")["accuracy"].mean()
                ax.plot(line.index, line, style, color=color, marker="o", label=f"{arm}, {kind}")
        ax.set(title=name, xlabel="share of genes missing", ylabel="accuracy")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, -1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    plt.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.6])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--simulations", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="of the autoencoder; default: its own rule")
    parser.add_argument("--rings", type=int, default=1)
    parser.add_argument("--simulated-only", action="store_true")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    hw.settings.progress = False
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    splits = [*simulated(args.simulations), *([] if args.simulated_only else her2st(args.data))]
    rows = [row for split in splits for row in one_split(*split, args)]
    table = pd.DataFrame(rows)
    print(report(table).round(3).to_markdown())
    if args.figure:
        draw(table, args.figure)


if __name__ == "__main__":
    main()
