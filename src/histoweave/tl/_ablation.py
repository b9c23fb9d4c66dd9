"""What each part of a region classifier contributes: the same folds and seeds without it, and beside nulls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._random import child_seeds, rng
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave._settings import track
from histoweave._validate import listing, require_choice, require_number, warn
from histoweave.metrics import corrected_t_test, group_bootstrap, holm
from histoweave.metrics._comparison import SCORES
from histoweave.models import RegionClassifier
from histoweave.models._inner_groups import kept_together
from histoweave.tl._ablation_arms import ABLATIONS, Arms
from histoweave.tl._fold_runner import ARMS, FoldRunner
from histoweave.tl._labelled_folds import Answer, require_regions
from histoweave.tl._nulls import permute_blocks

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from histoweave.pp._split import Fold

PERMUTED = "permuted labels"


def ablation(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    model: RegionClassifier | None = None,
    arms: Sequence[str] = ("fused", "image", "gene"),
    ablate: Sequence[str] = ("context", "self-supervision", "scales"),
    nulls: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
    retrain: bool = False,
    stain: str = "macenko",
    reference: str = "fused",
    metric: str = "macro_f1",
    fold_key: str = _keys.FOLD,
    folds: Sequence[str] | None = None,
    key_added: str | None = None,
    allow_leakage: bool = False,
    n_resamples: int = 2000,
    layer: str | None = None,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Score a region classifier with parts of it taken away, on the same held-out folds and seeds, beside nulls.

    Embeddings are made once in every fold and serve all arms and seeds. Every arm is compared with ``reference``
    in two ways. A test over folds: differences per fold, seeds averaged, by the corrected resampled t-test, which
    allows for folds that share training rows; p-values are adjusted by Holm's method, models and nulls apart. And an
    interval of the score on the held-out predictions of all folds together, from resampling whole donors, else
    sections, else blocks of tissue (where there are three labelled donors or sections, or more).

    Parameters
    ----------
    data
        AnnData or SpatialData object with folds from :func:`histoweave.pp.split`. Not changed unless
        ``key_added`` is given.
    labels_key
        Labels in ``obs``; unlabelled rows are neither trained on nor scored.
    model
        A :class:`histoweave.models.RegionClassifier` whose arguments to use; it is not fitted itself.
    arms
        ``"fused"``, ``"image"``, ``"gene"``: what to predict from. Those the data allow are scored.
    ablate
        What else to vary, each named after the arm it is done to, and passed over where it does not apply:
        ``"context"`` (``"fused, no context"``: without neighbours),
        ``"self-supervision"`` (colour and texture statistics instead of an encoder that was trained),
        ``"scales"`` (``"image, crops only"``: one scale of crops at a time), and
        ``"stain"`` (with stain normalisation, or without where the crops have been normalised: then they are
        cut again from the image).
    nulls
        Add what needs no tissue, as in :func:`histoweave.tl.cross_validate`, and ``"permuted labels"``: the reference
        fitted and scored on labels whose blocks of tissue were shuffled within every section. It shows what
        patches of labels alone would score.
    seeds
        Of heads, inner folds and nulls.
    retrain
        Train the encoders anew with every seed as well, which costs as many times as much.
    stain
        Method of :func:`histoweave.pp.stain_normalize` for ``ablate="stain"``.
    reference
        Arm that the others are compared with.
    metric
        Score that is compared: ``"macro_f1"``, ``"balanced_accuracy"`` or ``"accuracy"``.
    fold_key
        Column of ``obs`` with the folds.
    folds
        Names of the folds to test on; all by default.
    key_added
        Write the held-out predictions to ``obsm[key_added]``, for other comparisons by
        :func:`histoweave.metrics.group_bootstrap`.
    allow_leakage
        Score folds that leak all the same; the result says so (``leakage``).
    n_resamples
        Resamples of groups for the intervals.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    random_state
        Seed of the resamples.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame, one row per fold, seed and arm: ``fold``, ``seed``, ``arm``, ``kind`` (``"model"`` or
    ``"null"``), ``transductive``, ``n_train``, ``unseen_classes`` (test regions that no training row has), the scores
    of :func:`histoweave.metrics.classification`, ``n_not_predicted``, ``leakage``; and, the same in all rows of an
    arm: ``metric``, ``reference``, ``groups`` (what was resampled, and how many), ``pooled`` (the score of all folds'
    predictions together, mean over seeds), ``low``, ``high`` (95 %), its ``difference`` to the reference,
    ``difference_low``, ``difference_high``, and from the test over folds ``fold_difference``, ``p_value``, ``p_holm``.
    :func:`histoweave.pl.ablation` draws it and ``histoweave.report.write_ablation`` makes a page of it.

    Raises
    ------
    KeyError
        Folds or labels are missing.
    ValueError
        The folds leak, and ``allow_leakage`` is off; the reference cannot be scored; or no fold can.

    Notes
    -----
    Nadeau & Bengio (2003), Machine Learning 52; Holm (1979), Scandinavian Journal of Statistics 6.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> hw.pp.split(sections, by="donor", n_folds=3)
    >>> model = hw.models.RegionClassifier(image=None, fusion_options={"heads": "linear"})
    >>> scores = hw.tl.ablation(sections, model=model, reference="gene", seeds=[0], nulls=False)
    >>> scores["arm"].unique().tolist()
    ['gene', 'gene, no context']
    """
    for name in arms:
        require_choice(name, tuple(ARMS), argument="arms")
    for name in ablate:
        require_choice(name, ABLATIONS, argument="ablate")
    require_choice(metric, tuple(SCORES), argument="metric")
    require_number(n_resamples, argument="n_resamples", at_least=1, integer=True)
    require_regions(model)
    seeds = _distinct(seeds)
    keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
    runner = FoldRunner(data, model or RegionClassifier(), labels_key=labels_key, donor_key=donor_key, **keys)
    plan = Arms(runner, data, arms, ablate, stain=stain, table_key=table_key)
    require_choice(reference, plan.names, argument="reference")
    chosen, leak = runner.folds(folds, fold_key=fold_key, allow_leakage=allow_leakage)
    book = _Book(runner, n_seeds=len(seeds))
    plan_of_work = list(product(enumerate(chosen), enumerate(seeds)))
    for (number, fold), (place, seed) in track(plan_of_work, "ablation", unit="fit"):
        again = {"seed": seed, "encoder_seed": seed if retrain else None}
        book.add(fold, place, seed, plan.answers(fold, runner.labels, **again))
        if nulls:
            *fold_seeds, shuffle = child_seeds(seed, len(chosen) + 1)  # the first are those of cross_validate
            book.add(fold, place, seed, runner.nulls(fold, fold_seeds[number]), kind="null")
            y = permute_blocks(runner.y, runner.section, runner.light.obsm.get(_keys.SPATIAL), rng(shuffle))
            labels = runner.named(y)
            if labels[fold.train].nunique() > 1:
                answer = plan.answers(fold, labels, **again, only=reference)[reference]
                book.add(fold, place, seed, {PERMUTED: answer}, kind="null", y=y)
            else:
                warn(f"Fold {fold.name!r}: shuffled labels leave one region to train on; no {PERMUTED!r} there.")
    scores = pd.DataFrame(book.rows).assign(leakage=leak, metric=metric, reference=reference)
    tested = np.any([fold.test for fold in chosen], axis=0) & (runner.y >= 0)
    compared = book.intervals(
        tested, reference=reference, metric=metric, n_resamples=n_resamples, random_state=random_state,
    ).join(_tests(scores, reference, metric))  # fmt: skip
    if key_added is not None:
        table = working_copy(data, table_key)[1]
        table.obsm[key_added] = book.frame(seeds).set_index(table.obs_names)
        params = {"labels_key": labels_key, "fold_key": fold_key, "seeds": seeds, "retrain": retrain}
        record(table, key_added, "tl.ablation", params | {"model": runner.model._plain_arguments()})
    return scores.merge(compared, left_on="arm", right_index=True, how="left", validate="many_to_one")


