"""What ``histoweave demo`` and ``histoweave classify`` do: the public functions in order, and a report."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData

import histoweave as hw
from histoweave import _keys
from histoweave._files import atomic_path, check_writable
from histoweave._resolve import has_image, sections
from histoweave._settings import settings
from histoweave._validate import HistoweaveWarning, listing
from histoweave.models._prepare import default_sizes
from histoweave.pp._split import iter_folds
from histoweave.report import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

COLUMNS = ["macro_f1", "balanced_accuracy", "accuracy", "adjusted_rand", "roc_auc", "log_loss", "ece"]
N_BLOCK_FOLDS = 4
MIN_SPOTS = 5  # labelled spots a region needs to be learned at all
COUNTS, SPOTS = ("*count*.tsv*", "*stdata*.tsv*"), ("*selection*.tsv", "*spot*.tsv")  # as legacy ST names them
IMAGES = ("*.jpg", "*.jpeg", "*.png", "*.tif", "*.tiff", "*.btf")


def run_demo(args: argparse.Namespace) -> None:
    """Simulate four patients' sections, learn on three, map the fourth, write report, CSV, h5ad and model."""
    with _Run(args) as run:
        run.say("simulating the sections of four patients")
        # neither modality suffices: the image tells regions 3 and 4 apart no more than the genes do 1 and 2
        adata = hw.datasets.simulate_sections(
            4, n_rows=18, n_cols=18, image_regions=[0, 1, 2, 2], gene_regions=[0, 0, 1, 2], stain_shift=0.5,
            batch_effect=0.3, labelled_fraction=0.3, random_state=args.seed,
        )  # fmt: skip
        new = (adata.obs["library_id"] == "section_4").to_numpy()
        hw.pp.split(adata, by="donor", n_folds=None)
        run.say("cross-validating over patients, beside the nulls")
        scores = hw.tl.cross_validate(adata, model=hw.models.RegionClassifier(random_state=args.seed))
        run.say("fitting on three patients, mapping the fourth")
        clf = hw.models.RegionClassifier(random_state=args.seed).fit(adata[~new].copy())
        fourth = adata[new].copy()
        hw.tl.predict_regions(fourth, clf)
        fourth.obs["region"] = fourth.obs["region_truth"]
        fourth.obs["region_held_out"] = True
        intro = (
            "Four simulated sections, one a patient, with 30 % of the spots labelled. The image cannot tell region 3 "
            "from region 4, the genes cannot tell region 1 from region 2. The classifier learned from patients 1 to 3; "
            "the map below is of patient 4, whose labels it never saw."
        )
        run.finish("Demo: regions from histology and expression", intro, fourth, clf, scores, None)


def run_classify(args: argparse.Namespace) -> None:
    """Label every spot of a real section from the labelled ones; write report, CSV, h5ad and model."""
    with _Run(args) as run:
        run.say("reading the section")
        data = read_section(args)
        table = data.tables[_keys.TABLE]
        alignment = hw.pp.check_alignment(data)
        for row in alignment[alignment["status"] != "ok"].itertuples():
            run.note(f"alignment, {row.status}: {row.message} {row.fix}")
        model = hw.models.RegionClassifier(random_state=args.seed)
        if has_image(data, next(iter(sections(table)))):  # cut here, so that the buffer between blocks is as wide
            hw.pp.crops(data, size_um=default_sizes(data, table), out_px=model.out_px)
        hidden, folds = hide_blocks(data, args.hide_blocks, model.n_rings, args.seed)
        run.say("scoring on held-out blocks of tissue, beside the nulls")
        scores = hw.tl.cross_validate(data, model=model, folds=folds, random_state=args.seed)
        run.say("fitting on the labelled spots and mapping every spot")
        labels = table.obs[_keys.REGION]
        table.obs["region_used"] = labels.where(~hidden)
        table.obs["region_held_out"] = hidden & labels.notna()
        model.fit(data, labels_key="region_used")
        hw.tl.predict_regions(data, model)
        intro = (
            f"{table.n_obs} spots, {int(labels.notna().sum())} of them labelled. The scores are of blocks of tissue "
            "whose labels were held out, with a buffer around them as wide as crops and neighbourhoods reach; the "
            "encoders saw the pixels and counts of these blocks, never their labels."
        )
        if hidden.any():
            intro += f" The map was made without the labels of {int(table.obs['region_held_out'].sum())} spots."
        run.finish(f"Regions of {model.sections_seen[0]}", intro, hw.io.to_anndata(data), model, scores, alignment)


