"""What columns of a table say of its rows, gaps and all: donors, crops, tissue."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._validate import label_name, listing, warn


def known_donors(obs: pd.DataFrame, section: np.ndarray, donor_key: str = _keys.DONOR) -> np.ndarray | None:
    """Return the donor of every row ``(n_obs,)``, ``None`` where donors are not known.

    A row without one takes that of its section, where this has one donor. Where rows are left, a warning says that
    donors are not used: any of the others might be theirs.

    Parameters
    ----------
    obs
        Column ``donor_key``, where known.
    section
        Section of every row.
    donor_key
        Its name.
    """
    if donor_key not in obs or obs[donor_key].isna().all():
        return None
    donor = pd.Series(obs[donor_key].astype(object).to_numpy())
    by_section = donor.groupby(np.asarray(section))
    alone = by_section.transform("first").where(by_section.transform("nunique") == 1)
    donor = donor.where(donor.notna(), alone)
    if (gaps := int(donor.isna().sum())) > 0:
        warn(
            f"`adata.obs[{donor_key!r}]` is missing for {gaps} rows whose sections do not tell it, so donors are not "
            "used and serial sections may count as independent. Name the donor of every row."
        )
        return None
    return donor.map(label_name).to_numpy(dtype=object)


def crops_available(table: AnnData, crops_key: str) -> np.ndarray:
    """Return which rows have a crop ``(n_obs,)``: all, unless ``obs`` says otherwise; a gap in it says nothing."""
    column = f"{crops_key}_available"
    if column not in table.obs:
        return np.ones(table.n_obs, dtype=bool)
    return table.obs[column].to_numpy(dtype=bool, na_value=True)


def in_tissue(table: AnnData) -> np.ndarray:
    """Return which rows are marked as on tissue ``(n_obs,)``, all where nothing is marked."""
    if _keys.IN_TISSUE not in table.obs:
        return np.ones(table.n_obs, dtype=bool)
    column = table.obs[_keys.IN_TISSUE]
    try:
        return column.to_numpy(dtype=float, na_value=np.nan) == 1
    except (TypeError, ValueError):
        found = listing(column.dropna().unique(), 4)
        msg = f"`adata.obs['{_keys.IN_TISSUE}']` must hold 1 and 0, or truth values; it has {found}."
        raise ValueError(msg) from None
