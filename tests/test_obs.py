"""Columns of a table with gaps: filled where they can be, refused or said where not."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from histoweave._obs import crops_available, in_tissue, known_donors
from histoweave._validate import HistoweaveWarning


def table(names=("a", "a", "b")):
    out = ad.AnnData(np.ones((len(names), 2), np.float32))
    out.obs["library_id"] = list(names)
    return out


def test_donors_are_filled_from_their_section():
    adata = table("aabb")
    section = adata.obs["library_id"].to_numpy()
    assert known_donors(adata.obs, section) is None
    adata.obs["donor"] = [1, None, 2, 2]
    assert known_donors(adata.obs, section).tolist() == ["1", "1", "2", "2"]
    adata.obs["donor"] = ["x", "y", "z", None]  # two patients on one slide: a gap there would tell nothing
    assert known_donors(adata.obs, section).tolist() == ["x", "y", "z", "z"]
    adata.obs["donor"] = ["x", "x", None, None]
    with pytest.warns(HistoweaveWarning, match="missing for 2 rows whose sections do not tell it"):
        assert known_donors(adata.obs, section) is None
    adata.obs["donor"] = None
    assert known_donors(adata.obs, section) is None


@pytest.mark.parametrize("gaps", [pd.NA, np.nan, None])
def test_a_gap_in_what_says_which_rows_have_crops_says_nothing(gaps):
    adata = table("aab")
    assert crops_available(adata, "crops").all()
    adata.obs["crops_available"] = pd.Series([False, True, gaps], dtype=object, index=adata.obs_names)
    assert crops_available(adata, "crops").tolist() == [False, True, True]
    adata.obs["crops_available"] = adata.obs["crops_available"].astype("boolean")
    assert crops_available(adata, "crops").tolist() == [False, True, True]


def test_what_is_on_tissue():
    adata = table("aab")
    assert in_tissue(adata).all()
    for values in ([1, 0, None], ["1", "0", "0"], [True, False, False]):
        adata.obs["in_tissue"] = pd.Series(values, dtype=object, index=adata.obs_names)
        assert in_tissue(adata).tolist() == [True, False, False]
    adata.obs["in_tissue"] = ["True", "False", "True"]
    with pytest.raises(ValueError, match="must hold 1 and 0, or truth values; it has 'True', 'False'"):
        in_tissue(adata)
