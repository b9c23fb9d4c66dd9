"""The parts that all readers share."""

from __future__ import annotations

import pytest

from histoweave.io._elements import require_name, sanitise


@pytest.mark.parametrize("name", ["P1", "P1 (left)", "Präparat 3", "a/b", ".hidden", "__x", "", "151507", "a.b-c_d"])
def test_names_that_spatialdata_takes(name):
    from spatialdata._core.validation import check_valid_name

    check_valid_name(sanitise(name))
    assert require_name(sanitise(name)) == sanitise(name)


@pytest.mark.parametrize("name", ["P1 left", "a/b", "_x", "", 7])
def test_refused_names(name):
    with pytest.raises(ValueError, match="cannot name a section"):
        require_name(name)
