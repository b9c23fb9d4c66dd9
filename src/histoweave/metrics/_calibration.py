"""How far stated probabilities can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from histoweave._validate import require_choice, require_number
from histoweave.metrics._check import labels_and_probability

_CLIP = float(np.finfo(np.float64).eps)
_Z95 = 1.959963984540054


def brier_score(y_true: Any, probability: Any, classes: Sequence[Any] | None = None) -> float:
    r"""Multiclass Brier score: the squared distance between probabilities and truth.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \sum_{c=1}^{k} (p_{ic} - [y_i = c])^2

    Parameters
    ----------
    y_true
        True class of each row, shape ``(n,)``; nothing missing.
    probability
        Class probabilities, shape ``(n, k)``; rows sum to 1.
    classes
        Class of each column, length ``k``. May be left out when ``probability`` is a DataFrame whose
        columns are the classes.

    Returns
    -------
    From 0 (certain and right) to 2 (certain and wrong).

    Raises
    ------
    ValueError
        Missing labels, labels outside ``classes``, rows that do not sum to 1, NaN, or shapes that disagree.

    Notes
    -----
    The sum over classes is Brier's own definition [1]_; for two classes it is twice scikit-learn's
    ``brier_score_loss`` of one class.

    References
    ----------
    .. [1] Brier (1950). Verification of forecasts expressed in terms of probability. Monthly Weather Review.

    Examples
    --------
    >>> import histoweave as hw
    >>> round(hw.metrics.brier_score(["a", "b"], [[0.8, 0.2], [0.5, 0.5]], classes=["a", "b"]), 3)
    0.29
    """
    truth, array, names = labels_and_probability(y_true, probability, classes)
    return float(((array - np.eye(len(names))[truth]) ** 2).sum(axis=1).mean())


def log_loss(y_true: Any, probability: Any, classes: Sequence[Any] | None = None) -> float:
    r"""Mean negative log-probability of the true class, in nats.

    Parameters
    ----------
    y_true, probability, classes
        As in :func:`brier_score`.

    Returns
    -------
    0 when every true class has probability 1; :math:`\log k` for a uniform guess over k classes.

    Raises
    ------
    ValueError
        As in :func:`brier_score`.

    Notes
    -----
    Probabilities of the true class are clipped from below to 2.2e-16 (float64 epsilon, as in scikit-learn),
    so one certain mistake costs 36 nats, not infinity.

    Examples
    --------
    >>> import histoweave as hw
    >>> round(hw.metrics.log_loss(["a", "b"], [[0.8, 0.2], [0.5, 0.5]], classes=["a", "b"]), 3)
    0.458
    """
    truth, array, _ = labels_and_probability(y_true, probability, classes)
    return float(-np.log(np.clip(array[np.arange(len(truth)), truth], _CLIP, 1.0)).mean())


def reliability_curve(
    y_true: Any,
    probability: Any,
    classes: Sequence[Any] | None = None,
    *,
    n_bins: int = 15,
    strategy: str = "uniform",
) -> pd.DataFrame:
    """Stated confidence against the accuracy it came with, in bins of confidence.

    Confidence is the largest class probability of a row; the row is right when that class is the true one
    (the first column wins a tie).

    Parameters
    ----------
    y_true, probability, classes
        As in :func:`brier_score`.
    n_bins
        Number of bins.
    strategy
        ``"uniform"``: bins of equal width over (0, 1], closed on the right. ``"quantile"``: bins of equal
        mass; rows of equal confidence always share a bin, so there may be fewer.

    Returns
    -------
    One row for every bin that holds observations: ``bin`` (number from 0), ``confidence`` (mean),
    ``accuracy``, ``n``, and ``lower``, ``upper``: the 95 % Wilson interval of the accuracy [1]_.

    Raises
    ------
    ValueError, TypeError
        As in :func:`brier_score`; ``n_bins`` below 1 or not an integer; unknown ``strategy``.

    References
    ----------
    .. [1] Wilson (1927). Probable inference, the law of succession, and statistical inference. JASA.

    Examples
    --------
    >>> import histoweave as hw
    >>> p = [[0.8, 0.2], [0.9, 0.1]]
    >>> curve = hw.metrics.reliability_curve(["a", "b"], p, classes=["a", "b"], n_bins=2)
    >>> float(curve["accuracy"].iloc[0])
    0.5
    """
    require_number(n_bins, argument="n_bins", at_least=1, integer=True)
    require_choice(strategy, ("uniform", "quantile"), argument="strategy")
    truth, array, _ = labels_and_probability(y_true, probability, classes)
    confidence, right = array.max(axis=1), array.argmax(axis=1) == truth
    if strategy == "uniform":
        bins = np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], confidence, side="left")
    else:  # equal confidences have one mean rank, hence one bin
        bins = (n_bins * (rankdata(confidence) - 0.5) / len(confidence)).astype(int)
    rows = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": right})
    curve = rows.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), n=("accuracy", "size")
    )
    curve["lower"], curve["upper"] = _wilson(curve["accuracy"].to_numpy(), curve["n"].to_numpy())
    return curve.reset_index()


def _wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * np.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def expected_calibration_error(
    y_true: Any,
    probability: Any,
    classes: Sequence[Any] | None = None,
    *,
    n_bins: int = 15,
    strategy: str = "uniform",
) -> float:
    r"""Mean distance between stated confidence and accuracy over bins of confidence.

    .. math:: \sum_b \frac{n_b}{n} \, |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    Parameters
    ----------
    y_true, probability, classes, n_bins, strategy
        As in :func:`reliability_curve`.

    Returns
    -------
    From 0 (calibrated) to 1.

    Raises
    ------
    ValueError, TypeError
        As in :func:`reliability_curve`.

    Notes
    -----
    The top-label error of Guo et al. [1]_ with their 15 bins of equal width. It is biased upwards when bins
    hold few rows: compare models on the same rows only.

    References
    ----------
    .. [1] Guo, Pleiss, Sun & Weinberger (2017). On calibration of modern neural networks. ICML.

    Examples
    --------
    >>> import histoweave as hw
    >>> hw.metrics.expected_calibration_error(["a", "b"], [[1, 0], [0.5, 0.5]], classes=["a", "b"])
    0.25
    """
    curve = reliability_curve(y_true, probability, classes, n_bins=n_bins, strategy=strategy)
    gap = (curve["accuracy"] - curve["confidence"]).abs()
    return float((gap * curve["n"]).sum() / curve["n"].sum())