def _distinct(seeds: Sequence[int]) -> list[int]:
    found = [int(seed) for seed in np.atleast_1d(seeds)]
    if not found or len(set(found)) < len(found):
        msg = f"`seeds` must be one or more different integers, got {listing(found)}."
        raise ValueError(msg)
    return found


def _tests(scores: pd.DataFrame, reference: str, metric: str) -> pd.DataFrame:
    """Return ``fold_difference``, ``p_value`` and ``p_holm`` of every arm against the reference."""
    mean = scores.groupby(["arm", "fold"], sort=False)[metric].mean().unstack("fold")
    kind = scores.groupby("arm", sort=False)["kind"].first()
    own = scores[scores["arm"] == reference]
    ratio = float(((own["n"] + own["n_not_predicted"]) / own["n_train"]).mean())
    rows = {arm: corrected_t_test(mean.loc[arm] - mean.loc[reference], test_ratio=ratio) for arm in mean.index}
    found = pd.DataFrame(rows).T[["difference", "p_value"]].rename(columns={"difference": "fold_difference"})
    found.loc[reference, "p_value"] = np.nan
    found["p_holm"] = np.nan
    for name in ("model", "null"):
        arms = kind.index[kind == name]
        found.loc[arms, "p_holm"] = holm(found.loc[arms, "p_value"])
    return found


