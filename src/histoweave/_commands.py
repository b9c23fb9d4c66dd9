"""What ``histoweave demo`` and ``histoweave classify`` do: the public functions in order, and a report."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData

import histoweave as hw
from histoweave import _keys
from histoweave._calibration import CROP_PITCHES
from histoweave._files import atomic_path, check_writable
from histoweave._resolve import has_image, sections
from histoweave._settings import settings
from histoweave._validate import HistoweaveWarning, listing, require_labels, warn
from histoweave.models._base import CONFIG
from histoweave.models._prepare import LAZY_FROM, default_sizes
from histoweave.pp._split import iter_folds
from histoweave.report import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

COLUMNS = ["macro_f1", "balanced_accuracy", "accuracy", "adjusted_rand", "roc_auc", "log_loss", "ece"]
FILES = {"report": "report.html", "table": "regions.csv", "data": "section.h5ad", "model": "model"}
DEMO_SPOTS = 18  # rows and columns of the array of each simulated section
N_BLOCK_FOLDS = 4
MIN_SPOTS = 5  # labelled spots a region needs to be learned at all
COUNTS, SPOTS = ("*count*.[ct]sv*", "*stdata*.[ct]sv*"), ("*selection*.[ct]sv*", "*spot*.[ct]sv*")  # of legacy ST
IMAGES = ("*.jpg", "*.jpeg", "*.png", "*.tif", "*.tiff", "*.btf")


def run_demo(args: argparse.Namespace) -> None:
    """Simulate four patients' sections, learn on three, map the fourth, write report, CSV, h5ad and model."""
    with _Run(args) as run:
        run.say("simulating the sections of four patients")
        # neither modality suffices: the image tells regions 3 and 4 apart no more than the genes do 1 and 2
        adata = hw.datasets.simulate_sections(
            4, n_rows=DEMO_SPOTS, n_cols=DEMO_SPOTS, image_regions=[0, 1, 2, 2], gene_regions=[0, 0, 1, 2],
            stain_shift=0.5, batch_effect=0.3, labelled_fraction=0.3, random_state=args.seed,
        )  # fmt: skip
        new = (adata.obs["library_id"] == "section_4").to_numpy()
        hw.pp.split(adata, by="donor", n_folds=None)
        run.say("cross-validating over patients, beside the nulls")
        model = hw.models.RegionClassifier(random_state=args.seed)
        scores = hw.tl.cross_validate(adata, model=model, random_state=args.seed)
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
            sizes, lazy = default_sizes(data, table), table.n_obs > LAZY_FROM
            hw.pp.crops(data, size_um=sizes, out_px=model.out_px, lazy=lazy)
        train, test, folds = hide_blocks(data, args.hide_blocks, model.n_rings, args.seed)
        run.say("scoring on held-out blocks of tissue, beside the nulls")
        scores = hw.tl.cross_validate(data, model=model, folds=folds, random_state=args.seed)
        run.say("fitting on the labelled spots and mapping every spot")
        labels = table.obs[_keys.REGION]
        table.obs["region_used"] = labels.where(train)
        table.obs["region_held_out"] = test & labels.notna()
        model.fit(data, labels_key="region_used")
        hw.tl.predict_regions(data, model)
        intro = (
            f"{table.n_obs} spots, {int(labels.notna().sum())} of them labelled. The scores are of blocks of tissue "
            "whose labels were held out, with a buffer around them as wide as crops and neighbourhoods reach; the "
            "encoders saw the pixels and counts of these blocks, never their labels."
        )
        if test.any():
            hidden, scored = int((~train & labels.notna()).sum()), int(table.obs["region_held_out"].sum())
            intro += (
                f" The map was made without the labels of {hidden} spots ({hidden / labels.notna().sum():.0%}): "
                f"{scored} to score, the others as buffer."
            )
        adata = hw.io.to_anndata(data)
        for key in adata.obsm.keys() & CROP_PITCHES.keys():  # the largest part of the file, and easily cut again
            del adata.obsm[key]
        run.finish(f"Regions of {model.sections_seen[0]}", intro, adata, model, scores, alignment)