class _Run:
    """One command: the folder it writes to, what it says on the way, and the files it leaves."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self.seed = Path(args.out), args.seed
        self.progress, self.start, self.notes = args.progress, time.monotonic(), []

    def __enter__(self) -> _Run:
        check_writable(self.out)  # before the work, not after it
        self._before = settings.progress
        settings.progress = self.progress
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")  # of the libraries underneath; our own are for the user to read
        warnings.simplefilter("always", HistoweaveWarning)
        warnings.showwarning = lambda message, *rest: self.note(str(message))
        return self

    def __exit__(self, *error: object) -> None:
        settings.progress = self._before
        self._caught.__exit__(*error)

    def say(self, text: str) -> None:
        """Tell the user what happens, with the seconds since the start."""
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Keep a stated fallback for the report, each once."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(f"note: {text}")

    def finish(
        self, title: str, intro: str, adata: AnnData, clf: Any, scores: pd.DataFrame, alignment: pd.DataFrame | None
    ) -> None:
        """Write report, CSV, h5ad and model, and print the scores."""
        self.say("writing the report")
        mean = mean_scores(scores)
        files = {"report": "report.html", "table": "regions.csv", "data": "section.h5ad", "model": "model"}
        with atomic_path(self.out / files["table"]) as path:
            prediction_table(adata).to_csv(path)
        with atomic_path(self.out / files["data"]) as path:
            adata.write_h5ad(path)
        clf.save(self.out / files["model"], overwrite=True)
        parts = [
            ("Map", _map_figure(adata)),
            ("Scores on held-out tissue", [_scores_figure(scores), mean.reset_index("kind", drop=True)]),
        ]
        if adata.obs["region_held_out"].any():
            parts += [("Held-out spots of the map", _check_figure(adata, "region_held_out"))]
        parts += [("Inner folds", ["Scores inside the training rows, per set of modalities.", clf.history])]
        if alignment is not None:
            parts += [("Alignment of spots and image", alignment)]
        if self.notes:
            parts += [("Notes", "\n".join(f"- {note}" for note in self.notes))]
        summary = {"spots": adata.n_obs, "regions": ", ".join(clf.classes), "seed": self.seed,
                   "abstained": f"{adata.obs['region_abstain'].mean():.0%} of the spots",
                   "trained on": ", ".join(clf.sections_seen)}  # fmt: skip
        write_report(self.out / files["report"], title=title, intro=intro, summary=summary, sections=parts)
        plt.close("all")
        print(mean.round(3).to_string())
        print(f"\nreport: {self.out / files['report']}\nalso:   {listing(sorted(set(files.values())))} in {self.out}")
        self.say("done")


def mean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over folds per arm, models first, then nulls, each from best to worst."""
    mean = scores.groupby(["kind", "arm"])[COLUMNS].mean().join(scores.groupby(["kind", "arm"]).size().rename("folds"))
    return mean.sort_values(["kind", "macro_f1"], ascending=[True, False])


def prediction_table(adata: AnnData) -> pd.DataFrame:
    """Return one row a spot: section, position, label, prediction, confidence, probabilities."""
    names = ["library_id", _keys.REGION, "region_held_out", "region_predicted", "region_confidence", "region_abstain",
             "region_modalities"]  # fmt: skip
    table = adata.obs[[n for n in names if n in adata.obs]].copy()
    table[["x", "y"]] = adata.obsm["spatial"]
    return table.join(adata.obsm["region_probability"].add_prefix("probability: ")).rename_axis("spot")


