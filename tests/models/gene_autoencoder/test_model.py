"""The masked autoencoder as users hold it: it learns, transfers, repeats, saves, and refuses bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import GeneAutoencoder

SMALL = {"n_latent": 12, "widths": (64,), "max_epochs": 60, "target_sum": 1e3, "patience": None}
QUICK = SMALL | {"max_epochs": 3}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Networks this small only wait for each other's threads, for seconds on a busy machine."""
    threads, hw.settings.progress = torch.get_num_threads(), False
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    hw.settings.progress = True


@pytest.fixture(scope="module")
def two():
    """Two sections of one tissue: 225 spots each, 150 genes."""
    return hw.datasets.simulate_sections(2, n_rows=15, n_cols=15, n_genes=150, image=False, depth=2000)


@pytest.fixture(scope="module")
def first(two):
    return two[two.obs["library_id"] == "section_1"].copy()


@pytest.fixture(scope="module")
def second(two):
    return two[two.obs["library_id"] == "section_2"].copy()


@pytest.fixture(scope="module")
def fitted(first):
    return GeneAutoencoder(**SMALL).fit(first)


@pytest.fixture(scope="module")
def quick(two):
    return GeneAutoencoder(**QUICK).fit(two)


def transfer_accuracy(Z_train, y_train, Z_test, y_test) -> float:
    mean, sd = Z_train.mean(axis=0), Z_train.std(axis=0)
    head = LogisticRegression(max_iter=1000).fit((Z_train - mean) / sd, y_train)
    return float(head.score((Z_test - mean) / sd, y_test))


def region(adata) -> np.ndarray:
    return adata.obs["region_truth"].astype(str).to_numpy()


# ------------------------------------------------------------------ it learns


def test_loss_falls_and_history_says_so(first, fitted):
    assert fitted.history.columns.tolist() == ["epoch", "train_loss", "validation_loss"]
    assert fitted.history["train_loss"].min() < fitted.history["train_loss"].iloc[0]
    counts = first.layers["counts"].toarray()
    log = np.log1p(counts / counts.sum(axis=1, keepdims=True) * fitted._target)
    assert fitted.history["validation_loss"].min() < 0.95 * log.var(axis=0).mean()  # what the genes' means leave


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_loss_of_counts_falls(first, likelihood):
    model = GeneAutoencoder(**SMALL | {"max_epochs": 30}, likelihood=likelihood, masking="mixed").fit(first)
    assert model.history["validation_loss"].min() < model.history["validation_loss"].iloc[0]
    predicted = model.impute(first)
    assert np.isfinite(predicted.to_numpy()).all()
    assert (predicted.to_numpy() >= 0).all()
    assert sum(len(genes) for genes in model.programmes_used.values()) == len(model.genes)


def test_linear_probe_is_near_that_of_principal_components(fitted, first, second):
    pca = hw.models.GenePCA(12, target_sum=1e3).fit(first)
    ours = transfer_accuracy(fitted.embed(first), region(first), fitted.embed(second), region(second))
    theirs = transfer_accuracy(pca.embed(first), region(first), pca.embed(second), region(second))
    assert ours > max(0.7, theirs - 0.05)


def test_hidden_markers_are_recovered_above_both_nulls(fitted, second):
    scores = fitted.score_imputation(second)
    markers = second.var_names[second.var["marker_of"] != ""]
    mean = scores[scores["gene"].isin(markers)].groupby("method")[["pearson", "spearman", "rmse"]].mean()
    assert mean.loc["model", "rmse"] < mean.loc["gene mean", "rmse"]
    assert mean.loc["model", "rmse"] < mean.loc["neighbour mean", "rmse"]
    assert mean.loc["model", "pearson"] > 0.2
    assert np.isnan(mean.loc["gene mean", "pearson"])


def test_what_was_imputed_is_scored_without_imputing_again(fitted, second, monkeypatch):
    expected, predicted = fitted.score_imputation(second), fitted.impute(second)
    with monkeypatch.context() as patch:
        patch.setattr(type(fitted), "impute", None)
        pd.testing.assert_frame_equal(fitted.score_imputation(second, predicted=predicted), expected)
    few = fitted.score_imputation(second, predicted=predicted.iloc[:, 2:5])
    pd.testing.assert_frame_equal(few, expected[expected["gene"].isin(predicted.columns[2:5])].reset_index(drop=True))
    for wrong in (predicted.rename(columns={predicted.columns[0]: "other"}), predicted.iloc[::-1]):
        with pytest.raises(ValueError, match="`predicted` has not the rows"):
            fitted.score_imputation(second, predicted=wrong)