class _Run:
    """One command: the folder it writes to, what it says on the way, and the files it leaves."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self.seed = Path(args.out), args.seed
        self.progress, self.start, self.notes = args.progress, time.monotonic(), []

    def __enter__(self) -> _Run:
        self._new = not self.out.exists()
        check_writable(self.out)  # before the work, not after it
        foreign = [name for name in FILES.values() if (self.out / name).exists()]
        if foreign and not (self.out / FILES["model"] / CONFIG).is_file():
            msg = f"{str(self.out)!r} holds {listing(foreign)} from elsewhere, not replaced. Choose another `--out`."
            raise FileExistsError(msg)
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
        plt.close("all")
        if self._new and error[0] is not None:
            with suppress(OSError):  # not empty: somebody else writes there
                self.out.rmdir()

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
        """Write report, CSV, h5ad and model, all or none, and print the scores."""
        self.say("writing the report")
        mean = mean_scores(scores)
        parts = [
            ("Map", np.ravel(hw.pl.regions(adata))[0].figure),
            ("Scores on held-out tissue", [_scores_figure(scores), mean.reset_index("kind", drop=True)]),
        ]
        if adata.obs["region_held_out"].any():
            parts += [("Held-out spots of the map", _check_figure(adata))]
        parts += [("Inner folds", ["Scores inside the training rows, per set of modalities.", clf.history])]
        if alignment is not None:
            parts += [("Alignment of spots and image", alignment)]
        if self.notes:
            parts += [("Notes", "\n".join(f"- {note}" for note in self.notes))]
        summary = {"spots": adata.n_obs, "regions": ", ".join(clf.classes), "seed": self.seed,
                   "abstained": f"{adata.obs['region_abstain'].mean():.0%} of the spots",
                   "trained on": ", ".join(clf.sections_seen)}  # fmt: skip
        with ExitStack() as stack:
            paths = {key: stack.enter_context(atomic_path(self.out / name)) for key, name in FILES.items()}
            write_report(paths["report"], title=title, intro=intro, summary=summary, sections=parts)
            prediction_table(adata).to_csv(paths["table"])
            adata.write_h5ad(paths["data"])
            clf.save(paths["model"])
        print(mean.round(3).to_string())
        print(f"\nreport: {self.out / FILES['report']}\nalso:   {', '.join(list(FILES.values())[1:])} in {self.out}")
        self.say("done")


def mean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over folds per arm, models first, then nulls, each from best to worst."""
    mean = scores.groupby(["kind", "arm"])[COLUMNS].mean().join(scores.groupby(["kind", "arm"]).size().rename("folds"))
    return mean.sort_values(["kind", "macro_f1"], ascending=[True, False])


def prediction_table(adata: AnnData) -> pd.DataFrame:
    """Return one row a spot: section, position, label, prediction, confidence, probabilities."""
    names = ["library_id", _keys.REGION, "region_used", "region_held_out", "region_predicted", "region_confidence",
             "region_abstain", "region_modalities", "region_novelty", "region_out_of_distribution"]  # fmt: skip
    table = adata.obs[[n for n in names if n in adata.obs]].copy()
    table[["x", "y"]] = adata.obsm["spatial"]
    return table.join(adata.obsm["region_probability"].add_prefix("probability: ")).rename_axis("spot")


def read_section(args: argparse.Namespace) -> SpatialData:
    """Read a Space Ranger folder, or a folder with legacy ST files, and its labels."""
    folder = args.section
    if not folder.is_dir():
        msg = f"SECTION {str(folder)!r} is not a folder."
        raise FileNotFoundError(msg)
    spots, labels = _inside(folder, args.spots), _inside(folder, args.labels)
    if spots is None and not list(folder.glob("**/scalefactors_json.json")):
        spots = _find(folder, SPOTS, "--spots", taken=[labels])
    data = _read_spaceranger(folder, args) if spots is None else _read_st(folder, spots, args, taken=[labels, spots])
    hw.io.read_labels(data, labels, column=args.labels_column)
    table = data.tables[_keys.TABLE]
    region = table.obs[_keys.REGION]
    table.obs[_keys.REGION] = region.where(~region.isin(args.ignore_label)).cat.remove_unused_categories()
    require_labels(table, _keys.REGION)
    return data


