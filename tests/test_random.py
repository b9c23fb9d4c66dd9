"""Seeds in, generators out, nothing global touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histoweave._random import child_seeds, rng, torch_generator, torch_seed


def test_seed_gives_numpys_own_generator():
    assert rng(3).random() == np.random.default_rng(3).random()
    generator = np.random.default_rng(0)
    assert rng(generator) is generator
    assert rng(np.int64(3)).random() == np.random.default_rng(3).random()
    with pytest.raises(TypeError, match="random_state"):
        rng("seed")


def test_child_seeds_are_reproducible_and_differ():
    seeds = child_seeds(0, 50)
    assert seeds == child_seeds(0, 50)
    assert len(set(seeds)) == 50
    assert not set(seeds) & set(child_seeds(1, 50))
    assert all(0 <= s < 2**31 for s in seeds)


def test_torch_generator_is_reproducible():
    a, b = (torch.rand(3, generator=torch_generator(0)) for _ in range(2))
    assert torch.equal(a, b)


def test_global_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    with torch_seed(0):
        inside = torch.rand(2)
    rng(0).random()
    assert torch.equal(torch.rand(2), expected)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    with torch_seed(0):
        assert torch.equal(torch.rand(2), inside)


def test_seed_is_undone_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError), torch_seed(0):
        _ = 1 / 0
    assert torch.equal(torch.rand(2), expected)
