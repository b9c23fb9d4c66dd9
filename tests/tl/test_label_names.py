"""Names of regions that mean the same."""

from __future__ import annotations

import pandas as pd
import pytest

from histoweave._validate import HistoweaveWarning
from histoweave.tl._label_names import harmonise


def test_commonest_spelling_is_kept_and_told():
    labels = pd.Series(["Tumour core", "tumour_core", "tumour_core", None, "TumourCore", "fat", "Tumour"])
    with pytest.warns(HistoweaveWarning, match="'Tumour core' as 'tumour_core', 'TumourCore' as 'tumour_core'"):
        found = harmonise(labels)
    assert found.isna().tolist() == labels.isna().tolist()
    assert found.dropna().tolist() == ["tumour_core"] * 4 + ["fat", "Tumour"]


def test_mapping_comes_first():
    labels = pd.Series(["cancer", "Tumour", None, "undetermined"])
    found = harmonise(labels, {"cancer": "Tumour", "undetermined": None})
    assert found.fillna("").tolist() == ["Tumour", "Tumour", "", ""]


def test_names_that_do_not_occur_are_refused():
    with pytest.raises(KeyError, match="'cancr'; found: 'cancer'"):
        harmonise(pd.Series(["cancer"]), {"cancr": "tumour"})