def test_imputed_genes_do_not_see_themselves(two):
    quick = GeneAutoencoder(**QUICK, centre=False).fit(two)
    gene = quick.genes[0]
    spoiled = two.copy()
    counts = spoiled.X.tolil()
    other = two.var_names.get_loc(quick.genes[1])
    at = two.var_names.get_loc(gene)
    # depth stays: what is taken from the hidden gene is given to another hidden gene
    values = counts[:, at].toarray() + counts[:, other].toarray()
    counts[:, at], counts[:, other] = 0, values
    spoiled.X = spoiled.layers["counts"] = counts.tocsr()
    truth = quick.impute(two, genes=quick.genes[:2])
    np.testing.assert_allclose(quick.impute(spoiled, genes=quick.genes[:2]), truth, atol=1e-6)


# ------------------------------------------------------------------ transfer


def test_missing_genes_are_hidden_not_zero(first, second):
    model = GeneAutoencoder(**SMALL, centre=False).fit(first)
    Z, y = model.embed(first), region(first)
    full = transfer_accuracy(Z, y, model.embed(second), region(second))
    hidden, zero = [], []
    for seed in range(3):
        dropped = np.random.default_rng(seed).choice(second.n_vars, round(0.3 * second.n_vars), replace=False)
        fewer = second[:, np.setdiff1d(np.arange(second.n_vars), dropped)].copy()
        filled = second.copy()
        keep = np.ones(second.n_vars)
        keep[dropped] = 0
        filled.X = filled.layers["counts"] = (second.X @ sp.diags(keep)).tocsr()
        with pytest.warns(HistoweaveWarning, match="45 of the model's 150 genes are not in the table; they are est"):
            hidden.append(transfer_accuracy(Z, y, model.embed(fewer), region(second)))
        zero.append(transfer_accuracy(Z, y, model.embed(filled), region(second)))
    assert full - np.mean(hidden) < full - np.mean(zero)


def test_new_sections_and_sections_seen_are_embedded_alike(quick, two, second):
    assert quick.sections_seen == ["section_1", "section_2"]
    alone = quick.embed(second)
    np.testing.assert_allclose(alone, quick.embed(two)[two.obs["library_id"] == "section_2"], atol=1e-5)
    renamed = second.copy()
    renamed.obs["library_id"] = "another"
    np.testing.assert_array_equal(alone, quick.embed(renamed))
    assert not np.allclose(quick.impute(second), quick.impute(renamed), atol=1e-4)  # the decoder knows the section


def test_too_few_genes_are_refused(quick, two):
    other = two.copy()
    other.var_names = [f"OTHER{i}" for i in range(two.n_vars)]
    assert quick.overlap(other) == 0
    with pytest.raises(ValueError, match="0 of the model's 150 genes .*Are gene names of the same kind"):
        quick.embed(other)


# ------------------------------------------------------------------ it repeats


@pytest.mark.parametrize("likelihood", ["mse", "nb"])
def test_same_seed_same_embedding_in_any_order_of_sections(two, likelihood):
    state, generator = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    options = QUICK | {"likelihood": likelihood, "masking": "mixed", "n_top_genes": 100}
    once = GeneAutoencoder(**options).fit_embed(two)
    again = GeneAutoencoder(**options).fit_embed(two)
    np.testing.assert_array_equal(once, again)
    order = np.argsort(two.obs["library_id"].to_numpy() == "section_1", kind="stable")
    turned = GeneAutoencoder(**options).fit_embed(two[order].copy())
    np.testing.assert_allclose(turned, once[order], atol=1e-5)
    other = GeneAutoencoder(**options, random_state=1).fit_embed(two)
    assert not np.allclose(other, once, atol=1e-3)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), generator)


def test_rows_in_any_order_and_company_get_the_same_embedding(two):
    once = GeneAutoencoder(**QUICK, centre=False).fit(two)
    turned = two[np.random.default_rng(0).permutation(two.n_obs)].copy()
    again = GeneAutoencoder(**QUICK, centre=False).fit(turned)
    np.testing.assert_allclose(again.embed(two), once.embed(two), atol=1e-5)
    np.testing.assert_allclose(once.embed(two[:7].copy()), once.embed(two)[:7], atol=1e-5)


