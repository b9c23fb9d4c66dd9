import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import histoweave as hw


@pytest.fixture
def results():
    rows = [
        ("X_image", "regions", "knn_purity", 0.65, 0.3, 1.0),
        ("X_image", "sections", "knn_leakage", 0.9, 1.0, 0.0),
        ("X_image", "regions", "calinski_harabasz", 172.4, 1.0, np.nan),
        ("X_gene", "regions", "knn_purity", 0.1, 0.3, 1.0),
        ("X_gene", "sections", "knn_leakage", 0.0, 1.0, 0.0),
    ]
    return pd.DataFrame(rows, columns=["embedding", "aspect", "metric", "value", "floor", "ceiling"])


def test_colour_is_the_way_from_floor_to_ceiling(results):
    ax = hw.pl.embedding_quality(results)
    share = np.asarray(ax.images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(share, [[0.5, 0.1, np.nan], [0, 1, np.nan]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["knn purity", "knn leakage", "calinski harabasz"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["X_image", "X_gene"]
    texts = {t.get_position(): t.get_text() for t in ax.texts}
    assert texts[(0, 0)] == "0.65"
    assert texts[(2, 0)] == "172"
    assert texts[(2, 1)] == ""


def test_chosen_metrics_in_order(results):
    ax = hw.pl.embedding_quality(results, metrics=["knn_leakage", "knn_purity"])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["knn leakage", "knn purity"]
    with pytest.raises(KeyError, match="metrics='nmi'"):
        hw.pl.embedding_quality(results, metrics=["nmi"])


def test_results_of_the_verb_can_be_drawn(section):
    section.obsm["X_image"] = np.random.default_rng(0).normal(size=(144, 3))
    found = hw.tl.embedding_quality(section)
    assert len(hw.pl.embedding_quality(found).get_xticks()) == len(found)


def test_bad_results(results):
    with pytest.raises(TypeError, match="must be the DataFrame"):
        hw.pl.embedding_quality([1])
    with pytest.raises(KeyError, match="'floor'"):
        hw.pl.embedding_quality(results.drop(columns="floor"))
    with pytest.raises(ValueError, match="holds no score"):
        hw.pl.embedding_quality(results[:0])


@pytest.fixture
def pictured(two):
    """Crops of one grey level a row; an embedding in which rows near in number are near."""
    n = two.n_obs
    two.obsm["crops"] = np.broadcast_to(np.arange(n, dtype="uint8")[:, None, None, None], (n, 8, 8, 3)).copy()
    angle = np.where(np.arange(n) < 36, np.arange(n), np.arange(n) - 36 + 0.2) / 40
    two.obsm["X_image"] = np.column_stack([np.cos(angle), np.sin(angle)])
    return two


def drawn(ax, columns):
    return np.array([image.get_array()[0, 0, 0] for image in ax.images]).reshape(-1, columns)


def test_nearest_crops_of_the_other_section(pictured):
    names = pictured.obs_names[[5, 38]]
    ax = hw.pl.retrieval(pictured, rows=names, k=3)
    assert drawn(ax, 4).tolist() == [[5, 41, 40, 42], [38, 2, 3, 1]]  # 36 + 5, 4, 6; then 2.2 is near 2, 3, 1
    pictured.obs["library_id"] = "one"
    pictured.uns["spatial"] = {}
    assert drawn(hw.pl.retrieval(pictured, rows=names[:1], k=2), 3)[0, :2].tolist() == [5, 41]


def test_frames_have_the_colour_of_the_region(pictured):
    ax = hw.pl.retrieval(
        pictured, rows=[pictured.obs_names[5]], k=2, palette={"tumour": "red", "stroma": "blue", "fat": "k"}
    )
    expected = ["red" if pictured.obs["region"].iloc[i] == "tumour" else "blue" for i in (5, 41, 40)]
    assert [to_hex(p.get_edgecolor()) for p in ax.patches] == [
        {"red": "#ff0000", "blue": "#0000ff"}[c] for c in expected
    ]


def test_rows_without_values_are_neither_asked_nor_found(pictured):
    pictured.obsm["X_image"][41] = np.nan
    pictured.obs["crops_available"] = np.arange(pictured.n_obs) != 40
    shown = drawn(hw.pl.retrieval(pictured, rows=[pictured.obs_names[5]], k=2), 3)
    assert shown[0, 1:].tolist() == [42, 39]
    for seed in range(3):
        assert not np.isin(drawn(hw.pl.retrieval(pictured, n=20, k=4, random_state=seed), 5), [40, 41]).any()
    with pytest.raises(ValueError, match="1 rows without a crop or values"):
        hw.pl.retrieval(pictured, rows=[pictured.obs_names[41]])


def test_retrieval_needs_its_parts(pictured):
    with pytest.raises(KeyError, match="rows='nobody'"):
        hw.pl.retrieval(pictured, rows=["nobody"])
    with pytest.raises(KeyError, match="hw.tl.image_encoder"):
        hw.pl.retrieval(pictured, key="X_fused")
    del pictured.obsm["crops"]
    with pytest.raises(KeyError, match="hw.pp.crops"):
        hw.pl.retrieval(pictured)
