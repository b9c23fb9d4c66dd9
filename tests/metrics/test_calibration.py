import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import histoweave as hw

CLASSES = ["a", "b", "c"]


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return rng.choice(CLASSES, 300), rng.dirichlet([0.5, 1, 1], 300)


def naive_ece(truth, probability, n_bins):
    total = 0.0
    for b in range(n_bins):
        confidence, right = [], []
        for t, row in zip(truth, probability, strict=True):
            top = max(row)
            if b / n_bins < top <= (b + 1) / n_bins:
                confidence.append(top)
                right.append(CLASSES[list(row).index(top)] == t)
        if right:
            total += len(right) / len(truth) * abs(np.mean(right) - np.mean(confidence))
    return total


def test_ece_against_loop(draws):
    for n_bins in (1, 10, 15):
        found = hw.metrics.expected_calibration_error(*draws, CLASSES, n_bins=n_bins)
        assert found == pytest.approx(naive_ece(*draws, n_bins))


def test_ece_of_calibrated_draws_is_small_and_of_overconfident_ones_is_the_gap():
    rng = np.random.default_rng(1)
    probability = rng.dirichlet([1, 1, 1], 20_000)
    truth = np.array(CLASSES)[(probability.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)]
    assert hw.metrics.expected_calibration_error(truth, probability, CLASSES) < 0.02
    certain = np.eye(3)[rng.integers(0, 3, 3000)]
    right = (np.array(CLASSES)[certain.argmax(axis=1)] == truth[:3000]).mean()
    assert hw.metrics.expected_calibration_error(truth[:3000], certain, CLASSES) == pytest.approx(1 - right)


def test_quantile_bins_hold_equal_mass(draws):
    curve = hw.metrics.reliability_curve(*draws, CLASSES, n_bins=10, strategy="quantile")
    assert list(curve["n"]) == [30] * 10
    assert curve["confidence"].is_monotonic_increasing


def test_quantile_ties_share_a_bin():
    probability = [[0.9, 0.1]] * 9 + [[0.6, 0.4]]
    curve = hw.metrics.reliability_curve(["a"] * 10, probability, ["a", "b"], n_bins=5, strategy="quantile")
    assert list(curve["n"]) == [1, 9]


def test_reliability_curve_counts_and_wilson_interval():
    truth = ["a"] * 8 + ["b"] * 2
    curve = hw.metrics.reliability_curve(truth, [[0.7, 0.3]] * 10, ["a", "b"], n_bins=10)
    assert list(curve.columns) == ["bin", "confidence", "accuracy", "n", "lower", "upper"]
    row = curve.iloc[0]
    assert (row["n"], row["accuracy"]) == (10, 0.8)
    assert row["confidence"] == pytest.approx(0.7)
    # 8 of 10: the textbook 95 % Wilson interval
    assert row["lower"] == pytest.approx(0.4902, abs=1e-4)
    assert row["upper"] == pytest.approx(0.9433, abs=1e-4)


def test_brier_is_twice_the_binary_score_and_two_at_worst():
    truth, p = np.array(["a", "b", "b"]), np.array([0.9, 0.4, 0.1])
    probability = np.column_stack([p, 1 - p])
    expected = 2 * sk.brier_score_loss(truth == "a", p)
    assert hw.metrics.brier_score(truth, probability, ["a", "b"]) == pytest.approx(expected)
    assert hw.metrics.brier_score(["a"], [[0, 1]], ["a", "b"]) == 2


def test_log_loss_closed_forms_and_clipping(draws):
    truth, probability = draws
    assert hw.metrics.log_loss(truth, np.full((300, 3), 1 / 3), CLASSES) == pytest.approx(np.log(3))
    assert hw.metrics.log_loss(truth, probability, CLASSES) == pytest.approx(sk.log_loss(truth, probability))
    assert hw.metrics.log_loss(["a"], [[0, 1]], ["a", "b"]) == pytest.approx(-np.log(np.finfo(float).eps))


def test_column_order_of_a_frame_does_not_matter(draws):
    truth, probability = draws
    frame = pd.DataFrame(probability, columns=CLASSES)[["c", "a", "b"]]
    for score in (hw.metrics.brier_score, hw.metrics.log_loss, hw.metrics.expected_calibration_error):
        assert score(truth, frame, CLASSES) == pytest.approx(score(truth, probability, CLASSES))


def test_float32_rounding_is_tolerated(draws):
    truth, probability = draws
    assert hw.metrics.brier_score(truth, probability.astype("float32"), CLASSES) == pytest.approx(
        hw.metrics.brier_score(truth, probability, CLASSES), abs=1e-5
    )


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"n_bins": 0}, ValueError),
        ({"n_bins": 2.5}, TypeError),
        ({"strategy": "equal"}, ValueError),
    ],
)
def test_bad_bins(draws, kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))):
        hw.metrics.expected_calibration_error(*draws, CLASSES, **kwargs)


def test_logits_and_missing_labels_are_refused():
    with pytest.raises(ValueError, match="logits"):
        hw.metrics.brier_score(["a", "b"], [[3.0, -1.0], [0.2, 0.8]], ["a", "b"])
    with pytest.raises(ValueError, match="mask"):
        hw.metrics.log_loss(["a", None], [[1, 0], [0, 1]], ["a", "b"])
    with pytest.raises(ValueError, match="column of zeros"):
        hw.metrics.log_loss(["a", "c"], [[1, 0], [0, 1]], ["a", "b"])
