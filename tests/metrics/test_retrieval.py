"""Retrieval against the definitions of Musgrave et al. (2020) as plain loops, and chance against all orders."""

from itertools import permutations

import numpy as np
import pytest
import scipy.sparse as sp

import histoweave as hw
from histoweave.metrics import _neighbours


def naive(X, labels, groups, k, metric):
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    recall, precision, r_precision, average, classes = [], [], [], [], []
    for q in range(len(X)):
        rest = [i for i in range(len(X)) if groups[i] != groups[q]]
        if metric == "cosine":
            far = {i: 1 - sum(unit[q] * unit[i]) for i in rest}
        else:
            far = {i: sum((X[q] - X[i]) ** 2) ** 0.5 for i in rest}
        hits = [labels[i] == labels[q] for i in sorted(rest, key=far.get)]
        R = sum(hits)
        if R == 0:
            continue
        recall.append(float(any(hits[:k])))
        precision.append(sum(hits[:k]) / k)
        r_precision.append(sum(hits[:R]) / R)
        average.append(sum(sum(hits[: i + 1]) / (i + 1) for i in range(R) if hits[i]) / R)
        classes.append(labels[q])
    macro = np.mean([np.mean([a for a, c in zip(average, classes, strict=True) if c == name]) for name in set(classes)])
    return [np.mean(recall), np.mean(precision), np.mean(r_precision), np.mean(average), macro]


@pytest.fixture
def embedded():
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 90, p=[0.6, 0.3, 0.1])
    X = rng.normal(size=(90, 5)) + 1.5 * (labels == "a")[:, None] + (labels == "c")[:, None] * [3, 0, 0, 0, 0]
    return X, labels, rng.choice(["s1", "s2", "s3"], 90)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("by", ["row", "section"])
def test_against_loops(embedded, metric, by, monkeypatch):
    monkeypatch.setattr(_neighbours, "BLOCK", 900)  # several blocks
    X, labels, section = embedded
    groups = np.arange(90) if by == "row" else section
    found = hw.metrics.retrieval(X, labels, groups=None if by == "row" else section, k=(3,), metric=metric)
    names = ["recall_at_3", "precision_at_3", "r_precision", "map_at_r", "macro_map_at_r"]
    assert [found[name] for name in names] == pytest.approx(naive(X, labels, groups, 3, metric))


def test_published_example():
    # Musgrave et al., figure 3: 10 relevant references; the first 10 of the ranking in two cases
    for hits, r_precision, map_at_r in (([1] + [0] * 9, 0.1, 0.1), ([1, 1] + [0] * 7 + [1], 0.3, 0.23)):
        ranks = np.arange(1, 31.0)
        right = np.array(hits + [1] * (10 - sum(hits)) + [0] * (20 - 10 + sum(hits)), dtype=bool)
        gallery = np.column_stack([ranks, np.zeros(30)])
        found = hw.metrics.retrieval(
            [[0.0, 0.0]],
            ["x"],
            gallery=gallery,
            gallery_labels=np.where(right, "x", "y"),
            k=(1,),
            metric="euclidean",
        )
        assert found["r_precision"] == pytest.approx(r_precision)
        assert found["map_at_r"] == pytest.approx(map_at_r)


def test_chance_is_the_mean_over_all_orders():
    labels = ["x", "x", "x", "y", "y", "z"]
    orders = [
        hw.metrics.retrieval(
            [[0.0]], ["x"], gallery=np.array(order)[:, None] + 1.0, gallery_labels=labels, k=(2, 4), metric="euclidean"
        )
        for order in permutations(range(6))
        if order[0] < order[1] < order[2] and order[3] < order[4]  # the same ranking of classes only once
    ]
    for name in ("recall_at_2", "recall_at_4", "precision_at_2", "r_precision", "map_at_r"):
        assert np.mean([o[name] for o in orders]) == pytest.approx(orders[0][f"{name}_chance"]), name


