"""What does a self-supervised network add to the statistics of crops of one, two or three widths?

The sections, groups and shares of the labels of ``mob_images.py`` in its design "wide". A network learns by SimCLR from
crops three array pitches wide; its 64 components stand beside the statistics of crops of these widths, stain brought to
one look in all, and a linear head sees them with the mean of the neighbours. That widths are told apart at all is the
lesson of earlier scores of all three groups; which sets of widths are asked for was fixed before any of these scores.

    python benchmarks/quality/mob_widths.py --cache FOLDER [--data ../shared/data] [--seeds 3] [--jobs 2]

The cache is that of ``mob_images.py``, whose encoders it takes where they are there.
"""

from __future__ import annotations

import argparse
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import mob_images as mob
import numpy as np
import pandas as pd
from anndata import AnnData

import histoweave as hw
from histoweave.models.image_encoder._model import FEATURES
from histoweave.pp._split import iter_folds
from histoweave.tl._image_arms import ImageArms
from histoweave.tl._label_subsets import nested_subset

WIDTHS = {600: 64, 220: 48, 90: 48}  # um, and pixels of a side
SETS = ((600,), (220,), (220, 600), (90, 220, 600))
FRACTIONS = (0.1, 1.0)


def statistics_of(adata: AnnData) -> dict[int, np.ndarray]:
    """Statistics of the crops of every width, before sections are standardised."""
    found = {}
    for width, px in WIDTHS.items():
        key = f"crops_{width}"
        hw.pp.crops(adata, size_um={key: width}, out_px=px)
        hw.pp.stain_normalize(adata, method="section", crops_key=key)
        found[width] = hw.models.ImageEncoder(crops_keys=key).features(adata)
        del adata.obsm[key]
    return found


def one_group(options: argparse.Namespace, group: str) -> list[dict]:
    """Scores with one group of animals left out."""
    hw.settings.progress = False
    warnings.simplefilter("ignore")
    adata = mob.load(options.data, "wide")
    statistics, labels = statistics_of(adata.copy()), adata.obs["region"].astype(object)
    arms = ImageArms(
        adata, labels, classifier_options={}, n_rings=1, donor_key="donor", library_key="library_id",
        spatial_key="spatial", cache_dir=options.cache,
        encoder_options={"backbone": mob.BACKBONE, "max_epochs": 30, "batch_size": mob.BATCH}
        | mob.DESIGNS["wide"]["encoder"],
    )  # fmt: skip
    (fold,) = [f for f in iter_folds(adata, fold_key="fold") if f.name == group]
    truth, rows = labels.where(fold.test), []
    for seed, fraction in product(range(options.seeds), FRACTIONS):
        network = arms._encoder(fold, seed, "simclr")[0].embed(adata)
        known = nested_subset(labels.where(fold.train), fraction, np.random.default_rng([seed, 3]))
        for widths, beside in product(SETS, (False, True)):
            X = np.concatenate([statistics[w] for w in widths] + [network] * beside, axis=1)
            about = {"group": group, "seed": seed, "fraction": fraction, "network": "simclr" if beside else ""}
            about["statistics of"] = " + ".join(map(str, widths)) + " um"
            rows.append(about | {"macro_f1": macro_f1(adata, X, known, truth, seed)})
    return rows


def macro_f1(adata: AnnData, X: np.ndarray, known: pd.Series, truth: pd.Series, seed: int) -> float:
    """Score of a linear head on features, standardised by section, and on the means of the neighbours'."""
    table = AnnData(obs=adata.obs.assign(known=known), obsm={"spatial": adata.obsm["spatial"], FEATURES: X})
    section = adata.obs["library_id"]
    train, test = (table[section.isin(section[labels.notna()])].copy() for labels in (known, truth))
    clf = hw.models.ImageClassifier(hw.models.ImageEncoder(), n_rings=1, random_state=seed)
    predicted = clf.fit(train, labels_key="known").predict(test)["predicted"]
    truth = truth[predicted.index].dropna()
    return hw.metrics.classification(truth, predicted[truth.index])["macro_f1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=mob.DATA)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(one_group, options, group) for group in mob.GROUPS]
        scores = pd.DataFrame([row for part in parts for row in part.result()])
    of = ["statistics of", "network"]
    by_seed = scores.groupby([*of, "fraction", "seed"], sort=False)["macro_f1"].mean()
    cells = by_seed.groupby([*of, "fraction"], sort=False).agg(["mean", "std"])
    text = cells.apply(lambda c: f"{c['mean']:.3f} +- {c['std']:.3f}", axis=1).unstack("fraction")
    print(f"Macro-F1, mean over {len(mob.GROUPS)} groups left out, +- SD over {options.seeds} seeds\n")
    print(text.reset_index().to_markdown(index=False))
    print("\nBy group left out, mean over seeds\n")
    table = scores.pivot_table(index=of, columns=["fraction", "group"], values="macro_f1", sort=False)
    table.columns = [f"{fraction}, {group}" for fraction, group in table.columns]
    print(table.round(3).reset_index().to_markdown(index=False))


if __name__ == "__main__":
    main()
