"""What each part contributes on one real section: HER2ST A1, blocks of tissue held out.

All arms of `hw.tl.ablation` on the labelled spots of A1 (Andersson et al., 2021; `undetermined` left out): image, genes
and both, with and without context, statistics instead of a network trained on the crops without labels, one scale of
crops at a time, and the nulls. Folds are blocks of tissue with a buffer as wide as crops and neighbourhoods reach;
intervals resample blocks of tissue. Stain normalisation has no arm: there is one section. Regions that a fold's
training part lacks count as errors. Nothing is chosen here by the scores.

    python benchmarks/quality/ablation_her2st_a1.py [--data ../shared/data] [--folds 4] [--seeds 3] [--epochs 30]
        [--image simclr] [--report ablation.html]
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import pandas as pd

import histoweave as hw
from histoweave.models._prepare import default_sizes
from histoweave.report import write_ablation

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
COLUMNS = ["kind", "pooled", "low", "high", "mean over folds", "sd over seeds", "difference", "difference_low",
           "difference_high", "fold_difference", "p_value", "p_holm"]  # fmt: skip


def load(folder: Path):
    here = folder / "her2st"
    section = hw.io.read_st(
        here / "counts" / "A1.tsv.gz", spots=here / "spots" / "A1_selection.tsv", image=here / "images" / "A1.png",
        scale=2000 / 6954, labels=here / "labels" / "A1_labeled_coordinates.tsv", library_id="A1", donor="A",
    )  # fmt: skip
    region = section.tables["table"].obs["region"].astype(object)
    section.tables["table"].obs["region"] = region.where(region != "undetermined", None)
    return section


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row an arm, models first, each kind from the best down."""
    metric = scores["metric"].iloc[0]
    by_arm = scores.groupby("arm")[metric]
    over_seeds = scores.groupby(["arm", "seed"])[metric].mean().groupby("arm").std()
    frame = scores.drop_duplicates("arm").set_index("arm")
    frame = frame.assign(**{"mean over folds": by_arm.mean(), "sd over seeds": over_seeds})
    return frame.sort_values(["kind", "pooled"], ascending=[True, False])[COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image", default="simclr", help="method of the image encoder")
    parser.add_argument("--backbone", default="resnet10-narrow")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--metric", default="macro_f1")
    parser.add_argument("--report", type=Path, help="HTML file to write")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)

    section = load(args.data)
    table = section.tables["table"]
    trained = args.image not in ("statistics", "pretrained")
    options = {"backbone": args.backbone, "max_epochs": args.epochs} if trained else {}
    model = hw.models.RegionClassifier(image=args.image, image_options=options)
    hw.pp.crops(section, size_um=default_sizes(section, table), out_px=model.out_px)
    hw.pp.split(section, by="blocks", n_folds=args.folds, n_rings=model.n_rings)
    print(pd.crosstab(table.obs["region"], table.obs["fold"]).to_markdown())
    start = time.perf_counter()
    scores = hw.tl.ablation(
        section, model=model, ablate=["context", "self-supervision", "scales", "stain"], seeds=range(args.seeds),
        metric=args.metric,
    )  # fmt: skip
    print(f"\n{time.perf_counter() - start:.0f} s; resampled: {scores['groups'].iloc[0]}\n")
    print(summary(scores).round(3).to_markdown())
    folds = scores[scores["arm"] == "fused"].drop_duplicates("fold").set_index("fold")
    print("\n" + folds[["n_train", "n", "unseen_classes", "absent_classes"]].to_markdown())
    if args.report:
        print(write_ablation(args.report, scores, title="HER2ST A1: what each part contributes"))


if __name__ == "__main__":
    main()
