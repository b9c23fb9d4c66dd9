"""Does the ablation say who contributes, where that is known? Simulated sections of four patients, one left out.

Three designs. `complementary`: the image tells regions 1 and 2 apart but not 3 and 4, the genes 3 and 4 but not 1
and 2, so that each alone must fail on one pair and both together on none. `image is noise` and `genes are noise`: one
modality does not depend on the region, and the fusion should lose less than 0.01 macro-F1 to the other alone.
Every design is simulated with several seeds, which are also those of the classifier; `sd` is over them.

    python benchmarks/quality/ablation_simulated.py [--seeds 5] [--spots 18] [--methods stack concat gated]
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd

import histoweave as hw

DESIGNS = {
    "complementary": {"image_regions": [0, 1, 2, 2], "gene_regions": [0, 0, 1, 2]},
    "image is noise": {"image_signal": 0.0},
    "genes are noise": {"gene_signal": 0.0},
}
PAIRS = {"regions 1, 2": ["region_1", "region_2"], "regions 3, 4": ["region_3", "region_4"]}


def one_design(design: str, method: str, seed: int, args: argparse.Namespace) -> pd.DataFrame:
    """Return one row an arm: macro-F1 of all held-out spots, its interval, and F1 by pair of regions."""
    table = hw.datasets.simulate_sections(
        4, n_rows=args.spots, n_cols=args.spots, stain_shift=0.5, batch_effect=0.3, labelled_fraction=0.3,
        random_state=seed, **DESIGNS[design],
    )  # fmt: skip
    hw.pp.crops(table, size_um={"crops_detail": 55, "crops": 110, "crops_context": 300}, out_px=64)
    table.uns["spatial"] = {}  # the pictures are not needed any more
    hw.pp.split(table, by="donor", n_folds=4)
    model = hw.models.RegionClassifier(fusion=method)
    full = design == "complementary" and method == "stack"
    scores = hw.tl.ablation(
        table, model=model, ablate=["context"] if full else [], nulls=full, seeds=[seed], key_added="held_out"
    )
    labelled = table.obs["region"].notna().to_numpy()
    truth = table.obs["region"][labelled].astype(str)
    rows = scores.drop_duplicates("arm").set_index("arm")[["kind", "pooled", "low", "high", "difference"]]
    for arm in rows.index:
        guess = table.obsm["held_out"].loc[labelled, f"{arm}, seed {seed}"].astype(str)
        f1 = hw.metrics.per_class(truth, guess)["f1"]
        for name, regions in PAIRS.items():
            rows.loc[arm, name] = f1[regions].mean() if arm != "permuted labels" else np.nan
    return rows.reset_index().assign(design=design, method=method, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--spots", type=int, default=18, help="rows and columns of each section")
    parser.add_argument("--methods", nargs="+", default=["stack"], help="fusion methods")
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    hw.settings.progress = False
    parts = []
    for design in args.designs:
        for method in args.methods:
            for seed in range(args.seeds):
                parts.append(one_design(design, method, seed, args))
                print(f"{design}, {method}, seed {seed} done", flush=True)
    table = pd.concat(parts)
    columns = ["pooled", "low", "high", *PAIRS]
    by_arm = table.groupby(["design", "method", "arm"], sort=False)
    mean = by_arm[columns].mean().assign(sd=by_arm["pooled"].std())
    print("\nmacro-F1 of all held-out spots (low, high: mean bounds of the bootstrap over 4 donors), F1 by pair\n")
    print(mean.round(3).reset_index().to_markdown(index=False))
    print("\nFusion against the better single modality, macro-F1 by seed\n")
    wide = table.pivot_table(index=["design", "method", "seed"], columns="arm", values="pooled")
    loss = wide[["image", "gene"]].max(axis=1) - wide["fused"]
    by_design = loss.groupby(["design", "method"], sort=False)
    frame = pd.DataFrame({"mean loss": by_design.mean(), "sd": by_design.std(), "worst": by_design.max()})
    print(frame.round(4).reset_index().to_markdown(index=False))


if __name__ == "__main__":
    main()
