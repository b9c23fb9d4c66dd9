"""The fusion classifier a user holds: arrays per modality in, calibrated class probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Self

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from histoweave._random import child_seeds
from histoweave._validate import label_name, listing, require_choice, require_matrix, require_number, warn
from histoweave.models._base import Arrays, Model, markdown_table, prefixed, require_fitted, subset
from histoweave.models.fusion._calibrate import Subset, fit_pools
from histoweave.models.fusion._heads import HEADS
from histoweave.models.fusion._inner import candidates, fit_head, inner_folds
from histoweave.models.fusion._pool import LogPool

METHODS = ("stack", "concat")
ARGUMENTS = ("method", "heads", "coverage", "n_inner", "random_state")
FITTED = ("classes", "modalities", "widths", "thresholds")


class FusionClassifier(Model):
    """Classify rows from one or several blocks of features, each of which may be missing.

    For every subset of the modalities one calibrated combination is fitted, so that a row is classified from
    what it has: image only, genes only, or both.

    Parameters
    ----------
    method
        ``"stack"``: heads on each modality alone, combined by a pool fitted on predictions out of fold; robust
        to a useless modality. ``"concat"``: heads on the modalities side by side; can use interactions.
    heads
        Kinds of heads, ``"linear"`` (class-balanced logistic regression) and ``"forest"`` (extremely
        randomised trees); several are pooled.
    coverage
        Share of rows that should get an answer; on the rest, the least confident, the classifier abstains.
        The threshold is the matching quantile of confidence out of fold.
    n_inner
        Inner folds that choose regularisation, pool and threshold. Groups are never split.
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
    thresholds
        Confidence below which it abstains, per subset of modalities.
    history
        Scores out of fold per subset of modalities: accuracy, macro-F1, log loss, ... (a DataFrame).

    Notes
    -----
    Heads are class-balanced; the pool's biases restore the class shares of the labelled rows, so probabilities
    refer to a section with that composition.

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
        coverage: float = 0.9,
        n_inner: int = 5,
        random_state: int = 0,
    ) -> None:
        require_choice(method, METHODS, argument="method")
        heads = (heads,) if isinstance(heads, str) else heads
        for head in heads:
            require_choice(head, tuple(HEADS), argument="heads")
        require_number(coverage, argument="coverage", above=0, at_most=1)
        require_number(n_inner, argument="n_inner", at_least=2, integer=True)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        if not heads:
            msg = f"`heads` is empty; name one or more of {listing(HEADS)}."
            raise ValueError(msg)
        self.method, self.heads, self.coverage = method, tuple(heads), float(coverage)
        self.n_inner, self.random_state = int(n_inner), int(random_state)
        self.classes: list[str] | None = None

    def fit(
        self,
        features: Mapping[str, np.ndarray],
        labels: Sequence[str | None],
        *,
        groups: Sequence[Any] | None = None,
        positions: np.ndarray | None = None,
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

        Returns
        -------
        The fitted classifier.

        Raises
        ------
        ValueError
            Fewer than two classes, no features, or features that are partly NaN.
        """
        labels = pd.Series(np.asarray(labels, dtype=object)).map(label_name, na_action="ignore")
        labels = labels.where(labels.notna() & (labels != ""), None)
        n = len(labels)
        features = {str(k): require_matrix(v, n, name=f"features[{k!r}]") for k, v in features.items()}
        if not features or any(mark in name for name in features for mark in "+:"):
            msg = f"`features` must name one modality or more, without '+' and ':'; got {listing(features)}."
            raise ValueError(msg)
        names = sorted(labels.dropna().unique())
        if len(names) < 2:
            msg = f"At least 2 classes need labelled rows, found {listing(names)}."
            raise ValueError(msg)
        codes = pd.Categorical(labels, categories=names).codes.astype(int)
        groups = np.arange(n) if groups is None else pd.factorize(np.asarray(groups))[0]
        if len(groups) != n:
            msg = f"`groups` has {len(groups)} entries for {n} labels; give one a row."
            raise ValueError(msg)
        if positions is not None:
            positions = require_matrix(positions, n, name="positions")
        self.classes, self.modalities = None, sorted(features)  # not fitted again until all is done
        self.widths = {name: int(block.shape[1]) for name, block in features.items()}
        with threadpool_limits(1):  # fits this small only lose by threads, badly so on a busy machine
            oof = self._fit_members(features, codes, groups, positions, len(names))
            self._pools, self.thresholds, self.history = fit_pools(
                oof, self.modalities, self._members_of, codes, names, self.coverage
            )
        self.classes = names
        return self

    def _blocks(self) -> list[Subset]:
        """Return the feature blocks that heads are fitted on: each modality, or each combination of them."""
        size = 1 if self.method == "stack" else len(self.modalities)
        return [c for r in range(1, size + 1) for c in combinations(self.modalities, r)]

    def _members_of(self, chosen: Subset) -> list[str]:
        """Return the heads that a subset of modalities pools."""
        own = [(m,) for m in chosen] if self.method == "stack" else [chosen]
        return [f"{'+'.join(block)}:{kind}" for block in own for kind in self.heads]

    def _fit_members(
        self,
        features: Mapping[str, np.ndarray],
        codes: np.ndarray,
        groups: np.ndarray,
        positions: np.ndarray | None,
        k: int,
    ) -> dict[str, np.ndarray]:
        """Fit every head on all its rows; return their probabilities out of fold."""
        self._members, out_of_fold = {}, {}
        fold_seed, *seeds = child_seeds(self.random_state, 1 + len(self._blocks()) * len(self.heads))
        labelled = codes >= 0
        fold = np.full(len(codes), -1)
        fold[labelled] = inner_folds(codes[labelled], groups[labelled], self.n_inner, fold_seed)
        for block in self._blocks():
            X = np.concatenate([features[m] for m in block], axis=1)
            rows = np.flatnonzero(labelled & ~np.isnan(X).any(axis=1))
            if len(np.unique(codes[rows])) < 2:
                warn(f"{'+'.join(block)} is left out: {len(rows)} labelled rows have it, not of two classes.")
                continue
            where = None if positions is None else positions[rows]
            for kind, settings in candidates(self.heads):
                head, p = fit_head(settings, X[rows], codes[rows], k, fold[rows], seeds.pop(), where)
                name = f"{'+'.join(block)}:{kind}"
                self._members[name] = head
                out_of_fold[name] = np.full((len(codes), k), np.nan)
                out_of_fold[name][rows] = p
        return out_of_fold

    def predict_proba(
        self, features: Mapping[str, np.ndarray], *, modalities: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return calibrated probabilities ``(n, n_classes)``.

        Each row is classified from the modalities it has; rows without any are NaN.

        Parameters
        ----------
        features
            Modality name to array ``(n, d)``; missing modalities are left out, missing rows are NaN.
        modalities
            Use only these, even where others are there.
        """
        return self._predict(features, modalities)[0]

    def _predict(
        self, features: Mapping[str, np.ndarray], modalities: Sequence[str] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and each row's abstention threshold, both NaN for rows without any modality."""
        require_fitted(self, "classes")
        fitted = {m for chosen in self._pools for m in chosen}
        asked = set(features if modalities is None else modalities)
        wanted = [m for m in self.modalities if m in asked & fitted & set(features)]
        if not wanted:
            msg = (
                f"None of the modalities asked for ({listing(sorted(asked))}) is both among the features "
                f"({listing(features)}) and fitted ({listing(sorted(fitted))})."
            )
            raise ValueError(msg)
        n = len(features[wanted[0]])
        blocks = {m: require_matrix(features[m], n, name=f"features[{m!r}]") for m in wanted}
        for m, block in blocks.items():
            if block.shape[1] != self.widths[m]:
                msg = f"features[{m!r}] has {block.shape[1]} columns, the classifier was fitted on {self.widths[m]}."
                raise ValueError(msg)
        present = np.stack([~np.isnan(blocks[m]).any(axis=1) for m in wanted], axis=1)
        out = np.full((n, len(self.classes)), np.nan)
        threshold = np.full(n, np.nan)
        for pattern in np.unique(present, axis=0):
            here = {m for m, measured in zip(wanted, pattern, strict=True) if measured}
            chosen = max((c for c in self._pools if here.issuperset(c)), key=len, default=())
            if not chosen:
                continue
            rows = np.flatnonzero((present == pattern).all(axis=1))
            out[rows] = self._pools[chosen].combine(self._member_probabilities(chosen, blocks, rows))
            threshold[rows] = self.thresholds["+".join(chosen)]
        return out, threshold

    def _member_probabilities(self, chosen: Subset, blocks: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        stack = []
        for name in self._members_of(chosen):
            block = name.split(":")[0].split("+")
            stack.append(self._members[name].predict_proba(np.concatenate([blocks[m][rows] for m in block], axis=1)))
        return np.stack(stack)

    def predict(self, features: Mapping[str, np.ndarray], *, modalities: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the class of every row, how sure, and whether to abstain.

        Parameters
        ----------
        features, modalities
            As for :meth:`predict_proba`.

        Returns
        -------
        A DataFrame with ``predicted`` (``None`` without any modality), ``confidence`` (the largest
        probability) and ``abstain`` (confidence below the threshold, or no modality).
        """
        p, threshold = self._predict(features, modalities)
        known = ~np.isnan(p[:, 0])
        predicted = np.full(len(p), None, dtype=object)
        predicted[known] = np.asarray(self.classes, dtype=object)[p[known].argmax(axis=1)]
        confidence = np.full(len(p), np.nan)
        confidence[known] = p[known].max(axis=1)
        return pd.DataFrame({"predicted": predicted, "confidence": confidence, "abstain": ~(confidence >= threshold)})

    def modality_weights(self) -> pd.Series:
        """Return how much the full combination trusts each modality: the sum of its heads' pool weights.

        Only for ``method="stack"``, where heads belong to one modality.
        """
        require_fitted(self, "classes")
        if self.method != "stack":
            msg = "`modality_weights` needs `method='stack'`: the heads of 'concat' see all modalities at once."
            raise ValueError(msg)
        chosen = max(self._pools, key=len)
        modality = pd.Index([name.split(":")[0] for name in self._members_of(chosen)], name="modality")
        return pd.Series(self._pools[chosen].weights, index=modality, name="weight").groupby(level=0).sum()

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "classes")
        config = {name: getattr(self, name) for name in (*ARGUMENTS, *FITTED)}
        config["history"] = self.history.to_dict("records")
        arrays: Arrays = {}
        config["members"] = {}
        for name, head in self._members.items():
            config["members"][name], values = head.state()
            arrays |= prefixed(f"member.{name}", values)
        for chosen, pool in self._pools.items():
            arrays |= prefixed(f"pool.{'+'.join(chosen)}", {"weights": pool.weights, "bias": pool.bias})
        return config, arrays

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        model = cls(**{name: config[name] for name in ARGUMENTS})
        for name in FITTED:
            setattr(model, name, config[name])
        model.history = pd.DataFrame(config["history"])
        model._members = {
            name: HEADS[c["kind"]].from_state(c, subset(f"member.{name}", arrays))
            for name, c in config["members"].items()
        }
        model._pools = {}
        for name in model.thresholds:
            pool = LogPool()
            values = subset(f"pool.{name}", arrays)
            pool.weights, pool.bias = values["weights"], values["bias"]
            model._pools[tuple(name.split("+"))] = pool
        return model

    def _card(self) -> list[str]:
        lines = [
            f"- classes: {', '.join(self.classes)}",
            f"- modalities: {', '.join(self.modalities)}",
            "",
            "## Scores out of fold, inside the training rows",
            "",
        ]
        if self.history.empty:
            return [*lines, "Too few labels to hold any out."]
        columns = ["modalities", "n", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"]
        return [*lines, *markdown_table(self.history[columns])]
