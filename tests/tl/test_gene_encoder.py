"""One verb for every gene encoder, and the masked one inside the whole chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import histoweave as hw


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("method", "options", "kind"),
    [("pca", {}, hw.models.GenePCA), ("masked", {"max_epochs": 2, "likelihood": "nb"}, hw.models.GeneAutoencoder)],
)
def test_writes_the_embedding_and_its_record(section, method, options, kind):
    model = hw.tl.gene_encoder(section, method=method, n_components=5, **options)
    assert isinstance(model, kind)
    np.testing.assert_array_equal(section.obsm["X_gene"], model.embed(section))
    entry = section.uns["histoweave"]["X_gene"]
    assert entry["params"]["method"] == method
    assert {k: entry["params"][k] for k in options} == options
    assert list(entry["sections_seen"]) == model.sections_seen
    assert entry["n_genes"] == len(model.genes)


def test_unknown_method_and_failed_fit_leave_the_table(section):
    with pytest.raises(ValueError, match="`method` must be one of 'pca', 'masked', 'scvi', 'scanvi'"):
        hw.tl.gene_encoder(section, method="umap")
    with pytest.raises(ValueError, match="None of the 1 programmes"):
        hw.tl.gene_encoder(section, method="masked", masking="programme", programmes={"a": ["X", "Y", "Z"]})
    assert "X_gene" not in section.obsm


def test_region_classifier_takes_masked_genes(sections, tmp_path):
    new = (sections.obs["library_id"] == "section_4").to_numpy()
    options = {"n_latent": 8, "max_epochs": 3, "widths": (32,)}
    clf = hw.models.RegionClassifier(image=None, genes="masked", gene_options=options).fit(sections[~new].copy())
    p = clf.predict_proba(sections[new].copy())
    assert np.allclose(p.sum(axis=1), 1)
    clf.save(tmp_path / "model")
    loaded = hw.models.RegionClassifier.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.predict_proba(sections[new].copy()), p, atol=1e-12)
    with pytest.raises(ValueError, match="`genes` must be one of 'pca', 'masked', 'None'"):
        hw.models.RegionClassifier(genes="scvi")
