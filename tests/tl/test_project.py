"""Layouts of an embedding: PCA against scikit-learn, UMAP against Scanpy, gaps and repeats."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

import histoweave as hw
from histoweave._record import recorded


@pytest.fixture
def table(section):
    rng = np.random.default_rng(0)
    left = section.obsm["spatial"][:, 0] < np.median(section.obsm["spatial"][:, 0])
    section.obsm["X_image"] = (rng.normal(size=(144, 8)) + 6.0 * left[:, None]).astype("float32")
    section.obsm["X_image"][::7] = np.nan
    return section


def test_pca_is_scikit_learns_and_gaps_stay(table):
    hw.tl.project(table, method="pca", n_components=3)
    there = ~np.isnan(table.obsm["X_image"][:, 0])
    peer = PCA(3)
    expected = peer.fit_transform(table.obsm["X_image"][there])
    found = table.obsm["X_image_pca"]
    np.testing.assert_allclose(np.abs(found[there]), np.abs(expected), atol=1e-3)
    assert np.isnan(found[~there]).all()
    entry = recorded(table, "X_image_pca")
    np.testing.assert_allclose(entry["explained_variance_ratio"], peer.explained_variance_ratio_, rtol=1e-5)
    assert entry["params"]["key"] == "X_image"


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_layouts_repeat_and_keep_far_groups_apart(table, method):
    hw.tl.project(table, method=method, key_added="first", random_state=4)
    hw.tl.project(table, method=method, key_added="second", random_state=4)
    np.testing.assert_array_equal(table.obsm["first"], table.obsm["second"])
    there = ~np.isnan(table.obsm["first"][:, 0])
    left = table.obsm["spatial"][:, 0] < np.median(table.obsm["spatial"][:, 0])
    a, b = table.obsm["first"][there & left], table.obsm["first"][there & ~left]
    own = [np.linalg.norm(part - part.mean(axis=0), axis=1).max() for part in (a, b)]
    assert np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) > max(own)


def test_picture_names_the_axes_after_the_method(table):
    hw.tl.project(table, method="pca")
    ax = hw.pl.embedding(table, key="X_image_pca")
    share = recorded(table, "X_image_pca")["explained_variance_ratio"][0]
    assert ax.get_xlabel() == f"PC 1 ({100 * share:.0f} %)"
    dots = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    assert len(dots) == 144 - 21
    table.uns["histoweave"]["X_image_pca"]["params"]["method"] = "umap"
    del table.uns["histoweave"]["X_image_pca"]["explained_variance_ratio"]
    assert hw.pl.embedding(table, key="X_image_pca").get_ylabel() == "UMAP 2"


def test_copy_and_fewer_columns_than_dimensions(table):
    table.obsm["X_gene"] = table.obsm["X_image"][:, :1]
    changed = hw.tl.project(table, key="X_gene", method="pca", copy=True)
    assert "X_gene_pca" not in table.obsm
    assert (changed.obsm["X_gene_pca"][1:7, 1] == 0).all()


def test_bad_input(table):
    with pytest.raises(KeyError, match="key='X_fused'.*hw.tl.image_encoder"):
        hw.tl.project(table, key="X_fused")
    with pytest.raises(ValueError, match="`method` must be one of 'umap', 'tsne', 'pca'"):
        hw.tl.project(table, method="lda")
    with pytest.raises(ValueError, match="`n_components` must be >= 1"):
        hw.tl.project(table, n_components=0)
    table.obsm["X_image"][2:] = np.nan
    with pytest.raises(ValueError, match="1 rows with values; at least 3"):
        hw.tl.project(table, method="pca")
