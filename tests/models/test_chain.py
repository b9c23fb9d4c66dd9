"""Features of a table from fitted encoders."""

from __future__ import annotations

import numpy as np
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models._chain import embed_all, with_context
from histoweave.models.image_encoder._model import FEATURES


@pytest.fixture
def fitted(section):
    hw.pp.crops(section, out_px=16)
    encoders = {"image": hw.models.ImageEncoder().fit(section), "gene": hw.models.GenePCA(5).fit(section)}
    return section, encoders


def test_embeds_what_is_there(fitted):
    section, encoders = fitted
    both = embed_all(encoders, section, ["crops"])
    assert np.array_equal(section.obsm[FEATURES], encoders["image"].features(section))
    assert np.array_equal(both["image"], encoders["image"].embed(section))
    assert np.array_equal(both["gene"], encoders["gene"].embed(section))
    assert set(embed_all(encoders, section[:, :0].copy(), ["crops"])) == {"image"}
    del section.obsm["crops"], section.obsm[FEATURES]
    assert set(embed_all(encoders, section, ["crops"])) == {"gene"}


def test_foreign_genes_are_left_out_beside_an_image_and_refused_without(fitted):
    section, encoders = fitted
    section.var_names = [f"other{i}" for i in range(section.n_vars)]
    with pytest.warns(HistoweaveWarning, match="only 0%"):
        assert set(embed_all(encoders, section, ["crops"])) == {"image"}
    del section.obsm["crops"], section.obsm[FEATURES]
    with pytest.raises(ValueError, match="0 of the model's"):
        embed_all(encoders, section, ["crops"])
    with pytest.raises(ValueError, match="nothing that this model was fitted on"):
        embed_all(encoders, section[:, :0].copy(), ["crops"])


def test_context_puts_the_mean_of_the_neighbours_beside(section):
    X = np.arange(section.n_obs, dtype=np.float32)[:, None]
    out = with_context(section, {"gene": X}, 1)["gene"]
    xy = section.obsm["spatial"]
    pitch = 100 / section.uns["spatial"]["section_1"]["scalefactors"]["microns_per_pixel"]
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    near = (distance > 0) & (distance < 1.2 * pitch)
    np.testing.assert_allclose(out[:, 1], (near @ X[:, 0]) / near.sum(axis=1), rtol=1e-5)
    assert np.array_equal(with_context(section, {"gene": X}, 0)["gene"], X)
