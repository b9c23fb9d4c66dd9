"""Which column of a table is which gene of a model: by name, by another name it goes by, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from histoweave._validate import listing

#: columns of ``var`` in which readers keep the identifier or the symbol that is not the row's name
NAME_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_name", "gene_names", "gene_symbol",
    "gene_symbols", "symbol", "feature_name",
)  # fmt: skip
VERSION = re.compile(r"^(ENS[A-Z]*\d{6,})\.\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class GeneAlignment:
    """How the genes of a table correspond to a model's.

    Attributes
    ----------
    table
        A row for each gene of the model: ``found_as`` (name in the table, missing where there is none) and ``how``:
        ``"name"``; ``"identifier"`` (another column of names, on either side), ``"version"`` (the same but for
        the version of an Ensembl identifier), ``"case"`` (the same but for upper and lower case), ``"ambiguous"``
        (several genes of the table could be meant, so none is taken), ``"missing"``.
    """

    table: pd.DataFrame
    _columns: np.ndarray = field(repr=False)

    @property
    def present(self) -> list[str]:
        """Genes of the model that the table has, under whatever name."""
        return self.table.index[self._columns >= 0].tolist()

    @property
    def missing(self) -> list[str]:
        """Genes of the model that the table lacks."""
        return self.table.index[self._columns < 0].tolist()

    @property
    def renamed(self) -> dict[str, str]:
        """Genes that the table has under another name, ``{name in the model: name in the table}``."""
        rows = self.table[(self._columns >= 0) & (self.table["how"] != "name").to_numpy()]
        return rows["found_as"].to_dict()

    @property
    def share(self) -> float:
        """Share of the model's genes that the table has."""
        return float((self._columns >= 0).mean())

    def __str__(self) -> str:
        counts = ", ".join(f"{how} {n}" for how, n in self.table["how"].value_counts().items())
        return f"{len(self.present)} of {len(self.table)} genes present ({self.share:.0%}): {counts}"


def other_names(var: pd.DataFrame) -> list[list[str]]:
    """Return, for every gene, the names beside that of its row."""
    columns = [var[c].astype(object).where(var[c].notna(), "").astype(str) for c in NAME_COLUMNS if c in var]
    return [[name for name in dict.fromkeys(names) if name] for names in zip(*columns, strict=True)] or [
        [] for _ in range(len(var))
    ]


def align(genes: Sequence[str], others: Sequence[Sequence[str]], var: pd.DataFrame) -> GeneAlignment:
    """Find every gene of a model among the rows of ``var``.

    Parameters
    ----------
    genes
        Names of the model's genes.
    others
        More names of each, see :func:`other_names`.
    var
        The table's genes.

    Raises
    ------
    ValueError
        Names of the table repeat.
    """
    if not var.index.is_unique:
        twice = var.index[var.index.duplicated()].unique()
        msg = f"{len(twice)} gene names repeat ({listing(twice, 3)}). Run `adata.var_names_make_unique()`."
        raise ValueError(msg)
    columns = var.index.get_indexer(pd.Index(genes))
    how = np.where(columns >= 0, "name", "missing").astype(object)
    if (columns < 0).any():
        there = [[name, *more] for name, more in zip(var.index.astype(str), other_names(var), strict=True)]
        wanted = [[name, *more] for name, more in zip(genes, others, strict=True)]
        for label, form in (("identifier", str), ("version", _unversioned), ("case", _folded)):
            _look_up(columns, how, wanted, there, label, form)
    names = np.append(var.index.astype(str).to_numpy(dtype=object), None)
    table = pd.DataFrame({"found_as": names[columns], "how": how}, index=pd.Index(genes, name="gene"))
    return GeneAlignment(table, columns)


def _unversioned(name: str) -> str:
    return VERSION.sub(r"\1", name)


def _folded(name: str) -> str:
    return _unversioned(name).casefold()


def _look_up(
    columns: np.ndarray,
    how: np.ndarray,
    wanted: Sequence[Sequence[str]],
    there: Sequence[Sequence[str]],
    label: str,
    form: Callable[[str], str],
) -> None:
    """Fill in genes not found so far whose names agree in this form; a column stands for one gene only."""
    taken = set(columns[columns >= 0].tolist())
    at: dict[str, set[int]] = {}
    for column, names in enumerate(there):
        if column not in taken:
            for name in names:
                at.setdefault(form(name), set()).add(column)
    found: dict[int, set[int]] = {}
    for gene in np.flatnonzero(how == "missing"):
        candidates = set().union(*(at.get(form(name), set()) for name in wanted[gene]))
        if candidates:
            found[int(gene)] = candidates
    claims = pd.Series([c for candidates in found.values() for c in candidates], dtype=int).value_counts()
    for gene, candidates in found.items():
        if len(candidates) == 1 and claims[next(iter(candidates))] == 1:
            columns[gene], how[gene] = candidates.pop(), label
        else:
            how[gene] = "ambiguous"
