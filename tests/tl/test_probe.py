"""Probes of embeddings: against scikit-learn on hand-made folds, beside nulls, without a look at test labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

import histoweave as hw
from histoweave._record import record
from histoweave._validate import HistoweaveWarning


@pytest.fixture
def table():
    """160 rows of four donors, three regions; one embedding that knows them, one that knows nothing."""
    rng = np.random.default_rng(0)
    region = rng.integers(0, 3, 160)
    obs = pd.DataFrame({"library_id": np.repeat(list("stuv"), 40), "region": np.array(["a", "b", "c"])[region]})
    obs["donor"] = obs["library_id"]
    obs["fold"] = np.repeat([0, 1], 80)
    obs.index = obs.index.astype(str)
    adata = AnnData(obs=obs)
    adata.obsm["X_image"] = (rng.normal(size=(160, 5)) + 1.2 * np.eye(3, 5)[region]).astype("float32")
    adata.obsm["noise"] = rng.normal(size=(160, 5))
    return adata


def test_linear_probe_is_scikit_learns_at_the_chosen_strength(table):
    found = hw.tl.probe(table, probes=["linear"], nulls=False)
    assert found["fold"].tolist() == ["0", "1"]
    assert found["setting"].isin([0.003, 0.03, 0.3, 3.0]).all()
    fold, X, y = table.obs["fold"].to_numpy(), table.obsm["X_image"].astype(float), table.obs["region"].to_numpy()
    for row in found.itertuples():
        test = fold == int(row.fold)
        scaler = StandardScaler().fit(X[~test])
        peer = LogisticRegression(C=row.setting, class_weight="balanced", max_iter=1000)
        guess = peer.fit(scaler.transform(X[~test]), y[~test]).predict(scaler.transform(X[test]))
        assert row.macro_f1 == pytest.approx(f1_score(y[test], guess, average="macro"))
        assert row.n_train == 80


def test_signal_beats_the_nulls_and_noise_does_not(table):
    rng = np.random.default_rng(1)
    bright = (40 + 60 * pd.factorize(table.obs["region"], sort=True)[0])[:, None, None, None]
    table.obsm["crops"] = np.clip(rng.normal(bright, 20, (160, 8, 8, 3)), 0, 255).astype("uint8")
    found = hw.tl.probe(table, keys=["X_image", "noise"])
    arms = ["majority", *(f"{key}, {p}" for key in ("X_image", "noise", "random pixels") for p in ("linear", "knn"))]
    assert found["arm"].tolist() == arms * 2
    means = found.groupby("arm")["balanced_accuracy"].mean()
    assert means["majority"] == pytest.approx(1 / 3)
    assert means["X_image, linear"] > 0.6
    assert means["X_image, knn"] > 0.55
    assert abs(means["noise, linear"] - 1 / 3) < 0.12
    assert means["random pixels, linear"] > 0.9  # here brightness says it all, and the null shows that
    assert set(found.loc[found["kind"] == "null", "embedding"]) == {"", "random pixels"}
    assert {t.get_text() for t in hw.pl.scores(found).get_yticklabels()} == set(arms)


def test_random_genes_come_from_counts_and_only_from_counts(table):
    rng = np.random.default_rng(2)
    counts = rng.poisson(2 + 6 * np.eye(3, 12)[pd.factorize(table.obs["region"], sort=True)[0]])
    full = AnnData(counts.astype("float32"), obs=table.obs, obsm=dict(table.obsm))
    found = hw.tl.probe(full, probes=["linear"]).groupby("arm")["macro_f1"].mean()
    assert found["random genes, linear"] > 0.9
    full.X = np.log1p(full.X)
    assert "random genes, linear" not in set(hw.tl.probe(full, probes=["linear"])["arm"])


def test_labels_of_test_rows_play_no_part(table):
    first = hw.tl.probe(table, nulls=False).query("fold == '1'")
    test = (table.obs["fold"] == 1).to_numpy()
    labels = table.obs["region"].to_numpy(dtype=object).copy()
    labels[test] = np.random.default_rng(3).permutation(labels[test])
    table.obs["region"] = labels
    again = hw.tl.probe(table, nulls=False).query("fold == '1'")
    assert again["setting"].tolist() == first["setting"].tolist()
    assert again["macro_f1"].max() < 0.5 < first["macro_f1"].min()


def test_fractions_are_drawn_class_by_class_and_repeat(table):
    found = hw.tl.probe(table, fractions=(0.05, 1.0), n_repeats=2, probes=["knn"], nulls=False)
    assert found.groupby("fraction").size().to_dict() == {0.05: 4, 1.0: 2}
    known = table.obs[table.obs["fold"] == 1]["region"].value_counts()
    few = found.query("fold == '0' and fraction == 0.05")
    assert (few["n_train"] == np.maximum(1, (0.05 * known).round()).sum()).all()
    assert few["log_loss"].nunique() == 2  # other rows in the other draw
    pd.testing.assert_frame_equal(
        found, hw.tl.probe(table, fractions=(0.05, 1.0), n_repeats=2, probes=["knn"], nulls=False)
    )


def test_embeddings_are_compared_on_common_rows(table):
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(160) >= 10)
    table.obsm["noise"][10:20] = np.nan
    with pytest.warns(HistoweaveWarning, match="10 of 150 labelled rows lack one of 'X_image', 'noise'"):
        found = hw.tl.probe(table, keys=["X_image", "noise"], probes=["knn"])
    assert set(found.query("fold == '0'")["n"]) == {60}
    assert set(found.query("fold == '1'")["n_train"]) == {60}
    table.obsm["noise"][:] = np.nan
    table.obsm["noise"][:5] = 1
    with pytest.raises(ValueError, match=r"No labelled row has all embeddings.*'noise'\]` 0"):
        hw.tl.probe(table, keys=["X_image", "noise"])


def test_what_the_encoder_had_seen_is_told(table):
    found = hw.tl.probe(table, keys=["X_image", "noise"], probes=["knn"], nulls=False)
    assert found["transductive"].isna().all()
    record(table, "X_image", "tl.image_encoder", {}, sections_seen=["u", "v"])
    found = hw.tl.probe(table, probes=["knn"], nulls=False)
    assert found["transductive"].tolist() == [False, True]


def test_unseen_region_is_stated_and_an_error(table):
    table.obs["region"] = np.where((table.obs["fold"] == 0) & (table.obs["region"] == "a"), "z", table.obs["region"])
    with pytest.warns(HistoweaveWarning, match="Fold '0': no training row has 'z'"):
        found = hw.tl.probe(table, probes=["linear"], nulls=False)
    assert found["unseen_classes"].tolist() == ["z", "a"]
    assert found["accuracy"].max() < 1 - (table.obs["region"][:80] == "z").mean() + 1e-9


def test_leaks_and_bad_input(table):
    table.obs["half"] = np.arange(160) % 2
    with pytest.raises(ValueError, match="The folds leak: .*allow_leakage=True"):
        hw.tl.probe(table, fold_key="half")
    found = hw.tl.probe(table, fold_key="half", allow_leakage=True, probes=["knn"], nulls=False)
    assert (found["leakage"] != "").all()
    with pytest.raises(KeyError, match="keys='X_gene'.*hw.tl.gene_encoder"):
        hw.tl.probe(table, keys="X_gene")
    with pytest.raises(ValueError, match="`probes` must be one of"):
        hw.tl.probe(table, probes=["tree"])
    with pytest.raises(ValueError, match="`fractions` must be > 0"):
        hw.tl.probe(table, fractions=(0.0,))
    del table.obs["fold"]
    with pytest.raises(KeyError, match="hw.pp.split"):
        hw.tl.probe(table)
    del table.obsm["X_image"]
    with pytest.raises(KeyError, match="No embedding in `adata.obsm`"):
        hw.tl.probe(table)


def test_an_encoder_that_learned_from_the_labels_leaks(table):
    record(table, "X_image", "tl.image_encoder", {}, sections_seen=["s", "t"], labels_seen=["s", "t"])
    table.obsm["X_image_context"] = table.obsm["X_image"]
    for keys in ("X_image", ["noise", "X_image_context"]):
        with pytest.raises(ValueError, match="trained with labels of 's', 't', which is tested on.*compare_image"):
            hw.tl.probe(table, keys=keys)
    assert (hw.tl.probe(table, keys="noise", nulls=False)["leakage"] == "").all()
    found = hw.tl.probe(table, keys="X_image", nulls=False, allow_leakage=True)
    assert found["leakage"].str.contains("trained with labels").all()
    table.obs["region"] = table.obs["region"].where(table.obs["library_id"].isin(["u", "v"]))
    table.obs["fold"] = table.obs["library_id"]
    assert (hw.tl.probe(table, keys="X_image", nulls=False)["leakage"] == "").all()  # no such row is scored