class _Book:
    """Scores and held-out predictions, arm by arm."""

    def __init__(self, runner: FoldRunner, *, n_seeds: int) -> None:
        self.runner, self.shape = runner, (len(runner.y), n_seeds)
        self.rows: list[dict[str, Any]] = []
        self.predicted: dict[str, np.ndarray] = {}
        self.truth: dict[str, np.ndarray] = {}

    def add(
        self,
        fold: Fold,
        place: int,
        seed: int,
        answers: dict[str, Answer],
        *,
        kind: str = "model",
        y: np.ndarray | None = None,
    ) -> None:
        """Score what arms say of a fold, with the seed of this place, against class numbers ``y``."""
        for arm, (p, prediction) in answers.items():
            about = self.runner.about(fold) | {"seed": seed, "arm": arm, "kind": kind}
            self.rows.append(about | self.runner.score(fold.test, p, prediction["predicted"], y=y))
            if arm not in self.predicted:
                self.predicted[arm] = np.full(self.shape, None, dtype=object)
                self.truth[arm] = np.tile(self.runner.y[:, None], self.shape[1])
            self.predicted[arm][prediction.index, place] = prediction["predicted"]
            if y is not None:
                self.truth[arm][:, place] = y

    def intervals(
        self,
        tested: np.ndarray,
        *,
        reference: str,
        metric: str,
        n_resamples: int,
        random_state: int,
    ) -> pd.DataFrame:
        """Return pooled scores and differences with intervals, one row an arm; ``tested`` rows count."""
        obs = self.runner.light.obs
        donors = {_keys.DONOR: obs[key]} if (key := self.runner.donor_key) in obs else {}
        spots = obs[[_keys.LIBRARY]].assign(**donors)
        groups, kind = kept_together(spots, self.runner.light.obsm.get(_keys.SPATIAL), tested)
        names = np.asarray(self.runner.classes, dtype=object)
        found = group_bootstrap(
            {arm: names[y[tested]] for arm, y in self.truth.items()},
            {arm: values[tested] for arm, values in self.predicted.items()},
            groups[tested],
            reference=reference, metrics=[metric], n_resamples=n_resamples, random_state=random_state,
        )  # fmt: skip
        found["groups"] = f"{len(np.unique(groups[tested]))} {kind}s"
        return found.rename(columns={"value": "pooled"}).drop(columns="metric").set_index("arm")

    def frame(self, seeds: Sequence[int]) -> pd.DataFrame:
        """Return the held-out predictions, a column an arm and seed."""
        return pd.DataFrame(
            {
                f"{arm}, seed {seed}": pd.Categorical(values[:, place], categories=self.runner.classes)
                for arm, values in self.predicted.items()
                for place, seed in enumerate(seeds)
            }
        )
