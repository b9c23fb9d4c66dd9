"""How many labels do the layers of the olfactory bulb need, from H&E alone? Random spots against drawn patches.

Sections 01-07 of Stahl et al. (2016) in three groups of animals, each tested in turn by a classifier fitted on a share
of the other groups' labels. Linear heads only, for time's sake.

    python benchmarks/quality/label_efficiency.py [--data ../shared/data] [--seeds 3] [--out curve.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import histoweave as hw

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    hw.settings.progress = False
    sections = [hw.datasets.mob_st(section=i, data_dir=options.data) for i in range(1, 8)]
    adata = hw.io.to_anndata(hw.io.concat(sections))
    adata.obs["fold"] = adata.obs["donor"].astype("category")
    model = hw.models.RegionClassifier(genes=None, fusion_options={"heads": ["linear"]})
    scores = hw.tl.label_efficiency(
        adata, model=model, mode=["spots", "patches"], seeds=range(options.seeds), arms=["image"]
    )
    if options.out:
        hw.pl.label_efficiency(scores)[0].figure.savefig(options.out, dpi=150)
    by_seed = scores.groupby(["mode", "arm", "fraction", "seed"], sort=False)["macro_f1"].mean()
    cells = by_seed.groupby(["mode", "arm", "fraction"], sort=False).agg(["mean", "std"])
    text = cells.apply(lambda c: f"{c['mean']:.3f} +- {c['std']:.3f}", axis=1)
    print(f"Macro-F1, mean over 3 groups left out, +- SD over {options.seeds} seeds, by share of the labels\n")
    print(text.unstack("fraction").reset_index().to_markdown(index=False))
    counts = scores.groupby("fraction")[["n_train", "n_smallest_class"]].mean().round().astype(int)
    print("\nLabelled spots, and those of the class with fewest (means over groups)\n")
    print(counts.T.to_markdown())


if __name__ == "__main__":
    main()
