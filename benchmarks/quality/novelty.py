"""How often sections are called unlike the training ones: usual sections, another stain, other tissue, chemistry.

`RegionClassifier` is fitted on simulated sections of as many donors, which differ in stain and batch as sections do
by default; then every kind of section is shown to it. `usual` is drawn like the training sections and should be
flagged in 5 % of cases at most (the limit itself is set at 2 %).

    python benchmarks/quality/novelty.py [--seeds 4] [--train 1 2 3 6 12]
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

import histoweave as hw

SHAPE = {"n_rows": 14, "n_cols": 14, "n_regions": 4, "n_genes": 200, "um_per_px": 2.0}
CROPS = {"crops": 110, "crops_context": 300}
N_NEW, N_USUAL = 4, 8  # sections of every kind and seed; more of those whose rare alarms are counted

#: What is changed, and in which modality it can be seen.
KINDS = {
    "stain, 3 times the usual variation": ("image", {"stain_shift": 1.0}),
    "stain, 6 times the usual variation": ("image", {"stain_shift": 2.0}),
    "other tissue: textures": ("image", {"image_regions": [4, 5, 6, 7]}),
    "other chemistry: batch effect 5 times the usual": ("gene", {"batch_effect": 1.0}),
}


def simulated(n: int, seed: int, **knobs):
    sections = hw.datasets.simulate_sections(n, random_state=seed, **SHAPE | knobs)
    hw.pp.crops(sections, size_um=CROPS, out_px=32)
    return sections


def with_genes_of(sections, seed: int):
    """The counts under the names of other genes: depth and noise stay, the tissue's expression does not."""
    out = sections.copy()
    order = np.random.default_rng(seed).permutation(out.n_vars)
    out.layers["counts"] = out.X = out.layers["counts"][:, order].copy()
    return out


def verdicts(seed: int, train: list[int]) -> pd.DataFrame:
    table = simulated(max(train) + N_USUAL, seed)
    library = table.obs["library_id"].astype(str).to_numpy()
    names = list(dict.fromkeys(library))
    usual = table[np.isin(library, names[-N_USUAL:])].copy()
    new = {"usual": usual, "other tissue: expression": with_genes_of(usual, seed)}
    for number, (kind, (_, knobs)) in enumerate(KINDS.items()):
        # the same draw of genes, so that nothing but the knob differs
        new[kind] = simulated(N_NEW, seed if "batch_effect" in knobs else 1000 * (number + 1) + seed, **knobs)
    rows = []
    for k in train:
        clf = hw.models.RegionClassifier(crop_um=CROPS, out_px=32, fusion_options={"heads": "linear"})
        clf.fit(table[np.isin(library, names[:k])].copy())
        for kind, sections in new.items():
            rows.append(clf.novelty(sections).assign(kind=kind, n_train=k, seed=seed))
    return pd.concat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--train", type=int, nargs="+", default=[1, 2, 3, 6, 12])
    args = parser.parse_args()
    hw.settings.progress = False
    found = pd.concat([verdicts(seed, args.train) for seed in range(args.seeds)])
    seen_in = {"other tissue: expression": "gene"} | {kind: modality for kind, (modality, _) in KINDS.items()}
    rows = []
    for (k, kind), part in found.groupby(["n_train", "kind"], sort=False):
        if kind == "usual":  # flagged by either
            flagged, spots = part.groupby(["seed", "section"])["out_of_distribution"].any(), part["novel_spots"].mean()
        else:
            part = part[part["modality"] == seen_in[kind]]
            flagged, spots = part["out_of_distribution"], part["novel_spots"].mean()
        low, high = proportion_confint(flagged.sum(), len(flagged), method="wilson")
        rows.append({"training sections": k, "new sections": kind, "by": seen_in.get(kind, "either"),
                     "flagged": f"{flagged.mean():.2f} ({low:.2f}..{high:.2f})", "n": len(flagged),
                     "spots beyond their limit": round(spots, 3)})  # fmt: skip
    print(pd.DataFrame(rows).to_markdown(index=False))


if __name__ == "__main__":
    main()
