"""Fit on one set of sections, test on another: what a model is worth in the next hospital."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._random import child_seeds, rng
from histoweave._resolve import get_table, replace_table, section_column
from histoweave._settings import track
from histoweave._validate import label_name, listing, require_choice, require_key, require_labels, require_number, warn
from histoweave.metrics import per_class
from histoweave.models import RegionClassifier
from histoweave.pp._folds import Fold
from histoweave.tl._fold_runner import ARMS, FoldRunner
from histoweave.tl._label_names import harmonise
from histoweave.tl._labelled_folds import require_regions

if TYPE_CHECKING:
    from spatialdata import SpatialData

OVERALL = "overall"


def transfer(
    data: AnnData | SpatialData,
    *,
    source: str | Sequence[str],
    target: str | Sequence[str],
    group_key: str = _keys.LIBRARY,
    both_directions: bool = True,
    labels_key: str = _keys.REGION,
    mapping: Mapping[str, str | None] | None = None,
    model: RegionClassifier | None = None,
    n_target_labels: int | Sequence[int] = 0,
    n_seeds: int = 3,
    arms: Sequence[str] = ("fused", "image", "gene"),
    nulls: bool = True,
    allow_leakage: bool = False,
    layer: str | None = None,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Fit on one set of sections and test on another, in both directions, with or without a few labels of the target.

    Encoders are fitted on the sections of the source. With labels of the target, the head is fitted on the source's
    labels and these together; encoders stay.

    Parameters
    ----------
    data
        AnnData or SpatialData object with the sections of both sets. Not changed.
    source, target
        Names of the two sets: values of ``group_key``.
    group_key
        Column of ``obs`` that tells the sets apart: the section, a hospital, a study.
    both_directions
        Also fit on the target and test on the source.
    labels_key
        Labels in ``obs``; unlabelled rows are neither trained on nor scored.
    mapping
        ``{label: name}`` where the two sets name a region differently; ``None`` leaves a label out. Names that differ
        in case, blanks, ``"_"`` or ``"-"`` only become one by themselves, with a warning.
    model
        A :class:`histoweave.models.RegionClassifier` whose arguments to use; it is not fitted itself.
    n_target_labels
        Labelled spots of the target that each region gets, one number or several; smaller sets are part of the larger.
        A region gives half of its spots at most.
    n_seeds
        Repetitions with another choice of spots and another seed of the heads.
    arms
        ``"fused"``, ``"image"``, ``"gene"``: what to predict from. Those the data allow are scored.
    nulls
        Add what needs no tissue: majority, sequencing depth, coordinates, vote of labelled neighbours.
    allow_leakage
        Score a target that was seen in training all the same; the result says so (``leakage``).
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    random_state
        Seed of the spots, the heads and the nulls.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame: ``source``, ``target``, ``n_target_labels``, ``seed``, ``arm``, ``kind`` (``"model"`` or
    ``"null"``), ``region`` (``"overall"`` or a region), ``metric`` and ``value``: scores of
    :func:`histoweave.metrics.classification` overall, of :func:`histoweave.metrics.per_class` for every region. Beside
    them ``n`` (test rows), ``n_train``, ``n_labelled`` (rows of the target trained on), ``only_in_source``,
    ``only_in_target``, ``transductive`` and ``leakage``.

    Raises
    ------
    KeyError
        A column, a set or a label of the mapping is missing.
    ValueError
        The target was seen in training: the sets share a section or a donor, or a given encoder had been fitted on
        sections of the target; ``allow_leakage`` insists. Or the sets have fewer than two regions in common.

    Notes
    -----
    Only regions that both sets have are scored. Rows of the target's other regions are left out, and named in
    ``only_in_target``; the source's other regions can still be predicted, and are errors then. For one seed the test
    rows are the same for every number of target labels, so the rows that the largest number takes are never tested.
    With labels of the target, test spots have labelled neighbours in their own section, as they would where a few spots
    of a new section are labelled: read the scores beside the null ``"neighbour vote"``, which has nothing else.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(2, n_rows=10, n_cols=10, n_genes=100)
    >>> genes = hw.models.RegionClassifier(image=None)
    >>> scores = hw.tl.transfer(sections, source="section_1", target="section_2", model=genes, n_seeds=1)
    >>> scores.query("region == 'overall' and metric == 'macro_f1' and arm == 'gene'")["source"].tolist()
    ['section_1', 'section_2']
    """
    for arm in arms:
        require_choice(arm, tuple(ARMS), argument="arms")
    require_regions(model)
    require_number(n_seeds, argument="n_seeds", at_least=1, integer=True)
    numbers = [n_target_labels] if isinstance(n_target_labels, int | np.integer) else list(n_target_labels)
    for number in numbers or [None]:
        require_number(number, argument="n_target_labels", at_least=0, integer=True)
    table, model = get_table(data, table_key), model or RegionClassifier()
    labels = harmonise(require_labels(table, labels_key), mapping)
    sets = _sets(table, group_key, {"source": source, "target": target}, library_key)
    pairs = [("source", "target"), ("target", "source")][: 1 + both_directions]
    leaks = [_leak(table, model, *(sets[name] for name in pair), library_key, donor_key) for pair in pairs]
    if any(leaks) and not allow_leakage:
        msg = f"The target was seen in training: {next(filter(None, leaks))} To insist, pass `allow_leakage=True`."
        raise ValueError(msg)
    shared = _shared_classes(labels, sets["source"], sets["target"])
    keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
    keys["donor_key"] = donor_key
    runner = FoldRunner(_relabelled(data, table, labels, labels_key, table_key), model, labels_key=labels_key, **keys)
    possible = [arm for arm in arms if runner.has(*ARMS[arm])]
    if not possible:
        msg = f"None of the arms {listing(arms)} can be scored: the table lacks the image or the counts they need."
        raise ValueError(msg)
    names = {"source": _name(source), "target": _name(target)}
    rows = []
    for (known, asked), leak in zip(track(pairs, "directions"), leaks, strict=True):
        test = sets[asked] & runner.labels.isin(shared).to_numpy()
        fold = Fold(f"{names[known]} -> {names[asked]}", sets[known], test, transductive=False)
        about = {"source": names[known], "target": names[asked], "leakage": leak or "",
                 "only_in_source": _only(labels, sets[known], shared),
                 "only_in_target": _only(labels, sets[asked], shared)}  # fmt: skip
        for scored in _direction(runner, fold, numbers, n_seeds, possible, nulls, shared, random_state):
            rows.append(about | scored)
    columns = ["source", "target", "n_target_labels", "seed", "arm", "kind", "region", "metric", "value", "n"]
    frame = pd.DataFrame(rows)
    return frame[columns + [c for c in frame if c not in columns]]


