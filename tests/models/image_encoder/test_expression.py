"""Image statistics brought to expression: what is learned, what is told, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

import histoweave as hw
from histoweave._random import child_seeds
from histoweave._validate import HistoweaveWarning
from histoweave.models import ImageEncoder, RegionClassifier
from histoweave.models.image_encoder import _expression
from histoweave.models.image_encoder._expression import ExpressionGuide


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_expression, "N_TREES", 40)
        yield


@pytest.fixture(scope="module")
def cut(_sections):
    table = _sections.copy()
    hw.pp.crops(table, size_um=110, out_px=24)
    hw.tl.gene_encoder(table, n_components=8)
    return table


@pytest.fixture
def table(cut):
    return cut.copy()


def rows(table, *names):
    return table.obs["library_id"].isin([f"section_{n}" for n in names]).to_numpy()


@pytest.fixture(scope="module")
def planted():
    """Two sections whose first component is the first feature, the second a feature squared, the third noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 5))
    genes = np.stack([X[:, 0] + 5, X[:, 1] ** 2, rng.normal(size=400)], axis=1)
    genes[200:] += 100.0  # depth: differs between sections, is of no interest
    return X, genes, {"a": np.arange(200), "b": np.arange(200, 400)}


def test_what_can_be_told_is_told_and_measured_on_other_sections(planted):
    X, genes, rows_of = planted
    guide = ExpressionGuide().fit(X, genes, rows_of, None, seed=0)
    found = guide.history["correlation"]
    assert found[0] > 0.9
    assert found[1] > 0.6
    assert abs(found[2]) < 0.25
    np.testing.assert_allclose(guide.history["variance_share"].sum(), 1)
    fold_seeds = child_seeds(0, 5)[1:]
    own = []
    for seed, (here, there) in zip(fold_seeds, [("b", "a"), ("a", "b")], strict=False):  # a is held out first
        y = genes[rows_of[here]] - genes[rows_of[here]].mean(axis=0)
        forest = ExtraTreesRegressor(13, min_samples_leaf=3, random_state=seed).fit(X[rows_of[here]], y)
        own.append(forest.predict(X[rows_of[there]]))
    truth = np.concatenate([genes[r] - genes[r].mean(axis=0) for r in rows_of.values()])
    expected = [np.corrcoef(np.concatenate(own)[:, i], truth[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_embedding_is_standardised_within_sections_and_blind_to_them(planted):
    X, genes, rows_of = planted
    found = ExpressionGuide().fit(X, genes, rows_of, None, seed=0).apply(X, rows_of)
    for own in rows_of.values():
        np.testing.assert_allclose(found[own].mean(axis=0), 0, atol=1e-2)
        np.testing.assert_allclose(found[own].std(axis=0), 1, atol=5e-2)
        assert np.corrcoef(found[own, 0], genes[own, 0])[0, 1] > 0.95


def test_expression_guides_pictures_of_sections_without_any(table):
    train, new = table[rows(table, 1, 2, 3)].copy(), table[rows(table, 4)].copy()
    measured = np.asarray(new.obsm["X_gene"])
    del new.obsm["X_gene"]
    encoder = ImageEncoder("gene_regression").fit(train)
    found = encoder.embed(new)
    assert found.shape == (100, 8)
    first = encoder.history["correlation"].iloc[0]
    assert first > 0.5  # regions differ in both
    assert np.corrcoef(found[:, 0], measured[:, 0])[0, 1] == pytest.approx(first, abs=0.25)


def test_saving_and_repeating(table, tmp_path):
    encoder = ImageEncoder("gene_regression", random_state=3)
    found = encoder.fit_embed(table)
    again = ImageEncoder.load(encoder.save(tmp_path / "encoder"))
    np.testing.assert_array_equal(again.embed(table), encoder.embed(table))
    np.testing.assert_array_equal(ImageEncoder("gene_regression", random_state=3).fit_embed(table), found)
    assert again.history.equals(encoder.history)


def test_rows_without_expression_are_embedded_but_not_learned_from(table):
    genes = np.asarray(table.obsm["X_gene"]).copy()
    genes[rows(table, 4)] = np.nan
    table.obsm["X_gene"] = genes
    found = ImageEncoder("gene_regression").fit_embed(table)
    assert np.isfinite(found).all()
    alone = ImageEncoder("gene_regression").fit(table[rows(table, 1, 2, 3)].copy())
    # pooled statistics of the scalers aside, which whole sections do not use
    np.testing.assert_allclose(alone.embed(table), found, atol=1e-5)


def test_one_section_holds_out_blocks_and_noise_is_told(table):
    one = table[rows(table, 1)].copy()
    one.obsm["X_gene"] = np.random.default_rng(0).normal(size=(100, 4))
    with pytest.warns(HistoweaveWarning, match="can hardly be told from these crops"):
        encoder = ImageEncoder("gene_regression").fit(one)
    assert encoder.history["correlation"].abs().max() < 0.4


def test_refused(table):
    few = table[:30].copy()
    with pytest.raises(ValueError, match="Only 30 rows have crops and expression"):
        ImageEncoder("gene_regression").fit(few)
    del few.obsm["X_gene"]
    with pytest.raises(KeyError, match=r"genes_key='X_gene'.*hw.tl.gene_encoder"):
        ImageEncoder("gene_regression").fit(few)
    with pytest.raises(ValueError, match="'gene_regression' needs genes"):
        RegionClassifier(image="gene_regression")
