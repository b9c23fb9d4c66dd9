"""Small forests: nothing in these tests depends on how many trees there are, and time does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from anndata import AnnData

import histoweave as hw
from histoweave.models.fusion import _inner
from histoweave.models.fusion._heads import ForestHead


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_inner, "ForestHead", partial(ForestHead, 20))
        yield


@pytest.fixture(scope="module")
def _cut(_sections) -> AnnData:
    table = _sections.copy()
    hw.pp.crops(table, size_um=110, out_px=16)
    return table


@pytest.fixture
def cut(_cut) -> AnnData:
    """Four sections of four donors with crops."""
    return _cut.copy()
