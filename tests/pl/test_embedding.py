import numpy as np
import pytest
from sklearn.decomposition import PCA

import histoweave as hw


def dots(ax):
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])


@pytest.fixture
def embedded(table):
    rng = np.random.default_rng(0)
    shift = 4.0 * (table.obs["region"] == "tumour").to_numpy()[:, None]
    table.obsm["X_image"] = (rng.normal(size=(table.n_obs, 6)) + shift).astype("float32")
    return table


def test_pca_matches_scikit_learn(embedded):
    ax = hw.pl.embedding(embedded)
    model = PCA(2)
    expected = model.fit_transform(embedded.obsm["X_image"])
    np.testing.assert_allclose(np.sort(np.abs(dots(ax)), axis=0), np.sort(np.abs(expected), axis=0), atol=1e-4)
    assert ax.get_xlabel() == f"PC 1 ({100 * model.explained_variance_ratio_[0]:.0f} %)"


def test_two_dimensions_are_drawn_as_they_are_and_nan_rows_left_out(embedded):
    embedded.obsm["X_umap"] = np.arange(72.0).reshape(36, 2)
    embedded.obsm["X_umap"][3] = np.nan
    found = dots(hw.pl.embedding(embedded, key="X_umap"))
    assert sorted(map(tuple, found)) == [tuple(xy) for i, xy in enumerate(embedded.obsm["X_umap"]) if i != 3]


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_layouts_are_repeatable_and_separate_groups(embedded, method):
    first, second = (hw.pl.embedding(embedded, method=method, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(dots(first), dots(second))
    tumour, stroma = [], []
    for collection in first.collections[1:]:
        for xy, face in zip(collection.get_offsets(), collection.get_facecolors(), strict=True):
            (stroma if np.allclose(face[:3], np.array([0, 0x72, 0xB2]) / 255) else tumour).append(xy)
    within = np.ptp(np.array(tumour), axis=0).max()
    assert len(tumour) == 17
    assert np.linalg.norm(np.mean(tumour, axis=0) - np.mean(stroma, axis=0)) > 0.5 * within
    assert set(embedded.obsm) == {"spatial", "X_image"}


def test_numbers_get_a_colour_bar_and_classes_a_legend(embedded):
    ax = hw.pl.embedding(embedded, color="region_confidence")
    assert [a.get_ylabel() for a in ax.figure.axes[1:]] == ["region_confidence"]
    legend = hw.pl.embedding(embedded).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["stroma", "tumour", "no label"]
    assert hw.pl.embedding(embedded, legend=False).get_legend() is None


def test_bad_input(embedded):
    with pytest.raises(KeyError, match="image_encoder"):
        hw.pl.embedding(embedded, key="X_fused")
    with pytest.raises(KeyError, match="color"):
        hw.pl.embedding(embedded, color="layer")
    with pytest.raises(ValueError, match="method"):
        hw.pl.embedding(embedded, method="lda")
    embedded.obsm["X_image"][:, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        hw.pl.embedding(embedded)
    embedded.obsm["X_image"][:] = np.nan
    with pytest.raises(ValueError, match="0 rows"):
        hw.pl.embedding(embedded)
