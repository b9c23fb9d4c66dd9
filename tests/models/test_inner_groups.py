"""What inner folds keep together: donors, sections, blocks of tissue or rows; and where rows lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from histoweave._validate import HistoweaveWarning
from histoweave.models._inner_groups import APART, inner_groups, kept_together


def spots(n_donors: int, n_sections: int, per_section: int = 64) -> tuple[pd.DataFrame, np.ndarray]:
    section = np.repeat(np.arange(n_sections), per_section)
    frame = pd.DataFrame({"library_id": section.astype(str), "donor": (section % n_donors).astype(str)})
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 100.0
    return frame, np.tile(grid, (n_sections, 1))


def test_groups_are_donors_then_sections_then_blocks_then_rows():
    frame, xy = spots(3, 6)
    everything = np.ones(len(frame), dtype=bool)
    groups, kind = kept_together(frame, xy, everything)
    assert kind == "donor"
    assert (groups == frame["donor"]).all()
    groups, kind = kept_together(frame.drop(columns="donor"), xy, everything)
    assert kind == "section"
    assert (groups == frame["library_id"]).all()
    _, kind = kept_together(frame, xy, (frame["library_id"].isin(["0", "1"])).to_numpy())
    assert kind == "block"  # two labelled donors in two sections are too few to hold any out
    groups, kind = kept_together(frame[["library_id"]], None, frame["library_id"] == "0")
    assert kind == "row"
    assert len(set(groups)) == len(frame)


def test_blocks_are_compact_and_within_a_section():
    frame, xy = spots(1, 2)
    groups, _ = kept_together(frame, xy, np.ones(len(frame), dtype=bool))
    assert len(set(groups)) == 32
    for group in set(groups):
        here = groups == group
        assert frame["library_id"][here].nunique() == 1
        assert np.ptp(xy[here], axis=0).max() <= 100


def test_missing_coordinates_are_said():
    frame, xy = spots(1, 1)
    xy[3] = np.nan
    with pytest.raises(ValueError, match="1 rows have NaN or infinite coordinates"):
        kept_together(frame, xy, np.ones(len(frame), dtype=bool))


def test_a_table_is_read_by_its_keys():
    frame, xy = spots(3, 6)
    obs = pd.DataFrame({"slide": frame["library_id"].to_numpy(), "patient": frame["donor"].to_numpy()})
    table = AnnData(obs=obs.set_index(obs.index.astype(str)), obsm={"xy": xy})
    keys = {"library_key": "slide", "spatial_key": "xy"}
    everything = np.ones(len(frame), dtype=bool)
    groups = inner_groups(table, everything, donor_key="patient", **keys)
    assert (groups.kind, groups.positions) == ("donor", None)
    assert (groups.of_row == frame["donor"]).all()
    assert inner_groups(table, everything, **keys).kind == "section"  # no such column of donors


def test_only_blocks_need_distance():
    frame, xy = spots(1, 2)
    table = AnnData(obs=frame.set_index(frame.index.astype(str)), obsm={"spatial": xy})
    groups = inner_groups(table, np.ones(len(frame), dtype=bool), n_rings=1)
    assert groups.kind == "block"
    own, other = groups.positions[frame["library_id"] == "0"], groups.positions[frame["library_id"] == "1"]
    steps = np.linalg.norm(own[1:8, 1:] - own[:7, 1:], axis=1)
    np.testing.assert_allclose(steps, steps[0])  # neighbours of a row of the grid
    assert other[:, 0].min() - own[:, 0].max() == APART


def test_gaps_among_donors_are_filled_from_the_section_or_said():
    frame, xy = spots(3, 6)
    everything = np.ones(len(frame), dtype=bool)
    gaps = frame.copy()
    gaps.loc[[0, 70], "donor"] = np.nan
    groups, kind = kept_together(gaps, xy, everything)
    assert kind == "donor"
    assert (groups == frame["donor"]).all()
    gaps.loc[gaps["library_id"] == "4", "donor"] = None
    with pytest.warns(HistoweaveWarning, match="is missing for 64 rows.*Name the donor of every row"):
        assert kept_together(gaps, xy, everything)[1] == "section"