def _read_spaceranger(folder: Path, args: argparse.Namespace) -> SpatialData:
    given = {"--scale": args.scale, "--counts": args.counts, "--name": args.name}
    if wrong := [option for option, value in given.items() if value is not None]:
        msg = (
            f"{str(folder)!r} is a folder of Space Ranger, which tells scale, counts and name itself: leave out "
            f"{listing(wrong)}, or name the positions of a legacy array with `--spots`."
        )
        raise ValueError(msg)
    counts = "filtered" if list(folder.glob("**/*feature_bc_matrix*")) else None
    if counts is None and list(folder.glob("**/spatial")):
        warn(f"{str(folder)!r} holds no matrix of counts: the regions are told from the image only.")
    return hw.io.read_visium(folder, counts=counts, image=_inside(folder, args.image))


def _read_st(folder: Path, spots: Path, args: argparse.Namespace, taken: list[Path]) -> SpatialData:
    name = args.name or spots.name.split(".")[0].split("_")[0]
    counts = _inside(folder, args.counts) or _find(folder, (*COUNTS, f"{name}.[ct]sv*"), "--counts", taken)
    image = _inside(folder, args.image) or _find(folder, IMAGES, "--image", taken)
    if counts is None:
        warn(f"{str(folder)!r} holds no counts: the regions are told from the image only. Else pass `--counts`.")
    if image is None:
        warn(f"{str(folder)!r} holds no image: the regions are told from the genes only. Else pass `--image`.")
    return hw.io.read_st(counts, spots=spots, image=image, scale=args.scale or 1.0, library_id=name)


def hide_blocks(
    data: SpatialData, share: float | None, n_rings: int, seed: int
) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Deal the section to blocks; return the rows the map may learn from, those that test it, the folds to score.

    Without ``share`` nothing is hidden and all folds are scored. With it, about that share of the rows is
    hidden, and the buffer around them, and the fold that scores them is the only one: the one that leaves the
    most regions to learn from.
    """
    table = data.tables[_keys.TABLE]
    n_folds = N_BLOCK_FOLDS if share is None else round(1 / min(share, 1 - share))
    hw.pp.split(data, by="blocks", n_folds=n_folds, n_rings=n_rings, random_state=seed)
    if share is None:
        return np.ones(table.n_obs, dtype=bool), np.zeros(table.n_obs, dtype=bool), None
    fold = table.obs[_keys.FOLD].astype(str)
    designs = []
    for name in sorted(set(fold)):
        column = np.where(fold == name, "visible", "hidden") if share > 0.5 else fold  # or one fold hidden
        table.obs[_keys.FOLD] = column
        (chosen,) = [f for f in iter_folds(table) if f.name == ("hidden" if share > 0.5 else name)]
        regions = table.obs.loc[chosen.train, _keys.REGION].value_counts()
        designs.append(((int((regions >= MIN_SPOTS).sum()), int(regions.sum())), column, chosen))
    (n_regions, _), table.obs[_keys.FOLD], chosen = max(designs, key=lambda design: design[0])  # never by scores
    if n_regions < 2:
        msg = (
            f"Hiding {share:.0%} of the section in blocks leaves {n_regions} regions with {MIN_SPOTS} labelled spots "
            "or more to learn from; two are needed. Hide less (`--hide-blocks`), or label more spots."
        )
        raise ValueError(msg)
    return chosen.train, chosen.test, [chosen.name]


def _inside(folder: Path, path: Path | None) -> Path | None:
    """A path as given, or within the section's folder."""
    return folder / path if path is not None and not path.exists() and (folder / path).exists() else path


def _find(folder: Path, patterns: tuple[str, ...], argument: str, taken: list[Path]) -> Path | None:
    """The one file of a folder with such a name, besides those ``taken``; None without one."""
    known = {path.resolve() for path in taken if path is not None}
    named = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    found = sorted(path for path in named if path.resolve() not in known)
    if len(found) > 1:
        names = listing([path.name for path in found])
        msg = f"{str(folder)!r} holds several such files ({names}). Choose with `{argument}`."
        raise ValueError(msg)
    return found[0] if found else None


def _scores_figure(scores: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    hw.pl.scores(scores, ax=axes)
    return figure


def _check_figure(adata: AnnData) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    hw.pl.confusion(adata, mask_key="region_held_out", ax=left)
    hw.pl.reliability(adata, mask_key="region_held_out", ax=right)
    return figure
