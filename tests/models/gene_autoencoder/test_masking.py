"""Masks: their rate, their programmes, their source of randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histoweave.models.gene_autoencoder._masking import (
    Masker,
    bernoulli,
    learn_programmes,
    membership,
    programme_rate,
    read_programmes,
)

GENES = [f"G{i}" for i in range(60)]
PROGRAMMES = {"a": GENES[:10], "b": GENES[10:25], "c": GENES[20:30]}  # b and c overlap; 30 genes in none


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rate", [0.001, 0.15, 0.5, 0.9])
def test_random_masks_have_the_rate_in_every_row_and_gene(rate):
    mask = bernoulli(2000, 61, rate, seeded()).numpy()
    sd = np.sqrt(rate * (1 - rate))
    assert abs(mask.mean() - rate) < 5 * sd / np.sqrt(mask.size)
    assert np.abs(mask.mean(axis=0) - rate).max() < 5 * sd / np.sqrt(2000) + 1e-3
    assert abs(np.corrcoef(mask[:, 0], mask[:, 1])[0, 1]) < 0.12 if rate > 0.01 else True


def test_masks_are_resampled_each_step_and_repeat_with_the_seed():
    masker = Masker(60, "random", 0.5)
    generator = seeded(1)
    first, second = masker.draw(8, generator), masker.draw(8, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, masker.draw(8, seeded(1)))


def test_programmes_are_hidden_whole_and_other_genes_alone():
    members = membership({"a": GENES[:10], "b": GENES[10:25]}, GENES)
    mask = Masker(60, "programme", 0.4, members).draw(5000, seeded()).numpy()
    assert np.all(mask[:, :10] == mask[:, :1])
    assert np.all(mask[:, 10:25] == mask[:, 10:11])
    assert abs(np.corrcoef(mask[:, 0], mask[:, 10])[0, 1]) < 0.05
    assert abs(np.corrcoef(mask[:, 40], mask[:, 41])[0, 1]) < 0.05
    assert np.abs(mask.mean(axis=0) - 0.4).max() < 0.05


def test_overlapping_programmes_still_hide_the_asked_share():
    members = membership(PROGRAMMES, GENES)
    mask = Masker(60, "programme", 0.5, members).draw(20000, seeded()).numpy()
    assert abs(mask[:, members.any(axis=0)].mean() - 0.5) < 0.02
    assert programme_rate(np.ones((2, 4), dtype=bool), 0.75) == pytest.approx(0.5)


def test_mixed_rows_are_either_of_programmes_or_random():
    members = membership({"a": GENES[:30], "b": GENES[30:]}, GENES)
    mask = Masker(60, "mixed", 0.5, members).draw(4000, seeded()).numpy()
    whole = (mask[:, :30].all(axis=1) | ~mask[:, :30].any(axis=1)) & (
        mask[:, 30:].all(axis=1) | ~mask[:, 30:].any(axis=1)
    )
    assert abs(whole.mean() - 0.5) < 0.05


def test_co_expressed_genes_become_a_programme():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], 20)
    X = rng.normal(size=(300, 3))[:, truth] + 0.5 * rng.normal(size=(300, 60))
    found = learn_programmes(X - X.mean(axis=0), GENES, 3, seed=0)
    assert sorted(map(sorted, found.values())) == sorted(sorted(np.array(GENES)[truth == k]) for k in range(3))
    assert found == learn_programmes(X - X.mean(axis=0), GENES, 3, seed=0)


def test_gmt_is_read_and_cut_to_known_genes(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("one\tfrom somewhere\tG1\tG2\tG3\tOTHER\n\nfew\t\tG1\tOTHER\n")
    assert read_programmes(path, GENES) == {"one": ["G1", "G2", "G3"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\tx\tEGFR\tERBB2\tKRT8\n", "None of the 1 programmes has 3 or more of the 60 genes.*EGFR.*G0"),
        ("one\tonly a description\n", "line 1 .*has no genes"),
        ("one\tx\tG1\tG2\tG3\none\tx\tG1\tG2\tG3\n", "line 2 .*repeats a name"),
    ],
)
def test_bad_gmt_is_a_clear_error(tmp_path, text, message):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_programmes(path, GENES)


def test_missing_gmt_is_named():
    with pytest.raises(FileNotFoundError, match="no file 'nowhere.gmt'"):
        read_programmes("nowhere.gmt", GENES)


def test_programmes_are_required_for_their_strategy():
    with pytest.raises(ValueError, match="needs programmes"):
        Masker(5, "programme", 0.5)
