"""Heads that several fits share."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave.models import FusionClassifier
from histoweave.models.fusion import _members


@pytest.fixture
def task():
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b", "c"], 20)
    groups = np.tile(np.arange(5), 12)
    X = rng.normal(size=(60, 6)) + np.eye(3, 6)[np.repeat(np.arange(3), 20)] * 2
    return {"gene": X[:, ::2], "image": X[:, 1::2]}, y, groups


@pytest.fixture
def fitted(monkeypatch):
    fits, fit = [], _members.fit_head
    monkeypatch.setattr(_members, "fit_head", lambda *args: fits.append(args) or fit(*args))
    return fits


def fit(features, y, groups, memory=None, seed=0):
    clf = FusionClassifier(heads="linear", random_state=seed)
    clf._memory = memory
    return clf.fit(features, y, groups=groups)


def test_a_head_on_the_same_is_fitted_once_and_nothing_changes(task, fitted):
    features, y, groups = task
    other = features | {"image": features["image"][::-1].copy()}
    memory = {}
    first, second = fit(features, y, groups, memory), fit(other, y, groups, memory)
    assert len(fitted) == 3  # the genes are the same
    for shared, block in ((first, features), (second, other)):
        np.testing.assert_array_equal(shared.predict_proba(block), fit(block, y, groups).predict_proba(block))


def test_other_labels_groups_or_seeds_are_other_heads(task, fitted):
    features, y, groups = task
    memory = {}
    fit(features, y, groups, memory)
    fit(features, np.roll(y, 1), groups, memory)
    fit(features, y, np.random.default_rng(1).permutation(groups), memory)
    fit(features, y, groups, memory, seed=1)
    assert len(fitted) == 8
