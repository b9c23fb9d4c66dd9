"""Checks and what their messages say."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import histoweave as hw
from histoweave import _validate as v


def table(**obs) -> AnnData:
    n = len(next(iter(obs.values())))
    return AnnData(obs=pd.DataFrame(obs, index=[f"s{i}" for i in range(n)]))


def test_warning_points_at_the_users_line(section):
    few = section[:10].copy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hw.models.GenePCA(n_components=3).fit(few)  # fewer spots than a section needs, told five calls deep
    ours = [w for w in caught if issubclass(w.category, v.HistoweaveWarning)]
    assert ours
    assert {w.filename for w in ours} == {__file__}


def test_listing_is_cut():
    assert v.listing([]) == "none"
    assert v.listing(["a", "b"]) == "'a', 'b'"
    assert v.listing(range(20), 2) == "'0', '1', ... (20 in all)"


def test_missing_key_names_what_there_is_and_what_to_run():
    with pytest.raises(KeyError, match=r"crops_key='crps'.*available: 'crops', 'x'.*Did you mean 'crops'.*Run `f\(\)`"):
        v.require_key({"crops": 1, "x": 2}, "crps", where="adata.obsm", argument="crops_key", run="f()")


def test_choice():
    v.require_choice("a", ("a", None), argument="x")
    with pytest.raises(ValueError, match=r"`x` must be one of 'a', 'b', got 'c'"):
        v.require_choice("c", ("a", "b"), argument="x")


@pytest.mark.parametrize("value", [True, "1", None, np.nan, np.inf, [1]])
def test_not_a_number(value):
    with pytest.raises(TypeError, match=r"`x` must be a number"):
        v.require_number(value, argument="x")


@pytest.mark.parametrize(
    ("value", "bounds"), [(0, {"above": 0}), (-1, {"at_least": 0}), (1, {"below": 1}), (2, {"at_most": 1})]
)
def test_number_out_of_bounds(value, bounds):
    with pytest.raises(ValueError, match=r"`x` must be [<>]"):
        v.require_number(value, argument="x", **bounds)


def test_number_within_bounds():
    v.require_number(np.int64(1), argument="x", above=0, at_most=1, integer=True)
    with pytest.raises(TypeError, match="an integer"):
        v.require_number(1.0, argument="x", integer=True)


def test_matrix_may_miss_whole_rows_only():
    X = np.ones((3, 2))
    X[1] = np.nan
    assert v.require_matrix(X, 3, name="X") is X
    for bad in ([np.nan, 1], [np.inf, np.inf], [1, -np.inf]):
        X[1] = bad
        with pytest.raises(ValueError, match=r"1 rows \(first: row 1\)"):
            v.require_matrix(X, 3, name="X")


@pytest.mark.parametrize(
    "X", [np.ones(3), np.ones((2, 2)), np.ones((3, 0)), np.array([["a"]] * 3), sp.csr_matrix((3, 2))]
)
def test_matrix_of_the_wrong_kind(X):
    with pytest.raises(ValueError, match=r"X must be an array of numbers of shape \(3, n_features\)"):
        v.require_matrix(X, 3, name="X")


@pytest.mark.parametrize("wrap", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize(
    ("bad", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (-1, "negative"), (0.5, "fractional")]
)
def test_not_counts(wrap, bad, said):
    X = np.ones((3, 2))
    v.require_counts(wrap(X), where="`X`")
    X[1, 1] = bad
    with pytest.raises(ValueError, match=said):
        v.require_counts(wrap(X), where="`X`")


def test_fractions_far_into_a_matrix(monkeypatch):
    monkeypatch.setattr(v, "AT_ONCE", 10)
    X = np.ones((30, 3))
    v.require_counts(X, where="`X`")
    X[29, 2] = 0.5
    with pytest.raises(ValueError, match="fractional"):
        v.require_counts(X, where="`X`")


def test_counts_of_text():
    with pytest.raises(ValueError, match="numeric"):
        v.require_counts(np.array([["a"]]), where="`X`")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["a ", "a", None, ""], ["a", "a", None, None]),
        ([1.0, 2.0, np.nan, 2.0], ["1", "2", None, "2"]),
        ([1, 2, 3, 4], ["1", "2", "3", "4"]),
        (pd.Categorical(["x", None, "y", "x"]), ["x", None, "y", "x"]),
        ([True, False, None, True], ["True", "False", None, "True"]),
    ],
)
def test_labels_become_names(values, names):
    found = v.require_labels(table(region=values), "region", min_classes=1)
    assert [None if pd.isna(x) else x for x in found] == names


def test_labels_that_are_too_few():
    with pytest.raises(KeyError, match="hw.io.read_labels"):
        v.require_labels(table(other=["a"]), "region")
    with pytest.raises(ValueError, match="holds no label"):
        v.require_labels(table(region=[None, " "]), "region")
    with pytest.raises(ValueError, match=r"at least 2 regions.*found 'a' \(2\)"):
        v.require_labels(table(region=["a", "a"]), "region")
    with pytest.raises(ValueError, match=r"'a' \(2\), 'b' \(1\)"):
        v.require_labels(table(region=["a", "a", "b"]), "region", min_spots=2)


def test_a_mask_is_true_or_false_in_every_row():
    masked = table(held_out=[True, False, True])
    np.testing.assert_array_equal(v.require_mask(masked, "held_out"), [True, False, True])
    np.testing.assert_array_equal(v.require_mask(masked, None), [True, True, True])
    with pytest.raises(KeyError, match="mask_key='nope'"):
        v.require_mask(masked, "nope")
    for wrong in (["yes", "no", "no"], [0, 1, 1], pd.array([True, None, True], dtype="boolean")):
        with pytest.raises(ValueError, match="boolean, True or False in every row"):
            v.require_mask(table(held_out=wrong), "held_out")


def test_values_by_section():
    v.require_sections(2.0, ["a"], argument="um_per_px")
    v.require_sections({"a": 1.0, "elsewhere": 2.0}, ["a"], argument="um_per_px")
    with pytest.raises(KeyError, match="`um_per_px` names 'c', but the sections are 'a', 'b'"):
        v.require_sections({"a": 1.0, "c": 2.0}, ["a", "b"], argument="um_per_px")
