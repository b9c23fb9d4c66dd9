"""One name for one region: labels of sections that different people wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from histoweave._validate import label_name, listing, warn


def harmonise(labels: pd.Series, mapping: Mapping[str, str | None] | None = None) -> pd.Series:
    """Return labels renamed by ``mapping``, and names that differ in case, blanks, ``_`` or ``-`` only made one.

    The commonest spelling is kept, and a warning names the others.

    Parameters
    ----------
    labels
        Names, missing where unlabelled.
    mapping
        Name to name, or to ``None`` for rows to be taken as unlabelled. Names it does not mention stay.

    Raises
    ------
    KeyError
        The mapping names a label that no row has.
    """
    found = labels.value_counts()
    mapping = {label_name(old): None if new is None else label_name(new) for old, new in (mapping or {}).items()}
    unknown = [name for name in mapping if name not in found.index]
    if unknown:
        msg = f"`mapping` names labels that no row has: {listing(unknown)}; found: {listing(found.index)}."
        raise KeyError(msg)
    labels = labels.map(lambda name: mapping.get(name, name), na_action="ignore")
    counts = labels.value_counts()
    spellings: dict[str, list[str]] = {}
    for name in sorted(counts.index, key=lambda name: (-counts[name], name)):
        spellings.setdefault(_plain(name), []).append(name)
    same = {other: names[0] for names in spellings.values() for other in names[1:]}
    if same:
        pairs = ", ".join(f"{other!r} as {kept!r}" for other, kept in same.items())
        warn(f"Labels that differ in case, blanks, '_' or '-' only are taken to be one: {pairs}. See `mapping=`.")
    return labels.map(lambda name: same.get(name, name), na_action="ignore")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