def _direction(
    runner: FoldRunner,
    fold: Fold,
    numbers: Sequence[int],
    n_seeds: int,
    arms: Sequence[str],
    nulls: bool,
    shared: Sequence[str],
    random_state: int,
) -> Iterator[dict[str, Any]]:
    """Yield one score a row, of every number of labels, seed, arm and region of one direction."""
    found = runner.embed(fold)
    for number, seed in enumerate(child_seeds(random_state, n_seeds)):
        order = _order(runner.labels.to_numpy(dtype=object), fold.test, shared, max(numbers), seed)
        test = fold.test.copy()
        test[[row for rows in order.values() for row in rows]] = False
        for k in numbers:
            chosen = np.zeros(len(test), dtype=bool)
            chosen[[row for rows in order.values() for row in rows[:k]]] = True
            here = replace(fold, train=fold.train | chosen, test=test)
            clf = runner.fit(found, runner.labels.where(here.train), seed=seed)
            answers = {arm: runner.predict(clf, found, test, ARMS[arm]) for arm in arms}
            answers |= runner.nulls(here, seed) if nulls else {}
            about = {"n_target_labels": k, "seed": number, "n_train": int(runner.labels[here.train].notna().sum()),
                     "n_labelled": int(chosen.sum()), "transductive": runner.about(fold)["transductive"]}  # fmt: skip
            for arm, (p, prediction) in answers.items():
                kind = {"arm": arm, "kind": "model" if arm in ARMS else "null"}
                for score in _scores(runner, test, p, prediction["predicted"], shared):
                    yield about | kind | score


def _scores(
    runner: FoldRunner, test: np.ndarray, p: np.ndarray, predicted: pd.Series, shared: Sequence[str]
) -> Iterator[dict[str, Any]]:
    overall = runner.score(test, p, predicted)
    n = overall.pop("n")
    yield from (
        {"region": OVERALL, "metric": m, "value": v, "n": n} for m, v in overall.items() if m != "absent_classes"
    )
    known = ~np.isnan(p[:, 0])
    if known.any():
        truth = runner.labels.to_numpy(dtype=object)[test][known]
        regions = per_class(truth, predicted.to_numpy()[known], p[known], classes=runner.classes).loc[list(shared)]
        for region, row in regions.iterrows():
            yield from (
                {"region": region, "metric": m, "value": row[m], "n": row["support"]}
                for m in ("precision", "recall", "f1", "roc_auc")
            )


