"""From predictions out of fold to calibrated combinations: pools, calibration, abstention and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histoweave._validate import warn
from histoweave.metrics import classification
from histoweave.models._base import Arrays, prefixed, subset
from histoweave.models.fusion._balance import balanced_weights, shared_weights
from histoweave.models.fusion._calibration import Calibrator
from histoweave.models.fusion._check import Graph, neighbours_of
from histoweave.models.fusion._gate import Gate
from histoweave.models.fusion._pool import LogPool, logarithms
from histoweave.models.fusion._smoothing import Smoother, within

Subset = tuple[str, ...]
DECISIONS = ("balanced", "accuracy")
ROWS_PER_HEAD = 5  # fewer rows out of fold say nothing about how far to trust a head


@dataclass
class Combination:
    """What turns the heads of one subset of modalities into an answer."""

    pool: LogPool | Gate
    calibrator: Calibrator
    threshold: float = 0.0
    spread: np.ndarray | None = None
    smoother: Smoother | None = None

    @classmethod
    def fit(
        cls,
        p: np.ndarray,
        y: np.ndarray,
        groups: np.ndarray,
        calibration: str,
        owner: np.ndarray | None = None,
        smoothing: str | None = None,
        graph: sp.csr_matrix | None = None,
    ) -> Self:
        """Fit on probabilities of heads out of fold ``(n_heads, n, k)``, class numbers and groups ``(n,)``.

        With ``owner``, the modality of every head ``(n_heads,)``, a gate weighs the modalities row by row. With
        ``smoothing``, its strength is chosen on a ``graph`` of neighbours ``(n, n)`` before the calibration.
        """
        weights = balanced_weights(y, groups)
        pool = LogPool().fit(p, y, weights, biased=False) if owner is None else Gate(owner).fit(p, y, weights)
        found, smoother = pool.combine(p), None
        if smoothing is not None:
            smoother = Smoother(smoothing).fit(found, y, graph)
            found = smoother.apply(found, graph)
        calibrator = Calibrator(calibration).fit(found, y, shared_weights(groups))
        return cls(pool, calibrator, spread=logarithms(p).std(axis=2).mean(axis=1), smoother=smoother)

    @classmethod
    def equal(cls, n_heads: int, n_classes: int) -> Self:
        """Return the combination of equal trust, not calibrated."""
        return cls(LogPool.equal(n_heads, n_classes), Calibrator.identity(n_classes), spread=np.ones(n_heads))

    @property
    def evidence(self) -> np.ndarray:
        """How much each head moves the answer ``(n_heads,)``: its weight times how far its logarithms spread."""
        return self.pool.weights * self.spread

    @property
    def gated(self) -> bool:
        """Whether the weights of modalities differ from row to row."""
        return isinstance(self.pool, Gate)

    def apply(self, p: np.ndarray, graph: sp.csr_matrix | None = None) -> dict[str, np.ndarray]:
        """Return the probabilities ``(n, k)`` whose largest each decision takes; those of "accuracy" are calibrated.

        Without a ``graph`` of neighbours nothing is smoothed.
        """
        balanced = self.pool.combine(p)
        if self.smoother is not None and graph is not None:
            balanced = self.smoother.apply(balanced, graph)
        return {"balanced": balanced, "accuracy": self.calibrator.apply(balanced)}

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return ``(config, arrays)``."""
        config, arrays = self.calibrator.state()
        arrays = prefixed("calibrator", arrays) | prefixed("pool", self.pool.arrays()) | {"spread": self.spread}
        about = {"calibrator": config, "threshold": self.threshold, "gated": self.gated}
        if self.smoother is not None:
            about["smoother"] = [self.smoother.kind, self.smoother.strength]
        return about, arrays

    @classmethod
    def from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        """Rebuild from `state`."""
        pool = (Gate if config["gated"] else LogPool).from_arrays(subset("pool", arrays))
        calibrator = Calibrator.from_state(config["calibrator"], subset("calibrator", arrays))
        smoother = Smoother(*config["smoother"]) if "smoother" in config else None
        return cls(pool, calibrator, config["threshold"], arrays["spread"], smoother)


