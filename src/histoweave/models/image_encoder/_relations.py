"""Which rows of a table belong together, beyond their pixels: by their labels, or by their expression."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import nn

from histoweave import _keys
from histoweave._random import rng
from histoweave._validate import require_key, require_labels, warn
from histoweave.models.image_encoder._losses import class_pairs

NEAR = 2.2  # distances between nearest neighbours within which spots are never negatives: two rings of an array
SAMPLE = 2000  # rows whose pairs give the quantiles
CHECKED = 20_000  # rows that every row is compared with when rows without partners are counted


class ByLabel(nn.Module):
    """Rows of one class belong together.

    Parameters
    ----------
    codes
        Class numbers ``(n,)``, -1 for none.
    """

    def __init__(self, codes: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(codes), persistent=False)
        self.n_classes = int(codes.max()) + 1
        self.usable = codes >= 0
        self.fingerprint = crc32(codes.tobytes())

    def pairs(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs of a batch's rows are positive and which negative."""
        return class_pairs(self.codes[rows])


class ByExpression(nn.Module):
    """Rows of similar expression belong together, across sections where there are several.

    A pair is positive where the cosine similarity of its expression, centred within each section, is in the upper
    quantile and its rows are of two groups; negative where it is in the lower quantile and its rows are not
    neighbours in the tissue.

    Parameters
    ----------
    genes
        Embedding ``(n, d)``; rows with NaN are in no pair.
    usable
        Rows that have crops ``(n,)``.
    section, group
        Numbers of the section and of the group ``(n,)``.
    xy
        Places ``(n, 2)``, or ``None`` where they are not known.
    quantiles
        Of negatives and of positives.
    random_state
        Seed of the sample that gives the quantiles.
    """

    def __init__(
        self,
        genes: np.ndarray,
        usable: np.ndarray,
        section: np.ndarray,
        group: np.ndarray,
        xy: np.ndarray | None,
        quantiles: tuple[float, float],
        random_state: int = 0,
    ) -> None:
        super().__init__()
        centred, place = np.zeros(genes.shape, np.float32), np.zeros((len(genes), 2), np.float32)
        usable = usable & np.isfinite(genes).all(axis=1)
        for number in np.unique(section[usable]):
            rows = np.flatnonzero(usable & (section == number))
            centred[rows] = genes[rows] - genes[rows].mean(axis=0)
            if xy is not None and len(rows) > 1:
                place[rows] = xy[rows] / max(np.median(cKDTree(xy[rows]).query(xy[rows], k=2)[0][:, 1]), 1e-9)
        self.usable = usable & (np.abs(centred).max(axis=1) > 0)
        self.placed, self.across = xy is not None, len(np.unique(group[self.usable])) > 1
        for name, values in {"unit": F.normalize(torch.from_numpy(centred)), "place": torch.from_numpy(place)}.items():
            self.register_buffer(name, values, persistent=False)
        for name, values in {"known": self.usable, "section": section, "group": group}.items():
            self.register_buffer(name, torch.from_numpy(np.asarray(values)), persistent=False)
        self.fingerprint = crc32(centred.tobytes())
        self._set_thresholds(quantiles, random_state)

    def _candidates(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Similarity of two sets of rows, and which pairs may be positive and which negative."""
        known = self.known[a][:, None] & self.known[b][None, :] & (a[:, None] != b[None, :])
        together = self.section[a][:, None] == self.section[b][None, :]
        may_pull, may_push = known, known
        if self.across:
            may_pull = known & (self.group[a][:, None] != self.group[b][None, :])
        if self.placed:
            may_push = known & ~(together & (torch.cdist(self.place[a], self.place[b]) <= NEAR))
        with torch.autocast(self.unit.device.type, enabled=False):  # in bfloat16 rounding would decide some pairs
            return self.unit[a] @ self.unit[b].T, may_pull, may_push

    def pairs(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs of a batch's rows are positive and which negative."""
        similarity, may_pull, may_push = self._candidates(rows, rows)
        return may_pull & (similarity >= self.upper), may_push & (similarity <= self.lower)

    def _set_thresholds(self, quantiles: tuple[float, float], random_state: int) -> None:
        rows = torch.from_numpy(rng(random_state).permutation(np.flatnonzero(self.usable)))
        similarity, may_pull, may_push = self._candidates(rows[:SAMPLE], rows[:SAMPLE])
        for may, what in ((may_pull, "positives (rows of other sections)"), (may_push, "negatives (no neighbours)")):
            if not may.any():
                msg = (
                    f"Expression gives no candidates for {what}: {len(rows)} rows have crops and expression. Use more "
                    "rows, or a method that needs pixels only, e.g. 'simclr'."
                )
                raise ValueError(msg)
        self.lower = float(np.quantile(similarity[may_push].numpy(), quantiles[0]))
        self.upper = float(np.quantile(similarity[may_pull].numpy(), quantiles[1]))
        if self.upper <= max(self.lower, 0):
            msg = (
                f"`quantiles={quantiles}` would call rows similar whose expression is not: positives from a cosine of "
                f"{self.upper:.2f} on, negatives up to {self.lower:.2f}. Move the quantiles apart, or use an embedding "
                "that tells rows apart, e.g. of `hw.tl.gene_encoder(...)`."
            )
            raise ValueError(msg)
        self._count_alone(rows)

    def _count_alone(self, rows: torch.Tensor) -> None:
        """Warn of rows that have no positive, or no negative, anywhere."""
        alone = np.zeros((2, len(rows)), bool)
        for start in range(0, len(rows), 1000):
            part = slice(start, start + 1000)
            similarity, may_pull, may_push = self._candidates(rows[part], rows[:CHECKED])
            alone[0, part] = ~(may_pull & (similarity >= self.upper)).any(dim=1).numpy()
            alone[1, part] = ~(may_push & (similarity <= self.lower)).any(dim=1).numpy()
        where = "of another section " if self.across else ""
        reasons = {
            "positive": f"no row {where}is as similar as {self.upper:.2f}",
            "negative": f"no row that is no neighbour is as different as {self.lower:.2f}",
        }
        for none, (kind, reason) in zip(alone, reasons.items(), strict=True):
            if none.any():
                warn(f"{none.sum()} of {len(rows)} rows have no {kind} by expression and are no anchors: {reason}.")


Relation = ByLabel | ByExpression


def label_codes(table, labels_key: str, available: np.ndarray, *, needed: int = 2) -> np.ndarray:
    """Return class numbers ``(n,)``, in the order of the names; -1 without a label or without crops.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        Rows with crops are of fewer than ``needed`` classes.
    """
    names = require_labels(table[available], labels_key, min_classes=needed)
    classes = sorted(names.dropna().unique())
    codes = np.full(len(available), -1)
    codes[available] = names.map({name: i for i, name in enumerate(classes)}).fillna(-1).to_numpy(dtype=int)
    return codes


def expression(
    table, available: np.ndarray, rows_of: Mapping[str, np.ndarray], genes_key: str, across_key: str | None,
    quantiles: tuple[float, float], random_state: int,
) -> ByExpression:  # fmt: skip
    """Return the relation of a table's rows by their expression in ``obsm[genes_key]``."""
    require_key(table.obsm, genes_key, where="adata.obsm", argument="genes_key", run="hw.tl.gene_encoder(...)")
    genes = np.asarray(table.obsm[genes_key], dtype=np.float32)
    if genes.ndim != 2 or len(genes) != table.n_obs:
        msg = f"`adata.obsm[{genes_key!r}]` must be an embedding (n_obs, d), got shape {genes.shape}."
        raise ValueError(msg)
    section = np.zeros(table.n_obs, dtype=int)
    for number, rows in enumerate(rows_of.values()):
        section[rows] = number
    group = section
    if across_key is not None:
        require_key(table.obs, across_key, where="adata.obs", argument="across_key")
        group = np.unique(table.obs[across_key].astype(str), return_inverse=True)[1]
    xy = None
    if _keys.SPATIAL in table.obsm:
        xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=float)[:, :2]
    else:
        warn("There is no `adata.obsm['spatial']`: neighbours in the tissue may become negatives of each other.")
    return ByExpression(genes, available, section, group, xy, quantiles, random_state)
