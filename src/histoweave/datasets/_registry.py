"""What public data there is, and where: the table ``_registry.json``."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from histoweave._settings import settings
from histoweave._validate import require_choice
from histoweave.datasets._download import RemoteFile, fetch

PathLike = str | os.PathLike[str]


@cache
def _registry() -> dict[str, Any]:
    return json.loads(files("histoweave.datasets").joinpath("_registry.json").read_text(encoding="utf-8"))


def available() -> pd.DataFrame:
    """List the public data sets that can be fetched.

    Returns
    -------
    DataFrame
        Indexed by the name of the function in ``hw.datasets``: ``description``, ``sections`` (names, or
        files where there are no sections), ``donors`` (their number), ``files`` (kinds of file),
        ``size_mb`` (about; missing where unknown), ``licence``, ``citation``, ``homepage``.

    Examples
    --------
    >>> import histoweave as hw
    >>> "dlpfc" in hw.datasets.available().index
    True
    """
    rows = {
        name: {
            "description": entry["description"],
            "sections": list(entry["sections"]),
            "donors": len(set(entry["sections"].values()) - {""}),
            "files": list(entry["files"]),
            "size_mb": entry["size_mb"],
            "licence": entry["licence"],
            "citation": entry["citation"],
            "homepage": entry["homepage"],
        }
        for name, entry in _registry().items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


class Source:
    """One section of a data set: its donor, and its files by kind."""

    def __init__(self, name: str, section: str | int, data_dir: PathLike | None) -> None:
        self.entry = _registry()[name]
        self.section = str(section)
        require_choice(self.section, list(self.entry["sections"]), argument="section")
        self.donor: str = self.entry["sections"][self.section]
        self.folder = Path(data_dir if data_dir is not None else settings.data_dir) / name

    def has(self, kind: str) -> bool:
        """Tell whether the section has a file of this kind."""
        return self.section in self.entry["files"][kind].get("sections", self.entry["sections"])

    def fetch(self, kind: str) -> Path:
        """Return the local path of a file, downloaded if need be."""
        spec = self.entry["files"][kind]
        fill = {"section": self.section, "donor": self.donor}
        listing = spec.get("listing")
        return fetch(
            RemoteFile(
                path=spec["path"].format(**fill),
                urls=tuple(url.format(**fill) for url in spec.get("urls", ())),
                hash=spec.get("hashes", {}).get(self.section),
                listing=listing.format(**fill) if listing else None,
            ),
            self.folder,
        )
