"""The fusion classifier a user holds: arrays per modality in, calibrated class probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from histoweave._random import child_seeds
from histoweave._validate import listing, require_choice, require_number
from histoweave.models._base import Model, require_fitted
from histoweave.models.fusion._attention import AttentionHead
from histoweave.models.fusion._balance import shared_weights
from histoweave.models.fusion._calibration import KINDS
from histoweave.models.fusion._check import Graph, neighbours_of, require_graph, rows_to_predict, training_rows
from histoweave.models.fusion._combination import DECISIONS, Subset, fit_combinations
from histoweave.models.fusion._heads import HEADS
from histoweave.models.fusion._inner import inner_folds
from histoweave.models.fusion._members import ask_members, fit_members, members_of
from histoweave.models.fusion._saved import SavedFusion
from histoweave.models.fusion._smoothing import KINDS as SMOOTHINGS
from histoweave.models.fusion._weights import TellsWeights

METHODS = ("stack", "concat", "gated", "cross_attention")
JOINT = ("concat", "cross_attention")  # heads see all modalities at once


class FusionClassifier(SavedFusion, TellsWeights, Model):
    """Classify rows from one or several blocks of features, each of which may be missing.

    For every subset of the modalities one calibrated combination is fitted, so that a row is classified from
    what it has: image only, genes only, or both.

    Parameters
    ----------
    method
        ``"stack"``: heads on each modality alone, combined by a pool fitted on predictions out of fold; robust
        to a useless modality. ``"concat"``: heads on the modalities side by side; can use interactions.
        ``"gated"``: heads as for ``"stack"``, and a gate that weighs the modalities row by row, see
        :meth:`spot_weights`. ``"cross_attention"``: a small network on the modalities side by side, in
        which tokens of one attend to those of the others; finds what only their combination shows, from a hundred
        labels or more.
    heads
        Kinds of heads, ``"linear"`` (class-balanced logistic regression) and ``"forest"`` (extremely
        randomised trees); several are pooled. Not used by ``"cross_attention"``.
    decision
        ``"balanced"``: the class that the evidence favours, as if all classes were equally common, which is what
        macro-F1 and balanced accuracy ask for; rare regions are found. ``"accuracy"``: the most probable class,
        which hides rare regions where the evidence is weak. Confidence means the same in both: the probability
        that the decision is right in a section composed like the labelled rows.
    calibration
        ``"temperature"`` (few labels) or ``"isotonic"`` (hundreds of them); neither changes ``"balanced"`` decisions.
    smoothing
        Let the answer follow the neighbours', where `fit` and `predict` are given them: ``"potts"`` (mean field of a
        Potts model [1]_), or ``"vote"`` and ``"similar"`` (mean of their probabilities). How strongly is chosen out of
        fold, and ``history`` says what it did to the scores. Neighbours in space suit broad regions; layers one spot
        wide are lost to them. For ``"similar"``, a transductive step, they are the rows of a section that look alike
        (label propagation [2]_): what a new section's own structure says corrects what differs between sections.
        Explanations speak of the answer before it is smoothed.
    coverage
        Share of rows that should get an answer; on the rest, the least confident, the classifier abstains.
        The threshold is the matching quantile of confidence out of fold.
    n_inner
        Inner folds that choose regularisation, pool, calibration and threshold. Groups are never split.
    random_state
        Seed.

    Attributes
    ----------
    classes
        Class names in the order of the probability columns.
    modalities
        Names of the blocks it was fitted on, in order.
    widths
        Number of columns of each.
    class_shares
        Shares of the classes among the labelled rows, a group counting as ten rows at most.
    history
        Scores out of fold per subset of modalities: accuracy, macro-F1, log loss, ..., and macro-F1 of either
        decision (a DataFrame). Pool and calibration are fitted without the fold they are scored on.

    Notes
    -----
    Which class ranks first and how sure that is are learned apart. The ranking is a pool of class-balanced heads,
    whose weights are fitted with every class of every group counted once: many spots of one patient are
    one observation of how far a head can be trusted on the next patient. Few groups leave the weights near equal,
    and they never vanish, so that weak evidence still makes a map. The calibration then restores the class
    shares of the labelled rows, a group counting as ten rows at most: probabilities refer to a section with that
    composition.

    References
    ----------
    .. [1] Potts (1952), Mathematical Proceedings of the Cambridge Philosophical Society 48:106.
    .. [2] Zhou et al. (2004), Learning with local and global consistency, NeurIPS 16.

    Examples
    --------
    >>> import numpy as np, histoweave as hw
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["a", "b"], 50)
    >>> X = rng.normal(size=(100, 5)) + (y == "b")[:, None]
    >>> clf = hw.models.FusionClassifier().fit({"image": X}, y)
    >>> clf.predict_proba({"image": X}).shape
    (100, 2)
    """

    def __init__(
        self,
        method: str = "stack",
        *,
        heads: Sequence[str] = ("linear", "forest"),
        decision: str = "balanced",
        calibration: str = "temperature",
        smoothing: str | None = None,
        coverage: float = 0.9,
        n_inner: int = 5,
        random_state: int = 0,
    ) -> None:
        require_choice(method, METHODS, argument="method")
        heads = (heads,) if isinstance(heads, str) else heads
        for head in heads:
            require_choice(head, tuple(HEADS), argument="heads")
        require_choice(decision, DECISIONS, argument="decision")
        require_choice(calibration, KINDS, argument="calibration")
        require_choice(smoothing, (*SMOOTHINGS, None), argument="smoothing")
        require_number(coverage, argument="coverage", above=0, at_most=1)
        require_number(n_inner, argument="n_inner", at_least=2, integer=True)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        if not heads:
            msg = f"`heads` is empty; name one or more of {listing(HEADS)}."
            raise ValueError(msg)
        self.method, self.heads, self.coverage = method, tuple(heads), float(coverage)
        self.decision, self.calibration, self.smoothing = decision, calibration, smoothing
        self.n_inner, self.random_state = int(n_inner), int(random_state)
        self.classes: list[str] | None = None
        self._memory: dict[str, Any] | None = None  # heads that other fits may share

    def fit(
        self,
        features: Mapping[str, np.ndarray],
        labels: Sequence[str | None],
        *,
        groups: Sequence[Any] | None = None,
        positions: np.ndarray | None = None,
        graph: sp.csr_matrix | Mapping[str, sp.csr_matrix] | None = None,
    ) -> Self:
        """Fit on labelled rows.

        Parameters
        ----------
        features
            Modality name (without ``"+"`` and ``":"``) to array ``(n, d)``; a row of NaN has no such modality.
        labels
            Class names ``(n,)``; missing (``None`` or NaN) for unlabelled rows, which are left out.
        groups
            Donor, section or block of every row ``(n,)``: inner folds never split one. Without it, rows are
            taken to be independent.
        positions
            Where rows lie ``(n, d)``, in units of how far their features reach. Inner training rows nearer than 1
            to a test row are left out, but never more than the nearer half of them.
        graph
            Neighbours of every row ``(n, n)``, for ``smoothing``; or by modality, where they differ.

        Returns
        -------
        The fitted classifier.

        Raises
        ------
        ValueError
            Fewer than two classes, no features, features that are partly NaN, or no ``graph`` to smooth over.
        """
        if self.smoothing is not None and graph is None:
            msg = f"`smoothing={self.smoothing!r}` needs `graph`, the neighbours of every row."
            raise ValueError(msg)
        features, codes, names, groups, positions = training_rows(features, labels, groups, positions)
        graph = require_graph(graph, len(codes))
        self.classes, self.modalities = None, sorted(features)  # not fitted again until all is done
        self.widths = {name: int(block.shape[1]) for name, block in features.items()}
        fold_seed, seed = child_seeds(self.random_state, 2)
        fold = np.full(len(codes), -1)
        labelled = codes >= 0
        fold[labelled] = inner_folds(codes[labelled], groups[labelled], self.n_inner, fold_seed)
        with threadpool_limits(1):  # fits this small only lose by threads, badly so on a busy machine
            options = {"kinds": self._kinds, "joint": self._joint, "random_state": seed, "memory": self._memory}
            self._members, out_of_fold = fit_members(features, codes, fold, positions, len(names), **options)
            options = {name: getattr(self, name) for name in ("coverage", "decision", "calibration", "smoothing")}
            options |= {"gated": self.method == "gated", "graph": graph}
            self._combinations, self.history = fit_combinations(
                out_of_fold, self.modalities, self._members_of, codes, groups, fold, names, **options
            )
        weights = np.bincount(codes[labelled], shared_weights(groups[labelled]), minlength=len(names))
        self.class_shares = (weights / weights.sum()).tolist()
        self.classes = names
        return self

    @property
    def _joint(self) -> bool:
        return self.method in JOINT

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (AttentionHead.kind,) if self.method == "cross_attention" else self.heads

    def _members_of(self, chosen: Subset) -> list[str]:
        """Return the heads that a subset of modalities pools."""
        return members_of(chosen, self._kinds, joint=self._joint)

    @property
    def answers_from(self) -> set[str]:
        """The modalities that labelled rows of two classes had; of the others nothing was learned."""
        return {m for chosen in self._combinations for m in chosen}

    @property
    def thresholds(self) -> dict[str, float]:
        """Confidence below which it abstains, per subset of modalities."""
        return {"+".join(chosen): c.threshold for chosen, c in self._combinations.items()}

    def predict_proba(
        self,
        features: Mapping[str, np.ndarray],
        *,
        modalities: Sequence[str] | None = None,
        graph: sp.csr_matrix | Mapping[str, sp.csr_matrix] | None = None,
    ) -> np.ndarray:
        """Return calibrated probabilities ``(n, n_classes)``.

        Each row is classified from the modalities it has; rows without any are NaN.

        Parameters
        ----------
        features
            Modality name to array ``(n, d)``; missing modalities are left out, missing rows are NaN.
        modalities
            Use only these, even where others are there.
        graph
            Neighbours of every row ``(n, n)``, or those by each modality; without it nothing is smoothed. Rows with
            other modalities do not count as neighbours.
        """
        return self._predict(features, modalities, graph)[0]

    def _parts(
        self, features: Mapping[str, np.ndarray], modalities: Sequence[str] | None
    ) -> tuple[int, Iterator[tuple[Subset, np.ndarray, np.ndarray]]]:
        """Return the number of rows, and per subset of modalities ``(subset, its rows, what its heads say)``."""
        require_fitted(self, "classes")
        blocks = rows_to_predict(features, modalities, self.answers_from, self.widths)
        present = np.stack([~np.isnan(block).any(axis=1) for block in blocks.values()], axis=1)

        def parts() -> Iterator[tuple[Subset, np.ndarray, np.ndarray]]:
            for pattern in np.unique(present, axis=0):
                here = {m for m, measured in zip(blocks, pattern, strict=True) if measured}
                chosen = max((c for c in self._combinations if here.issuperset(c)), key=len, default=())
                if chosen:
                    rows = np.flatnonzero((present == pattern).all(axis=1))
                    yield chosen, rows, ask_members(self._members, self._members_of(chosen), blocks, rows)

        return len(present), parts()

    def _predict(
        self,
        features: Mapping[str, np.ndarray],
        modalities: Sequence[str] | None = None,
        graph: Graph = None,
    ) -> tuple[np.ndarray, pd.DataFrame]:
        """Return calibrated probabilities, NaN for rows without any modality, and what `predict` does."""
        n, parts = self._parts(features, modalities)
        graph = require_graph(graph, n)
        p = np.full((n, len(self.classes)), np.nan)
        predicted, confidence = np.full(n, None, dtype=object), np.full(n, np.nan)
        abstain, used = np.ones(n, dtype=bool), np.full(n, "", dtype=object)
        for chosen, rows, said in parts:
            near = neighbours_of(graph, chosen)
            found = self._combinations[chosen].apply(said, None if near is None else near[rows][:, rows])
            decided = found[self.decision].argmax(axis=1)
            p[rows] = found["accuracy"]
            predicted[rows] = np.asarray(self.classes, dtype=object)[decided]
            confidence[rows] = p[rows, decided]
            abstain[rows] = ~(confidence[rows] >= self._combinations[chosen].threshold)
            used[rows] = "+".join(chosen)
        columns = {"predicted": predicted, "confidence": confidence, "abstain": abstain, "modalities": used}
        return p, pd.DataFrame(columns)

    def predict(
        self,
        features: Mapping[str, np.ndarray],
        *,
        modalities: Sequence[str] | None = None,
        graph: sp.csr_matrix | Mapping[str, sp.csr_matrix] | None = None,
    ) -> pd.DataFrame:
        """Return the class of every row, how sure, and whether to abstain.

        Parameters
        ----------
        features, modalities, graph
            As for :meth:`predict_proba`.

        Returns
        -------
        A DataFrame with ``predicted`` (``None`` without any modality), ``confidence`` (the calibrated probability
        of the class predicted), ``abstain`` (confidence below the threshold, or no modality) and ``modalities``
        (what it was predicted from, ``"gene+image"``). With ``decision="balanced"`` the class predicted need not be
        the most probable one.
        """
        return self._predict(features, modalities, graph)[1]
