"""The heads of a fusion classifier: which there are, what each sees, how they are fitted and asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from histoweave._random import child_seeds
from histoweave._validate import warn
from histoweave.models.fusion._attention import AttentionHead
from histoweave.models.fusion._combination import Subset
from histoweave.models.fusion._heads import HEADS, Head
from histoweave.models.fusion._inner import candidates, fit_head

STORED = HEADS | {AttentionHead.kind: AttentionHead}  # every kind that a saved classifier may hold


def blocks(modalities: Sequence[str], *, joint: bool) -> list[Subset]:
    """Return the feature blocks that heads are fitted on: each modality, or each combination of them (``joint``)."""
    return [c for r in range(1, len(modalities) + 1 if joint else 2) for c in combinations(modalities, r)]


def members_of(chosen: Subset, kinds: Sequence[str], *, joint: bool) -> list[str]:
    """Return the names of the heads that a subset of modalities pools."""
    own = [chosen] if joint else [(m,) for m in chosen]
    return [f"{'+'.join(block)}:{kind}" for block in own for kind in kinds]


def modality_of(member: str) -> str:
    """Return the modalities that a head sees, joined by ``+``."""
    return member.split(":")[0]


def fit_members(
    features: Mapping[str, np.ndarray],
    codes: np.ndarray,
    fold: np.ndarray,
    positions: np.ndarray | None,
    n_classes: int,
    *,
    kinds: Sequence[str],
    joint: bool,
    random_state: int,
    memory: dict[str, tuple[Head, np.ndarray]] | None = None,
) -> tuple[dict[str, Head], dict[str, np.ndarray]]:
    """Fit every head on all the rows it can see; also return the probabilities out of fold ``(n, k)`` of each.

    Parameters
    ----------
    features
        Modality to array ``(n, d)``.
    codes, fold
        Class number and inner fold of every row, -1 for none.
    positions
        Where rows lie, see :func:`apart`.
    n_classes
        Number of classes.
    kinds
        Kinds of heads.
    joint
        Heads see each combination of modalities side by side, not one modality each.
    random_state
        Seed.
    memory
        Heads of other fits, which are taken where all that they were fitted on is the same, and added to.
    """
    memory = {} if memory is None else memory
    members, out_of_fold = {}, {}
    wanted = blocks(sorted(features), joint=joint)
    seeds = child_seeds(random_state, len(wanted) * len(kinds))
    for block in wanted:
        X = np.concatenate([features[m] for m in block], axis=1)
        rows = np.flatnonzero((codes >= 0) & ~np.isnan(X).any(axis=1))
        if len(np.unique(codes[rows])) < 2:
            warn(f"{'+'.join(block)} is left out: {len(rows)} labelled rows have it, not of two classes.")
            continue
        where = None if positions is None else positions[rows]
        for kind, settings in candidates(tuple(kinds), [features[m].shape[1] for m in block]):
            fitted_on = X[rows], codes[rows], n_classes, fold[rows], seeds.pop(), where
            known = _digest(kind, *fitted_on)
            if known not in memory:
                memory[known] = fit_head(settings, *fitted_on)
            name = f"{'+'.join(block)}:{kind}"
            members[name], out_of_fold[name] = memory[known][0], np.full((len(codes), n_classes), np.nan)
            out_of_fold[name][rows] = memory[known][1]
    return members, out_of_fold


def _digest(*of: Any) -> str:
    found = hashlib.blake2b()
    for value in of:
        found.update(repr((value.shape, value.dtype)).encode() if isinstance(value, np.ndarray) else b"")
        found.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return found.hexdigest()


def ask_members(
    members: Mapping[str, Head], names: Sequence[str], features: Mapping[str, np.ndarray], rows: np.ndarray
) -> np.ndarray:
    """Return the probabilities ``(n_heads, n_rows, k)`` of the heads named."""
    seen = [np.concatenate([features[m][rows] for m in modality_of(name).split("+")], axis=1) for name in names]
    return np.stack([members[name].predict_proba(X) for name, X in zip(names, seen, strict=True)])