def _order(
    labels: np.ndarray, test: np.ndarray, shared: Sequence[str], most: int, seed: int
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the rows of each region that may be labelled, in random order: ``most``, and half of them at most."""
    generator, out = rng(seed), {}
    for name in shared:
        rows = np.flatnonzero(test & (labels == name))
        out[name] = generator.permutation(rows)[: min(most, len(rows) // 2)]
    return out


def _sets(table: AnnData, group_key: str, wanted: Mapping[str, Any], library_key: str) -> dict[str, np.ndarray]:
    """Return the mask of each set."""
    if group_key == library_key or group_key == _keys.LIBRARY:
        column = section_column(table, library_key).astype(str)
    else:
        require_key(table.obs, group_key, where="adata.obs", argument="group_key")
        column = table.obs[group_key].astype(str).to_numpy()
    out = {}
    for argument, names in wanted.items():
        names = [label_name(name) for name in ([names] if np.ndim(names) == 0 else names)]
        for name in names:
            require_choice(name, tuple(dict.fromkeys(column)), argument=argument)
        out[argument] = np.isin(column, names)
        if not names:
            msg = f"`{argument}` is empty; name one or more of {listing(dict.fromkeys(column))}."
            raise ValueError(msg)
    both = sorted(set(column[out["source"] & out["target"]]))
    if both:
        msg = f"{listing(both)} is in `source` and in `target`; a section is either learned from or tested on."
        raise ValueError(msg)
    return out


def _leak(
    table: AnnData, model: RegionClassifier, source: np.ndarray, target: np.ndarray, library_key: str, donor_key: str
) -> str | None:
    """Return why the target is not new to a model fitted on the source, ``None`` where it is."""
    section = section_column(table, library_key).astype(str)
    both = sorted(set(section[source]) & set(section[target]))
    if both:
        return f"section {listing(both, 3)} is in both sets; use a `group_key` that keeps sections whole."
    if donor_key in table.obs:
        donor = table.obs[donor_key].astype(object)
        both = sorted({str(d) for d in set(donor[source].dropna()) & set(donor[target].dropna())})
        if both:
            return f"donor {listing(both, 3)} has sections in both sets, and serial sections are nearly copies."
    seen = sorted(set(getattr(model.image, "sections_seen", [])) & set(section[target]))
    if seen:
        return (
            f"the image encoder had been fitted on {listing(seen, 3)}, which is tested on. Fit it on the other set, "
            "and test one way with `both_directions=False`."
        )
    return None


def _shared_classes(labels: pd.Series, source: np.ndarray, target: np.ndarray) -> list[str]:
    one, other = (set(labels[mask].dropna()) for mask in (source, target))
    shared = sorted(one & other)
    if len(shared) < 2:
        msg = (
            f"The sets have {len(shared)} regions in common ({listing(shared)}), 2 are needed. Source: "
            f"{listing(sorted(one))}; target: {listing(sorted(other))}. Say which names mean the same with `mapping=`."
        )
        raise ValueError(msg)
    if one ^ other:
        warn(
            f"Scored are the {len(shared)} regions that both sets have. Only in the source: "
            f"{listing(sorted(one - other))}; only in the target: {listing(sorted(other - one))}. If names differ, "
            "see `mapping=`."
        )
    return shared


def _only(labels: pd.Series, rows: np.ndarray, shared: Sequence[str]) -> str:
    return "; ".join(sorted(set(labels[rows].dropna()) - set(shared)))


def _relabelled(data: Any, table: AnnData, labels: pd.Series, labels_key: str, table_key: str) -> Any:
    """Return the data with other labels; arrays are shared, and ``data`` is left as it is."""
    obs = table.obs.assign(**{labels_key: labels})
    shallow = AnnData(
        table.X, obs=obs, var=table.var, obsm=dict(table.obsm), layers=dict(table.layers), uns=dict(table.uns)
    )
    return replace_table(data, shallow, table_key)


def _name(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ", ".join(str(name) for name in names)
