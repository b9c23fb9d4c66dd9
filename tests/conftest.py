"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from anndata import AnnData

import histoweave as hw

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real research data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"real research data is not at {SHARED}")
    return SHARED


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """Small forests, for modules in which nothing depends on how many trees there are, and time does."""
    from histoweave.models.fusion._heads import ForestHead

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForestHead.__init__, "__defaults__", (20, 2))
        yield


@pytest.fixture(scope="session")
def _section() -> AnnData:
    return hw.datasets.simulate_section(n_rows=12, n_cols=12, n_genes=120, um_per_px=2.0)


@pytest.fixture(scope="session")
def _sections() -> AnnData:
    return hw.datasets.simulate_sections(4, n_rows=10, n_cols=10, n_genes=120, n_regions=3, um_per_px=2.0)


@pytest.fixture
def section(_section: AnnData) -> AnnData:
    """One simulated section: 144 spots, 120 genes, 4 regions, every spot labelled, 2 um per pixel."""
    return _section.copy()


@pytest.fixture
def sections(_sections: AnnData) -> AnnData:
    """Four simulated sections of four donors: 100 spots each, 120 genes, 3 regions, 2 um per pixel."""
    return _sections.copy()
