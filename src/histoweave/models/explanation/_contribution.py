"""How much each modality adds: Shapley values over the answers from every subset of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from math import factorial

import numpy as np

from histoweave.models.fusion import FusionClassifier
from histoweave.models.fusion._combination import Subset

SMALLEST = 1e-6  # probabilities below this have no meaningful logarithm


def subsets(players: Sequence[str]) -> list[Subset]:
    """Return every subset of the players, the empty one first, the full one last."""
    return list(chain.from_iterable(combinations(players, r) for r in range(len(players) + 1)))


def shapley(value: Mapping[Subset, np.ndarray], players: Sequence[str]) -> np.ndarray:
    """Return the Shapley value of every player ``(n_players, ...)``, exact (Shapley, 1953).

    Parameters
    ----------
    value
        What each subset of the players is worth, numbers or arrays of one shape, by the subset in the players' order.
    players
        Names of the players.
    """
    n, out = len(players), []
    for player in players:
        others = [name for name in players if name != player]
        total = 0.0
        for without in subsets(others):
            joined = tuple(name for name in players if name in without or name == player)
            share = factorial(len(without)) * factorial(n - len(without) - 1) / factorial(n)
            total = total + share * (value[joined] - value[without])
        out.append(total)
    return np.array(out)


def answers(
    fusion: FusionClassifier, features: Mapping[str, np.ndarray]
) -> tuple[dict[Subset, np.ndarray], dict[Subset, np.ndarray]]:
    """Return probabilities ``(n, k)`` and the classes decided for ``(n,)`` from every subset of modalities.

    Without any modality these are the class shares of training and the commonest class. A modality that a row lacks
    changes nothing there, and rows without any are NaN and ``None`` throughout.

    Parameters
    ----------
    fusion
        The fitted classifier.
    features
        Modality to array ``(n, d)``.
    """
    players = tuple(sorted(features))
    blank = np.all([np.isnan(block).any(axis=1) for block in features.values()], axis=0)
    shares = np.asarray(fusion.class_shares)
    commonest = fusion.classes[int(shares.argmax())]
    probability, decided = {}, {}
    for chosen in subsets(players):
        p = np.tile(shares, (len(blank), 1))
        guess = np.full(len(blank), commonest, dtype=object)
        if chosen:
            found, prediction = fusion._predict(features, list(chosen))
            known = ~np.isnan(found[:, 0])
            p[known], guess[known] = found[known], prediction["predicted"].to_numpy()[known]
        p[blank], guess[blank] = np.nan, None
        probability[chosen], decided[chosen] = p, guess
    return probability, decided


def logarithm(p: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of probabilities, which are taken to be ``SMALLEST`` at least."""
    return np.log(np.maximum(p, SMALLEST))


def spot_contributions(
    probability: Mapping[Subset, np.ndarray], target: np.ndarray, players: Sequence[str], *, log: bool = False
) -> np.ndarray:
    """Return what each modality adds to the probability of a row's class, ``(n, n_players)``; NaN where it has none.

    Parameters
    ----------
    probability
        Probabilities of every subset, from `answers`.
    target
        Class number of every row, -1 for none.
    players
        The modalities.
    log
        Of the natural logarithm of the probability.
    """
    rows = np.arange(len(target))
    value = {}
    for chosen, p in probability.items():
        of_target = np.where(target >= 0, p[rows, target], np.nan)
        value[chosen] = logarithm(of_target) if log else of_target
    return shapley(value, players).T
