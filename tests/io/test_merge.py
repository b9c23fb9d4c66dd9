"""Merging the records of several sections."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave._validate import HistoweaveWarning
from histoweave.io._merge import merge_records


def record(size: float, um: dict, seen: list[str]) -> dict:
    return {
        "crops": {
            "function": "pp.crops",
            "params": {"size_um": size},
            "um_per_pixel": um,
            "sections_seen": np.array(seen),
        }
    }


def test_agreement_is_kept_once_and_parts_are_joined():
    merged = merge_records([record(110, {"P1": 0.5}, ["P1"]), record(110, {"P2": 0.6}, ["P1"])], ["P1", "P2"])
    assert merged["crops"]["params"] == {"size_um": 110}
    assert merged["crops"]["um_per_pixel"] == {"P1": 0.5, "P2": 0.6}
    assert "differs" not in merged["crops"]


def test_disagreement_is_listed_and_told():
    with pytest.warns(HistoweaveWarning, match=r"\['crops'\]`: sections were made with different 'size_um'"):
        merged = merge_records([record(110, {}, ["P1"]), record(55, {}, ["P2"])], ["P1", "P2"])
    assert merged["crops"]["params"]["size_um"] == 110
    differs = merged["crops"]["differs"]
    assert differs["params.size_um"] == {"P1": 110, "P2": 55}
    assert list(differs["sections_seen"]["P2"]) == ["P2"]


def test_records_of_one_section_are_taken_over():
    merged = merge_records([record(110, {}, []), {"region": {"function": "io.read_labels"}}], ["P1", "P2"])
    assert set(merged) == {"crops", "region"}


def test_nothing():
    assert merge_records([{}, {}], ["P1", "P2"]) == {}
