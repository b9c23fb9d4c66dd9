"""What produced each result: ``uns["histoweave"][key]``, kept with the table through every file format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._version import __version__


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of histoweave and of the named distributions."""
    return {"histoweave": __version__} | {name: version(name) for name in packages}


def plain(value: Any) -> Any:
    """Turn a value into what JSON, HDF5 and Zarr all store: numbers, strings, lists, dicts, arrays."""
    if isinstance(value, Mapping):
        return {str(k).replace("/", "_"): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bool | int | float | str | np.ndarray):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else list(value)
        simple = all(isinstance(v, str) for v in items) or all(isinstance(v, int | float) for v in items)
        return np.asarray(items) if items and simple else [str(v) for v in items]
    return str(value)


def record(
    table: AnnData,
    key: str,
    function: str,
    params: Mapping[str, Any],
    *,
    random_state: Any = None,
    sections_seen: Iterable[str] | None = None,
    packages: Iterable[str] = (),
    **extra: Any,
) -> None:
    """Write what produced ``key`` to ``table.uns["histoweave"][key]``.

    Parameters
    ----------
    table
        The table that holds the result.
    key
        Name of the result (an ``obsm`` or ``obs`` key).
    function
        The public function, e.g. ``"pp.crops"``.
    params
        Its arguments; ``None`` values are left out.
    random_state
        The seed, where the function is random.
    sections_seen
        Sections whose pixels or counts a fitted model has seen.
    packages
        Distributions whose version matters for the result.
    extra
        Anything else worth keeping, such as the size of a pixel per section.
    """
    entry = {"function": function, "params": dict(params), "versions": versions(*packages), **extra}
    if isinstance(random_state, int | np.integer):
        entry["random_state"] = int(random_state)
    if sections_seen is not None:
        entry["sections_seen"] = [str(s) for s in sections_seen]
    store = dict(table.uns.get(_keys.UNS, {}))
    store[key] = plain(entry)
    table.uns[_keys.UNS] = store


def recorded(table: AnnData, key: str) -> dict[str, Any]:
    """Return the record of ``key``, empty when there is none."""
    return dict(table.uns.get(_keys.UNS, {}).get(key, {}))
