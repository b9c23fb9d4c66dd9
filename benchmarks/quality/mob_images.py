"""Does self-supervision help where labels are few? Layers of the mouse olfactory bulb from H&E alone.

Sections 01-07 of Stahl et al. (2016) in three groups of animals, without expression. Each group is tested in turn;
encoders learn, without labels, from the crops of the other groups and of two unlabelled arrays of another
laboratory, and classifiers from a share of the other groups' labels. Of the two arrays expression is known, and
`gene_regression` and `gene_contrast` learn from it as well. All networks are the same small ResNet with the same short
training, so that two cores finish in some hours; all arms see the same crops of one scale. In the design "wide" they
are three array pitches wide, the stain of sections is brought to one look, views keep what lies in the middle of a crop
in the middle, since that is what the label is of, and classifiers are trained twice as long; all this was chosen while
scores of groups A and C were seen, B had no part in it. In the design "narrow" crops are a little wider than a pitch
and all else is as it is by default. That trees are fit to bring the statistics to expression was found between groups B
and C; A had no part in it.

    python benchmarks/quality/mob_images.py --cache FOLDER [--data ../shared/data] [--seeds 3] [--jobs 2]

The cache keeps encoders and scores: an interrupted run goes on where it stopped, and more methods or seeds add to it.
"""

from __future__ import annotations

import argparse
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

import histoweave as hw
from histoweave.loaders import Augmentation

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GROUPS = ("A", "B", "C")
METHODS = ("gene_regression", "gene_contrast", "simclr", "vicreg", "byol", "simsiam", "inpaint", "colorize")
FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
BACKBONE, BATCH = "resnet10-narrow", 128
COLOURS = {"stain": 0.15, "brightness": 0.1, "saturation": 0.2, "grey": 0.1}
VIEWS, LIGHT = Augmentation(scale=(0.7, 1.0), blur=0.2, **COLOURS), Augmentation(scale=(0.9, 1.0), blur=0.1, **COLOURS)
DESIGNS = {
    "wide": {
        "crops": {"size_um": 600, "out_px": 64}, "stain": True, "encoder": {"augmentation": VIEWS},
        "classifier": {"n_steps": 600, "augmentation": LIGHT},
    },
    "narrow": {"crops": {"size_um": 220, "out_px": 48}, "stain": False, "encoder": {}, "classifier": {}},
}  # fmt: skip


@lru_cache(maxsize=1)  # each worker process reads the sections once
def load(folder: Path, design: str):
    """All sections in one table; the folds are the groups, and the unlabelled arrays belong to none."""
    sections = [hw.datasets.mob_st(section=i, data_dir=folder) for i in range(1, 8)]
    arrays = []
    for name in ("MOB1", "MOB2"):
        source = folder / "mob_st" / "unlabelled" / name
        spots, image = source.with_name(f"alignment_table_{name}.tsv"), source.with_suffix(".jpg")
        about = {"spots": spots, "image": image, "library_id": name, "pitch_um": 141.4}
        sections.append(hw.io.read_st(**about))
        arrays.append(hw.io.read_st(**about, counts=source.with_suffix(".tsv")))
    adata, measured = (hw.io.to_anndata(hw.io.concat(parts)) for parts in (sections, arrays))
    hw.tl.gene_encoder(measured, n_components=20)
    genes = pd.DataFrame(measured.obsm["X_gene"], index=measured.obs_names)
    adata.obsm["X_gene"] = genes.reindex(adata.obs_names).to_numpy()
    hw.pp.crops(adata, **DESIGNS[design]["crops"])
    if DESIGNS[design]["stain"]:
        hw.pp.stain_normalize(adata, method="section")
    adata.obs["fold"] = adata.obs["donor"].astype("category")
    return adata


def compare(adata, methods, seeds, folds, options: argparse.Namespace) -> pd.DataFrame:
    arms = ["linear", "context", "combined", "fine_tune"] if set(methods) - {"scratch"} else []
    found = hw.tl.compare_image_training(
        adata, methods=[m for m in methods if m != "scratch"], arms=[*arms, *(["scratch"] * ("scratch" in methods))],
        fractions=options.fractions, seeds=seeds, folds=folds, backbone=BACKBONE, cache_dir=options.cache,
        encoder_options={"max_epochs": options.epochs, "batch_size": BATCH} | DESIGNS[options.design]["encoder"],
        classifier_options=DESIGNS[options.design]["classifier"],
    )  # fmt: skip
    return found


def one_part(options: argparse.Namespace, method: str, seed: int, fold: str) -> pd.DataFrame:
    """Return the scores of one method, seed and fold, and keep them in the cache."""
    hw.settings.progress = False
    warnings.simplefilter("ignore")
    return compare(load(options.data, options.design), [method], [seed], [fold], options)


def table(scores: pd.DataFrame) -> str:
    """Mean macro-F1 over folds, and its standard deviation over seeds, by arm and share of the labels."""
    by_seed = scores.groupby(["arm", "fraction", "seed"], sort=False)["macro_f1"].mean()
    cells = by_seed.groupby(["arm", "fraction"], sort=False).agg(["mean", "std"])
    text = cells.apply(lambda c: f"{c['mean']:.3f} +- {c['std']:.3f}", axis=1)
    return text.unstack("fraction").to_markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--design", choices=list(DESIGNS), default="wide")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fractions", type=float, nargs="+", default=list(FRACTIONS))
    parser.add_argument("--methods", nargs="+", default=["statistics", "scratch", *METHODS])
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        parts = [
            pool.submit(one_part, options, *part)
            for part in product(options.methods, range(options.seeds), GROUPS)
        ]  # fmt: skip
        scores = pd.concat([part.result() for part in parts], ignore_index=True)
    scores["arm"] = (scores["method"] + " " + scores["arm"]).str.strip()
    print(
        f"Macro-F1, mean over {len(GROUPS)} groups left out, +- SD over {options.seeds} seeds, by share of the labels\n"
    )
    print(table(scores))
    print("\nMacro-F1 by group left out, mean over seeds\n")
    print(
        scores.pivot_table(index="arm", columns=["fraction", "fold"], values="macro_f1", sort=False)
        .round(3)
        .to_markdown()
    )
    print("\nThe same by seed, mean over groups\n")
    by_seed = scores.pivot_table(index="arm", columns=["fraction", "seed"], values="macro_f1", sort=False)
    print(by_seed.round(3).to_markdown())
    print("\nLabelled spots to train on: ", scores.groupby("fraction")["n_train"].mean().round().to_dict())


if __name__ == "__main__":
    main()
