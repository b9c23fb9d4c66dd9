from __future__ import annotations

import numpy as np
import pytest

from histoweave.datasets import _simulate_counts as sim


@pytest.fixture
def programmes() -> sim.Programmes:
    return sim.draw_programmes(np.random.default_rng(0), 3, 50, 5)


def test_only_markers_differ_between_programmes(programmes: sim.Programmes) -> None:
    shares = sim.profiles(programmes, 1.0, np.zeros(51))
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert np.bincount(programmes.marker_of + 1).tolist() == [35, 5, 5, 5]
    other = programmes.marker_of < 0
    np.testing.assert_allclose(shares[0, other], shares[1, other])
    for k in range(3):
        own = programmes.marker_of == k
        change = np.log(shares[k, own] / shares[k - 1, own])
        np.testing.assert_allclose(change, programmes.effect[k, own])
        assert ((change > 0.7) & (change < 1.5)).all()
    silent = sim.profiles(programmes, 0.0, np.zeros(51))
    np.testing.assert_array_equal(silent[0], silent[1])


def test_batch_effects_of_one_donor_correlate_as_stated() -> None:
    rng = np.random.default_rng(0)
    donor, one, two = (sim.draw_batch(rng, 20_000) for _ in range(3))
    a, b = sim.join_batch(donor, one, 0.4), sim.join_batch(donor, two, 0.4)
    assert a.std() == pytest.approx(0.4, rel=0.03)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_counts_follow_their_programme_across_chunks(dispersion: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "CHUNK", 700)
    monkeypatch.setattr(sim, "DEPTH_SD", 0.0)
    shares = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    programme = np.tile([0, 1], 10_000)
    counts = sim.draw_counts(np.random.default_rng(0), shares, programme, depth=20, dispersion=dispersion, dropout=0)
    assert counts.shape == (20_000, 3)
    assert counts.dtype == np.float32
    for k in (0, 1):
        values = counts[programme == k].toarray().astype(float)
        mean = 20 * shares[k]
        np.testing.assert_allclose(values.mean(axis=0), mean, rtol=0.03)
        np.testing.assert_allclose(values.var(axis=0), mean + dispersion * mean**2, rtol=0.06)