def read_section(args: argparse.Namespace) -> SpatialData:
    """Read a Space Ranger folder, or a folder with legacy ST files, and its labels."""
    folder = args.section
    if not folder.exists():
        msg = f"SECTION {str(folder)!r} does not exist."
        raise FileNotFoundError(msg)
    image = _inside(folder, args.image)
    spots = _inside(folder, args.spots)
    if spots is None and not list(folder.glob("**/scalefactors_json.json")):
        spots = _find(folder, SPOTS, "--spots")
    if spots is None:
        data = hw.io.read_visium(folder, image=image)
    else:
        counts = _inside(folder, args.counts) or _find(folder, COUNTS, "--counts")
        image = image or _find(folder, IMAGES, "--image")
        name = args.name or spots.name.split(".")[0].split("_")[0]
        data = hw.io.read_st(counts, spots=spots, image=image, scale=args.scale or 1.0, library_id=name)
    hw.io.read_labels(data, args.labels, column=args.labels_column)
    obs = data.tables[_keys.TABLE].obs
    ignored = obs[_keys.REGION].isin(args.ignore_label)
    obs[_keys.REGION] = obs[_keys.REGION].where(~ignored).cat.remove_unused_categories()
    return data


def hide_blocks(data: SpatialData, share: float | None, n_rings: int, seed: int) -> tuple[np.ndarray, list[str] | None]:
    """Deal the section to blocks; return the rows whose labels the map may not use, and the folds to score.

    Without ``share`` nothing is hidden and all folds are scored. With it, about that share of the rows is
    hidden, and the buffer around them, and the fold that scores them is the only one: the one that leaves the
    most regions to learn from.
    """
    table = data.tables[_keys.TABLE]
    if share is None:
        hw.pp.split(data, by="blocks", n_folds=N_BLOCK_FOLDS, n_rings=n_rings, random_state=seed)
        return np.zeros(table.n_obs, dtype=bool), None
    hw.pp.split(data, by="blocks", n_folds=round(1 / min(share, 1 - share)), n_rings=n_rings, random_state=seed)
    fold = table.obs[_keys.FOLD].astype(str)
    designs = []
    for name in sorted(set(fold) - {"nan"}):
        if share > 0.5:  # one fold to train on, the others hidden
            table.obs[_keys.FOLD] = np.where(fold == name, "visible", "hidden")
        tested = "hidden" if share > 0.5 else name
        (chosen,) = [f for f in iter_folds(table) if f.name == tested]
        regions = table.obs.loc[chosen.train, _keys.REGION].value_counts()
        designs.append((int((regions >= MIN_SPOTS).sum()), int(regions.sum()), name, tested, chosen.train))
    # by what is left to learn from, never by scores
    _, _, name, tested, train = max(designs, key=lambda design: design[:2])
    table.obs[_keys.FOLD] = np.where(fold == name, "visible", "hidden") if share > 0.5 else fold
    return ~train, [tested]


def _inside(folder: Path, path: Path | None) -> Path | None:
    """A path as given, or within the section's folder."""
    return folder / path if path is not None and not path.exists() and (folder / path).exists() else path


def _find(folder: Path, patterns: tuple[str, ...], argument: str) -> Path | None:
    """The one file of a folder with such a name; None without one."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if len(found) > 1:
        msg = (
            f"{str(folder)!r} holds several such files ({listing([p.name for p in found])}). Choose with `{argument}`."
        )
        raise ValueError(msg)
    return found[0] if found else None


def _map_figure(adata: AnnData) -> Figure:
    panels = hw.pl.regions(adata)
    return np.ravel(panels)[0].figure


def _scores_figure(scores: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    hw.pl.scores(scores, ax=axes)
    return figure


def _check_figure(adata: AnnData, mask_key: str | None) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    hw.pl.confusion(adata, mask_key=mask_key, ax=left)
    hw.pl.reliability(adata, mask_key=mask_key, ax=right)
    return figure