def test_own_group_is_never_found():
    X = np.repeat(np.eye(3), 4, axis=0)  # every section its own direction, whatever the class
    labels, section = ["a", "a", "b", "b"] * 3, np.repeat(["s1", "s2", "s3"], 4)
    assert hw.metrics.retrieval(X, labels, groups=section, k=(1,))["n"] == 12
    alone = hw.metrics.retrieval(X, np.where(section == "s1", "only", labels), groups=section, k=(1,))
    assert (alone["n"], alone["n_without_match"]) == (8, 4)


def test_collapsed_embedding_scores_chance_whatever_the_order_of_rows():
    labels = np.repeat(["a", "b"], 200)
    found = hw.metrics.retrieval(np.ones((400, 3)), labels, metric="euclidean")
    assert found["map_at_r"] == pytest.approx(found["map_at_r_chance"], abs=0.03)
    assert found["precision_at_10"] == pytest.approx(0.5, abs=0.1)


def test_rows_without_embedding_or_label_are_left_out_and_counted(embedded):
    X, labels, section = embedded
    expected = hw.metrics.retrieval(X[10:], labels[10:], groups=section[10:])
    X[:5] = np.nan
    labels = labels.astype(object)
    labels[5:10] = None
    found = hw.metrics.retrieval(X, labels, groups=section)
    assert found.pop("n_left_out") == 10
    assert expected.pop("n_left_out") == 0
    assert found == pytest.approx(expected)


def test_votes_are_scikit_learns(embedded):
    from sklearn.neighbors import KNeighborsClassifier

    X, labels, _ = embedded
    y = np.unique(labels, return_inverse=True)[1]
    X[80] = X[3]  # a query that lies on a row
    for weights in ("uniform", "distance"):
        for metric in ("cosine", "euclidean"):
            expected = KNeighborsClassifier(7, weights=weights, metric=metric).fit(X[:60], y[:60]).predict_proba(X[60:])
            index, far = _neighbours.nearest(X[60:], X[:60], 7, metric=metric)
            found = _neighbours.vote(index, np.where(far < 1e-7, 0, far), y[:60], 3, weights=weights)
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["a", "b"]}, "same number of rows"),
        ({"labels": list("abcd")}, "No query has a row of its class"),
        ({"k": (3, 9)}, "`k=9` is more than the 3 rows"),
        ({"groups": ["s", None, "s", "t"]}, "`groups` is missing"),
        ({"gallery": np.eye(2), "gallery_labels": ["a", "b"], "groups": list("sstt")}, "needed both"),
        ({"gallery": np.eye(3), "gallery_labels": list("abc")}, "`X` has 2 columns and `gallery` 3"),
        ({"metric": "manhattan"}, "`metric` must be one of"),
        ({"X": np.full((4, 2), np.nan)}, "No row has values in `X`"),
        ({"X": [[np.nan, 1], [1, 1], [1, 2], [1, 3]]}, "NaN or infinite values in 1 rows"),
    ],
)
def test_bad_input(change, words):
    call = {"X": np.arange(8.0).reshape(4, 2), "labels": list("aabb"), "k": (1,)} | change
    with pytest.raises(ValueError, match=words):
        hw.metrics.retrieval(call.pop("X"), call.pop("labels"), **call)


def test_sparse_embeddings_are_refused():
    with pytest.raises(TypeError, match="is sparse; pass `X.toarray\\(\\)`"):
        hw.metrics.retrieval(sp.eye(10, format="csr"), ["a", "b"] * 5)


def test_one_number_of_neighbours_is_a_list_of_one():
    X, labels = np.random.default_rng(0).normal(size=(20, 3)), ["a", "b"] * 10
    one = hw.metrics.retrieval(X, labels, k=3)
    assert one["recall_at_3"] == hw.metrics.retrieval(X, labels, k=[3])["recall_at_3"]
