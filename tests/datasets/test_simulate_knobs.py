from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from histoweave.datasets import simulate_section
from histoweave.datasets._simulate_knobs import Knobs

DEFAULTS = {f.name: simulate_section.__kwdefaults__[f.name] for f in dataclasses.fields(Knobs)}


def test_regions_map_to_themselves_unless_told() -> None:
    knobs = Knobs(**DEFAULTS)
    assert knobs.textures.tolist() == knobs.programmes.tolist() == [0, 1, 2, 3]
    knobs = Knobs(**DEFAULTS | {"image_regions": (2, 2, 0, 7), "gene_regions": np.array([0, 0, 3, 0])})
    assert knobs.textures.tolist() == [2, 2, 0, 7]
    assert knobs.n_programmes == 4


def test_many_regions_need_shared_textures() -> None:
    many = {"n_regions": 12, "n_genes": 300, "n_rows": 30}
    with pytest.raises(ValueError, match="image_regions="):
        Knobs(**DEFAULTS | many)
    assert Knobs(**DEFAULTS | many | {"image_regions": np.arange(12) % 8}).n_programmes == 12
