"""What produced each result, through every file format."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from histoweave import __version__, _keys
from histoweave._record import plain, record, recorded, versions


def test_plain_values_are_what_files_store():
    assert plain({"a/b": 1, "none": None, "path": Path("x")}) == {"a_b": 1, "path": "x"}
    assert plain(np.float32(0.5)) == 0.5
    assert plain({"b", "a"}).tolist() == ["a", "b"]
    assert plain((1, 2.5)).tolist() == [1, 2.5]
    assert plain([]) == []
    assert plain(["a", 1]) == ["a", "1"]


def test_versions_name_the_package():
    assert versions("numpy") == {"histoweave": __version__, "numpy": np.__version__}


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_record_survives_files(section, tmp_path, suffix):
    table = section[:10].copy()
    params = {"size": 1.5, "keys": ["a", "b"], "sizes": {"s/1": 2.0}, "unset": None, "empty": []}
    record(table, "X_new", "tl.something", params, random_state=np.int64(3), sections_seen=["s1"], seen=[])
    path = tmp_path / f"t.{suffix}"
    getattr(table, f"write_{suffix}")(path)
    back = recorded((ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path), "X_new")
    assert back["function"] == "tl.something"
    assert back["random_state"] == 3
    assert list(back["params"]["keys"]) == ["a", "b"]
    assert float(back["params"]["sizes"]["s_1"]) == 2.0
    assert "unset" not in back["params"]
    assert len(back["params"]["empty"]) == len(back["seen"]) == 0
    assert list(back["sections_seen"]) == ["s1"]
    assert back["versions"]["histoweave"] == __version__


def test_records_of_a_copy_are_its_own(section):
    copy = section.copy()
    record(copy, "a", "f", {})
    shallow = dict(copy.uns)
    record(copy, "b", "f", {})
    assert set(shallow[_keys.UNS]) & {"a", "b"} == {"a"}  # the store is replaced, never written into
    assert recorded(section, "a") == {}
