from math import comb, log

import numpy as np
import pytest

import histoweave as hw


def naive(labels, clusters):
    n = len(labels)
    cells = {}
    for pair in zip(labels, clusters, strict=True):
        cells[pair] = cells.get(pair, 0) + 1
    a, b = {}, {}
    for (x, y), k in cells.items():
        a[x] = a.get(x, 0) + k
        b[y] = b.get(y, 0) + k
    both = sum(comb(k, 2) for k in cells.values())
    in_a, in_b, pairs = sum(comb(k, 2) for k in a.values()), sum(comb(k, 2) for k in b.values()), comb(n, 2)
    chance = in_a * in_b / pairs
    entropy = lambda sizes: -sum(k / n * log(k / n) for k in sizes.values())  # noqa: E731
    mutual = sum(k / n * log(n * k / (a[x] * b[y])) for (x, y), k in cells.items())
    return {
        "adjusted_rand": (both - chance) / ((in_a + in_b) / 2 - chance),
        "rand": (pairs + 2 * both - in_a - in_b) / pairs,
        "nmi": mutual / ((entropy(a) + entropy(b)) / 2),
        "homogeneity": mutual / entropy(a),
        "completeness": mutual / entropy(b),
    }


def test_against_definitions():
    rng = np.random.default_rng(2)
    labels = rng.choice(["x", "y", "z"], 120)
    clusters = np.where(rng.random(120) < 0.6, labels, rng.choice(["1", "2"], 120))
    found = hw.metrics.clustering(labels, clusters)
    for name, value in naive(labels, clusters).items():
        assert found[name] == pytest.approx(value), name


def test_names_do_not_matter():
    found = hw.metrics.clustering(["a", "a", "b", "b", "c"], [2, 2, 0, 0, 1])
    assert {k: v for k, v in found.items() if k != "n"} == pytest.approx(
        dict.fromkeys(["adjusted_rand", "rand", "nmi", "homogeneity", "completeness"], 1.0)
    )


def test_unlabelled_rows_are_left_out():
    labels = ["a", None, "a", "b", float("nan"), "b"]
    found = hw.metrics.clustering(labels, [0, 1, 0, 1, None, 0])
    assert found == hw.metrics.clustering(["a", "a", "b", "b"], [0, 0, 1, 0])
    assert found["n"] == 4


@pytest.mark.parametrize(
    ("labels", "clusters", "words"),
    [
        (["a", "b"], [1], "same number of rows"),
        (["a", None], [1, 2], "at least 2"),
        (["a", "b"], [1, None], "`clusters` is missing"),
    ],
)
def test_bad_input(labels, clusters, words):
    with pytest.raises(ValueError, match=words):
        hw.metrics.clustering(labels, clusters)