def fit_combinations(
    out_of_fold: Mapping[str, np.ndarray],
    modalities: Sequence[str],
    members_of: Callable[[Subset], list[str]],
    codes: np.ndarray,
    groups: np.ndarray,
    fold: np.ndarray,
    names: Sequence[str],
    *,
    coverage: float,
    decision: str,
    calibration: str,
    gated: bool,
    smoothing: str | None = None,
    graph: Graph = None,
) -> tuple[dict[Subset, Combination], pd.DataFrame]:
    """Fit the combination, the threshold and the scores of every subset of modalities.

    Thresholds and scores come from combinations fitted without the fold they are applied to.

    Parameters
    ----------
    out_of_fold
        Head to probabilities ``(n, k)``, NaN for rows that could not be held out.
    modalities
        Names of the modalities.
    members_of
        The heads that a subset of modalities pools; subsets of which a head is missing are left out.
    codes, groups, fold
        Class number, group and inner fold of every row.
    names
        Class names.
    coverage
        Share of rows that should get an answer.
    decision, calibration
        See :class:`FusionClassifier`.
    gated
        Weigh modalities row by row.
    smoothing, graph
        Kind of :class:`Smoother` and the neighbours of every row. Neighbours of another fold had been predicted by
        models that knew the row's label, so only those of the same fold count. Scores then say what there
        was before (``"macro_f1_before"``, ``"accuracy_before"``).
    """
    found, scores = {}, []
    for chosen in (c for r in range(1, len(modalities) + 1) for c in combinations(modalities, r)):
        members = members_of(chosen)
        if not all(m in out_of_fold for m in members):
            continue
        p = np.stack([out_of_fold[m] for m in members])
        rows = np.flatnonzero(~np.isnan(p).any(axis=(0, 2)))
        name = "+".join(chosen)
        if len(rows) < ROWS_PER_HEAD * len(members) or len(np.unique(codes[rows])) < 2:
            found[chosen] = Combination.equal(len(members), len(names))
            warn(
                f"Too few labels to hold any out ({len(rows)} rows could be predicted by a model that had not seen "
                f"their group): probabilities from {name} are not calibrated and the classifier never abstains. "
                "Label more spots, of every region in several places."
            )
            continue
        p, y, g = p[:, rows], codes[rows], groups[rows]
        owner = np.repeat(np.arange(len(chosen)), len(members) // len(chosen)) if gated and len(chosen) > 1 else None
        near = None if smoothing is None else within(neighbours_of(graph, chosen)[rows][:, rows], fold[rows])
        options = {"calibration": calibration, "owner": owner}
        found[chosen] = Combination.fit(p, y, g, **options, smoothing=smoothing, graph=near)
        held_out = _held_out(p, y, g, fold[rows], found[chosen], **options, smoothing=smoothing, graph=near)
        answers = {option: q.argmax(axis=1) for option, q in held_out.items()}
        confidence = held_out["accuracy"][np.arange(len(y)), answers[decision]]
        found[chosen].threshold = float(np.quantile(confidence, 1 - coverage))
        row = {"modalities": name} | _scores(y, held_out["accuracy"], answers, decision, names)
        if smoothing is not None:
            plain = _held_out(p, y, g, fold[rows], found[chosen], **options)[decision].argmax(axis=1)
            before = _numbers(y, plain, None, names)
            row |= {"smoothing_strength": found[chosen].smoother.strength}
            row |= {f"{score}_before": before[score] for score in ("macro_f1", "accuracy")}
        scores.append(row)
    if not found:
        msg = "No modality has labelled rows of two classes. Check that crops or counts exist for labelled spots."
        raise ValueError(msg)
    return found, pd.DataFrame(scores)


def _held_out(
    p: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    fold: np.ndarray,
    fitted: Combination,
    *,
    smoothing: str | None = None,
    graph: sp.csr_matrix | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Return what `Combination.apply` does, each fold from a combination fitted on the others.

    Where the other folds lack a second class, the combination ``fitted`` on all rows stands in.
    """
    out = {option: np.empty(p.shape[1:]) for option in DECISIONS}
    for i in np.unique(fold):
        test, rest = np.flatnonzero(fold == i), np.flatnonzero(fold != i)
        near, far = (None, None) if graph is None else (graph[test][:, test], graph[rest][:, rest])
        enough = len(np.unique(y[rest])) > 1
        options |= {"smoothing": smoothing, "graph": far}
        combination = Combination.fit(p[:, rest], y[rest], groups[rest], **options) if enough else fitted
        for option, q in combination.apply(p[:, test], near).items():
            out[option][test] = q
    return out


def _scores(
    y: np.ndarray, p: np.ndarray, answers: Mapping[str, np.ndarray], decision: str, names: Sequence[str]
) -> dict[str, float]:
    """Scores of the decision taken, and macro-F1 of both; probabilities are the same and scored once."""
    both = {name: _numbers(y, a, p if name == decision else None, names) for name, a in answers.items()}
    return both[decision] | {f"macro_f1_{name}": both[name]["macro_f1"] for name in DECISIONS}


def _numbers(y: np.ndarray, answer: np.ndarray, p: np.ndarray | None, names: Sequence[str]) -> dict[str, float]:
    classes = np.asarray(names, dtype=object)
    found = classification(classes[y], classes[answer], p, classes=names)
    return {name: value for name, value in found.items() if isinstance(value, int | float)}
