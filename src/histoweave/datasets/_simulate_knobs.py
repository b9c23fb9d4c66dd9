"""The arguments of a simulated section, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoweave._validate import require_choice, require_number
from histoweave.datasets._simulate_image import TEXTURES

LAYOUTS = ("blobs", "layers")
GRIDS = ("hex", "square")


@dataclass(frozen=True)
class Knobs:
    """What :func:`histoweave.datasets.simulate_section` takes, but names and seed; checked on creation."""

    n_rows: int
    n_cols: int
    n_regions: int
    n_genes: int
    image_signal: float
    gene_signal: float
    image_regions: Sequence[int] | None
    gene_regions: Sequence[int] | None
    n_markers: int
    depth: float
    dispersion: float
    dropout: float
    batch_effect: float
    stain_shift: float
    labelled_fraction: float
    layout: str
    tissue_fraction: float
    margin_um: float
    um_per_px: float
    array_grid: str
    image: bool

    def __post_init__(self) -> None:
        for name in ("n_rows", "n_cols"):
            require_number(getattr(self, name), argument=name, at_least=2, integer=True)
        for name in ("n_regions", "n_genes", "n_markers"):
            require_number(getattr(self, name), argument=name, at_least=1, integer=True)
        for name in ("image_signal", "labelled_fraction"):
            require_number(getattr(self, name), argument=name, at_least=0, at_most=1)
        for name in ("gene_signal", "dispersion", "batch_effect", "stain_shift", "margin_um"):
            require_number(getattr(self, name), argument=name, at_least=0)
        require_number(self.depth, argument="depth", above=0)
        require_number(self.dropout, argument="dropout", at_least=0, below=1)
        require_number(self.tissue_fraction, argument="tissue_fraction", above=0, at_most=1)
        require_number(self.um_per_px, argument="um_per_px", above=0, at_most=10)
        require_choice(self.layout, LAYOUTS, argument="layout")
        require_choice(self.array_grid, GRIDS, argument="array_grid")
        self._check_sizes()

    def _check_sizes(self) -> None:
        n_spots = round(self.n_rows * self.n_cols * self.tissue_fraction)
        if n_spots < 4 * self.n_regions or self.n_regions > 255:
            msg = (
                f"`n_regions={self.n_regions}` is too many for {n_spots} spots on tissue: a region needs "
                "about 4 or more, and there may be 255. Raise `n_rows` and `n_cols`, or lower `n_regions`."
            )
            raise ValueError(msg)
        if max(self.textures) >= len(TEXTURES):
            msg = (
                f"Texture classes go from 0 to {len(TEXTURES) - 1} ({', '.join(TEXTURES)}), "
                f"but class {max(self.textures)} is used. Say which regions look alike with `image_regions=`."
            )
            raise ValueError(msg)
        needed = self.n_markers * self.n_programmes
        if needed > self.n_genes:
            msg = (
                f"`n_genes={self.n_genes}` is too few for {self.n_programmes} programmes of "
                f"`n_markers={self.n_markers}` genes each: {needed} are needed."
            )
            raise ValueError(msg)

    @property
    def textures(self) -> np.ndarray:
        """Texture class of each region."""
        return _classes(self.image_regions, self.n_regions, "image_regions")

    @property
    def programmes(self) -> np.ndarray:
        """Expression programme of each region."""
        return _classes(self.gene_regions, self.n_regions, "gene_regions")

    @property
    def n_programmes(self) -> int:
        """Number of programmes, unused numbers below the highest included."""
        return int(self.programmes.max()) + 1


def _classes(value: Any, n_regions: int, argument: str) -> np.ndarray:
    if value is None:
        return np.arange(n_regions)
    classes = np.asarray(value)
    if classes.shape != (n_regions,) or not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0:
        msg = f"`{argument}` must be {n_regions} integers from 0, one a region, got {value!r}."
        raise ValueError(msg)
    return classes
