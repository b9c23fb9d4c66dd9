"""scVI and scANVI behind our contract: the same latent means as scvi-tools, new sections, safe files."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import ScviEncoder


def test_missing_package_names_the_extra(monkeypatch, section):
    monkeypatch.setitem(sys.modules, "scvi", None)
    with pytest.raises(ImportError, match=r"pip install 'histoweave\[scvi\]'"):
        hw.tl.gene_encoder(section, method="scvi")
    assert "X_gene" not in section.obsm


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`method` must be one of 'scvi', 'scanvi'"):
        ScviEncoder("pca")
    with pytest.raises(ValueError, match="`likelihood` must be one of"):
        ScviEncoder(likelihood="mse")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_encoders_of_scvi_tools_fit_embed_and_save(tmp_path, sections):
    pytest.importorskip("scvi", reason="the extra scvi is not installed")
    sections = sections[:200].copy()
    state, python = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    model = hw.tl.gene_encoder(sections, method="scvi", n_components=6, max_epochs=2, n_hidden=16)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert random.getstate() == python
    Z = sections.obsm["X_gene"]
    assert Z.shape == (200, 6)
    assert np.isfinite(Z).all()
    assert sections.uns["histoweave"]["X_gene"]["params"]["method"] == "scvi"
    np.testing.assert_array_equal(
        Z, ScviEncoder(n_latent=6, max_epochs=2, n_hidden=16).fit_embed(sections)
    )  # the same seed
    model.save(tmp_path / "scvi")
    np.testing.assert_array_equal(ScviEncoder.load(tmp_path / "scvi").embed(sections), Z)
    sections.obs["library_id"] = "new"
    np.testing.assert_array_equal(model.embed(sections), Z)
    with pytest.warns(HistoweaveWarning, match="and taken to be 0"):
        model.embed(sections[:, model.genes[5:]].copy())
    sections.obs.loc[sections.obs_names[::2], "region"] = None
    labelled = hw.tl.gene_encoder(sections, method="scanvi", n_components=6, max_epochs=1, n_hidden=16)
    assert labelled.embed(sections).shape == (200, 6)
    assert labelled.labels_seen == labelled.sections_seen == ["new"]
    assert model.labels_seen == []
