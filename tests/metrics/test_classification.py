import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import histoweave as hw

CLASSES = ["tumour", "stroma", "immune", "fat"]


@pytest.fixture
def draws():
    rng = np.random.default_rng(3)
    truth = rng.choice(CLASSES, 200, p=[0.5, 0.3, 0.15, 0.05])
    probability = rng.dirichlet(np.ones(4), 200)
    probability[np.arange(200), [CLASSES.index(t) for t in truth]] += 0.4
    probability /= probability.sum(axis=1, keepdims=True)
    return truth, np.array(CLASSES)[probability.argmax(axis=1)], probability


def naive_f1(truth, guess, name):
    hit = false = miss = 0
    for t, g in zip(truth, guess, strict=True):
        hit += t == name and g == name
        false += t != name and g == name
        miss += t == name and g != name
    return 2 * hit / (2 * hit + false + miss)


def naive_auc(positive, score):
    wins = 0.0
    for p in score[positive]:
        for q in score[~positive]:
            wins += 1.0 if p > q else 0.5 if p == q else 0.0
    return wins / (positive.sum() * (~positive).sum())


def naive_rand(a, b):
    agree = total = 0
    for i in range(len(a)):
        for j in range(i):
            agree += (a[i] == a[j]) == (b[i] == b[j])
            total += 1
    return agree / total


def test_against_loops(draws):
    truth, guess, probability = draws
    scores = hw.metrics.classification(truth, guess, probability, CLASSES)
    assert scores["macro_f1"] == pytest.approx(np.mean([naive_f1(truth, guess, c) for c in CLASSES]))
    assert scores["rand"] == pytest.approx(naive_rand(truth, guess))
    aucs = [naive_auc(truth == c, probability[:, i]) for i, c in enumerate(CLASSES)]
    assert scores["roc_auc"] == pytest.approx(np.mean(aucs))
    recalls = [np.mean(guess[truth == c] == c) for c in CLASSES]
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert scores["n"] == 200
    assert scores["absent_classes"] == ""


def test_against_sklearn(draws):
    truth, guess, probability = draws
    scores = hw.metrics.classification(truth, guess, pd.DataFrame(probability, columns=CLASSES))
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert scores["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert scores["weighted_f1"] == pytest.approx(sk.f1_score(truth, guess, average="weighted"))
    assert scores["adjusted_rand"] == pytest.approx(sk.adjusted_rand_score(truth, guess))
    assert scores["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, guess))
    order = np.argsort(CLASSES)  # scikit-learn wants columns in alphabetical order
    assert scores["log_loss"] == pytest.approx(sk.log_loss(truth, probability[:, order]))
    assert scores["roc_auc"] == pytest.approx(
        sk.roc_auc_score(truth, probability[:, order], multi_class="ovr", average="macro")
    )


def test_per_class_against_sklearn(draws):
    truth, guess, probability = draws
    table = hw.metrics.per_class(truth, guess, probability, CLASSES)
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, guess, labels=CLASSES)
    assert list(table.index) == CLASSES
    np.testing.assert_allclose(table["precision"], precision)
    np.testing.assert_allclose(table["recall"], recall)
    np.testing.assert_allclose(table["f1"], f1)
    np.testing.assert_array_equal(table["support"], support)
    np.testing.assert_array_equal(table["predicted"], [(guess == c).sum() for c in CLASSES])


def test_absent_class_is_left_out_and_named():
    truth, guess = ["a", "a", "b", "b"], ["a", "c", "b", "b"]
    scores = hw.metrics.classification(truth, guess, classes=["a", "b", "c"])
    # a: one of two found, nothing wrongly called a; b: perfect; c: not averaged
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["balanced_accuracy"] == pytest.approx(0.75)
    assert scores["accuracy"] == 0.75
    assert scores["absent_classes"] == "c"
    table = hw.metrics.per_class(truth, guess, classes=["a", "b", "c"])
    assert table.loc["c", ["precision", "recall", "f1", "roc_auc"]].isna().all()
    assert table.loc["c", "predicted"] == 1


def test_absent_class_with_probability_does_not_change_auc():
    truth = ["a", "a", "b", "b"]
    probability = pd.DataFrame({"a": [0.7, 0.4, 0.5, 0.1], "b": [0.3, 0.6, 0.5, 0.9], "c": [0.0] * 4})
    scores = hw.metrics.classification(truth, ["a", "b", "a", "b"], probability)
    assert scores["roc_auc"] == pytest.approx(0.75)
    assert scores["absent_classes"] == "c"


def test_present_class_never_predicted_scores_zero_f1_and_no_precision():
    table = hw.metrics.per_class(["a", "b"], ["a", "a"])
    assert table.loc["b", "f1"] == 0
    assert np.isnan(table.loc["b", "precision"])
    assert hw.metrics.classification(["a", "b"], ["a", "a"])["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_one_class_present_has_no_auc():
    scores = hw.metrics.classification(["a", "a"], ["a", "b"], [[0.9, 0.1], [0.2, 0.8]], ["a", "b"])
    assert np.isnan(scores["roc_auc"])
    assert scores["accuracy"] == 0.5


def test_labels_that_are_numbers_are_names():
    scores = hw.metrics.classification(np.array([1.0, 2.0]), np.array([1, 2]), classes=["1", "2"])
    assert scores["accuracy"] == 1


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"y_true": ["a", None]}, "mask"),
        ({"y_true": ["a", float("nan")]}, "mask"),
        ({"y_pred": ["a", None]}, "y_pred"),
        ({"y_true": ["a"]}, "same number of rows"),
        ({"y_true": [], "y_pred": []}, "n > 0"),
        ({"y_true": ["a", "z"]}, "not in `classes`"),
        ({"probability": [[1, 0, 0], [0, 1, 0]]}, "one column a class"),
        ({"probability": [[1, 0], [np.nan, 1]]}, "NaN"),
        ({"probability": [[1, 0], [0.4, 0.4]]}, "sum to 1"),
        ({"probability": [[1.5, -0.5], [0, 1]]}, "non-negative"),
        ({"probability": [[1, 0], [0, 1]], "classes": None}, "name the columns"),
        ({"probability": [[1, 0]]}, "same number of rows"),
        ({"classes": ["a", "a", "b"]}, "twice"),
        ({"probability": pd.DataFrame({"a": [1, 0], "c": [0, 1]})}, "same set"),
    ],
)
def test_bad_input(kwargs, words):
    good = {"y_true": ["a", "b"], "y_pred": ["a", "b"], "classes": ["a", "b"]}
    with pytest.raises(ValueError, match=words):
        hw.metrics.classification(**(good | kwargs))


def test_names_of_classes_are_told_apart_as_labels_are():
    assert hw.metrics.classification([np.float32(1), np.float32(2)], [1, 2])["accuracy"] == 1
    with pytest.raises(ValueError, match="`y_true` is missing for 1 of 3 rows"):
        hw.metrics.classification(["a", " ", "b"], ["a", "a", "b"])