def test_sparse_batches_give_the_same_model(two, quick):
    sparse = GeneAutoencoder(**QUICK, loading="sparse").fit_embed(two)
    np.testing.assert_allclose(sparse, quick.embed(two), atol=1e-4)


def test_embeddings_under_masks_are_deterministic_and_close(fitted, second):
    averaged = fitted.embed(second, n_masks=8)
    np.testing.assert_array_equal(averaged, fitted.embed(second, n_masks=8))
    shown = fitted.embed(second)
    assert not np.array_equal(averaged, shown)
    assert np.corrcoef(averaged.ravel(), shown.ravel())[0, 1] > 0.8


def test_saved_model_is_the_same_bit_for_bit(quick, two, tmp_path):
    quick.save(tmp_path / "model")
    loaded = GeneAutoencoder.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.embed(two), quick.embed(two))
    pd.testing.assert_frame_equal(loaded.impute(two), quick.impute(two))
    pd.testing.assert_frame_equal(loaded.history, quick.history)
    assert "sections seen: section_1, section_2" in (tmp_path / "model" / "README.md").read_text()


# ------------------------------------------------------------------ bad input


def test_rows_and_genes_without_counts(first):
    spoiled = first.copy()
    keep = sp.diags(np.r_[np.zeros(3), np.ones(first.n_obs - 3)])
    genes = sp.diags(np.r_[np.zeros(5), np.ones(first.n_vars - 5)])
    spoiled.X = spoiled.layers["counts"] = (keep @ first.X @ genes).tocsr()
    with pytest.warns(HistoweaveWarning, match="3 of 225 spots have fewer than 1 counts"):
        model = GeneAutoencoder(**QUICK).fit(spoiled)
    Z = model.embed(spoiled)
    assert np.isnan(Z[:3]).all()
    assert np.isfinite(Z[3:]).all()
    assert not set(model.genes) & set(first.var_names[:5])
    assert model.impute(spoiled).iloc[:3].isna().all(axis=None)


def with_counts(adata, change):
    out = adata.copy()
    counts = adata.X.astype(np.float32).copy()
    change(counts)
    out.X = out.layers["counts"] = counts
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: np.log1p(m.data, out=m.data), "log-transformed"),
        (lambda m: m.data.__setitem__(0, np.nan), "NaN"),
        (lambda m: m.data.__setitem__(0, -1), "negative"),
        (lambda m: m.data.fill(0), "counts"),
    ],
)
def test_what_is_not_counts_is_refused(first, change, message):
    with pytest.raises(ValueError, match=message):
        GeneAutoencoder(**QUICK).fit(with_counts(first, change))


def test_duplicate_genes_and_unknown_programmes_are_refused(first):
    twice = first.copy()
    twice.var_names = ["GENE"] * 2 + list(first.var_names[2:])
    with pytest.raises(ValueError, match="1 gene names repeat"):
        GeneAutoencoder(**QUICK).fit(twice)
    with pytest.raises(ValueError, match="None of the 1 programmes"):
        GeneAutoencoder(**QUICK, masking="programme", programmes={"x": ["EGFR", "KRT8", "ERBB2"]}).fit(first)
    with pytest.raises(KeyError, match="'EGFR' are not among the model's"):
        GeneAutoencoder(**QUICK).fit(first).impute(first, genes=["EGFR"])


def test_failed_fit_leaves_no_half_fitted_model(first):
    model = GeneAutoencoder(**QUICK)
    with pytest.raises(RuntimeError, match="not fitted"):
        model.embed(first)
    model.fit(first)
    with pytest.raises(ValueError, match="log-transformed"):
        model.fit(with_counts(first, lambda m: np.log1p(m.data, out=m.data)))
    with pytest.raises(RuntimeError, match="not fitted"):
        model.embed(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "poisson"}, "`likelihood` must be one of 'mse', 'nb', 'zinb'"),
        ({"masking": "blocks"}, "`masking` must be one of"),
        ({"mask_rate": 1.0}, "`mask_rate` must be"),
        ({"widths": ()}, "`widths` is empty"),
        ({"programmes": {"a": ["b"]}}, "not used with `masking='random'`"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GeneAutoencoder(**options)
