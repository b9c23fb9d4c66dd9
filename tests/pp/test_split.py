"""Splits: what leaks is refused, buffers hold, groups stay whole, classes are balanced."""

from __future__ import annotations

import warnings
from itertools import combinations
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.spatial.distance import cdist

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.pp._graph import ring_graphs
from histoweave.pp._split import iter_folds, leakage


def section(name: str = "s1", donor: str = "d1", n: int = 20, pitch_px: float = 50.0) -> AnnData:
    """A square array of n x n spots, 100 um apart, with four regions as quadrants."""
    row, col = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    region = np.array(["a", "b", "c", "d"])[2 * (row >= n // 2) + (col >= n // 2)]
    obs = pd.DataFrame(
        {"library_id": name, "donor": donor, "region": region, "array_row": row, "array_col": col},
        index=[f"{name}-{i}" for i in range(n * n)],
    )
    meta = {"array_grid": "square", "array_pitch_um": 100.0}
    factors = {"microns_per_pixel": 100.0 / pitch_px}
    return AnnData(
        obs=obs,
        obsm={"spatial": np.stack([col, row], axis=1) * pitch_px},
        uns={"spatial": {name: {"metadata": meta, "scalefactors": factors}}},
    )


def cohort(*sections: AnnData) -> AnnData:
    return ad.concat(sections, uns_merge="unique")


def quiet(table: AnnData, **kwargs: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HistoweaveWarning)
        hw.pp.split(table, **kwargs)


def test_blocks_keep_the_buffer_and_test_every_row_once() -> None:
    table = section(n=30)
    quiet(table, by="blocks", n_folds=4)
    folds = list(iter_folds(table))
    assert np.sum([f.test for f in folds], axis=0).tolist() == [1] * table.n_obs
    buffer = table.uns["histoweave"]["fold"]["buffer_px"]["s1"]
    assert buffer == pytest.approx(3 * 50 + 2 * 50)  # no crops recorded: the widest default crop, and two rings
    xy = table.obsm["spatial"]
    for fold in folds:
        assert fold.transductive
        gap = cdist(xy[fold.train], xy[fold.test])
        assert gap.min() > buffer
        dropped = ~fold.train & ~fold.test
        assert cdist(xy[dropped], xy[fold.test]).min(axis=1).max() <= buffer * (1 + 1e-6)
    assert leakage(table) is None


def test_recorded_crops_widen_the_buffer_and_a_narrow_one_is_refused() -> None:
    table = section(n=30)
    table.uns["histoweave"] = {
        "crops": {"function": "pp.crops", "params": {"size_um": 300.0}, "size_px": {"s1": 150.0}}
    }
    quiet(table, by="blocks", n_folds=3)
    assert table.uns["histoweave"]["fold"]["buffer_px"]["s1"] == pytest.approx(300 / 2 + 2 * 50)
    before = table.obs["fold"].copy()
    with pytest.raises(ValueError, match=r"leaks.*reach 175 px"):
        hw.pp.split(table, by="blocks", n_folds=3, buffer_um=200)
    pd.testing.assert_series_equal(table.obs["fold"], before)
    with pytest.warns(HistoweaveWarning, match="leaks, as asked for"):
        hw.pp.split(table, by="blocks", n_folds=3, buffer_um=200, allow_leakage=True)
    assert "175 px" in table.uns["histoweave"]["fold"]["leakage"]


def test_blocks_are_squares_of_the_size_asked_for() -> None:
    table = section(n=20)
    quiet(table, by="blocks", n_folds=None, block_um=1000)
    sizes = table.obs["fold"].value_counts()
    assert len(sizes) == 4
    assert set(sizes) == {100}
    for _, rows in table.obs.groupby("fold", observed=True):
        assert np.ptp(rows["array_row"]) == np.ptp(rows["array_col"]) == 9


def test_classes_are_dealt_evenly() -> None:
    table = section(n=40)
    stripes = np.array(list("wxyz"))[(table.obs["array_col"] // 2) % 4]
    table.obs["region"] = stripes
    quiet(table, by="blocks", n_folds=4, block_um=500)
    counts = pd.crosstab(table.obs["fold"], table.obs["region"])
    assert counts.to_numpy().min() > 0.8 * counts.to_numpy().mean()
    assert table.uns["histoweave"]["fold"]["class_counts"]["0"]["w"] == counts.loc["0", "w"]


def test_donors_stay_whole() -> None:
    table = cohort(*(section(f"{d}{i}", d, n=6) for d in "ABCDE" for i in range(2)))
    hw.pp.split(table, by="donor", n_folds=3)
    assert (table.obs.groupby("donor", observed=True)["fold"].nunique() == 1).all()
    assert table.obs["fold"].nunique() == 3
    for fold in iter_folds(table):
        assert not fold.transductive
        assert (fold.train ^ fold.test).all()
    hw.pp.split(table, by="donor", n_folds=None)
    assert list(table.obs["fold"].cat.categories) == list("ABCDE")
    with pytest.raises(ValueError, match=r"5 donors .* cannot be dealt to 6 folds"):
        hw.pp.split(table, by="donor", n_folds=6)


def test_serial_sections_are_refused() -> None:
    table = cohort(section("A1", "A", 12), section("A2", "A", 12), section("B1", "B", 12))
    for by in ("library_id", "blocks"):
        with pytest.raises(ValueError, match=r"one donor \('A'\)"):
            hw.pp.split(table, by=by, n_folds=3)
    assert "fold" not in table.obs
    assert not table.uns.get("histoweave")
    table.obs["fold"] = table.obs["library_id"].astype(str)
    assert "donor" in leakage(table)
    table.obs.loc[table.obs["library_id"] == "A2", "fold"] = None
    assert leakage(table) is None


def test_random_spots_are_refused_on_tissue_only() -> None:
    table = section()
    with pytest.raises(ValueError, match=r"leaks: in section 's1' training rows lie 50 px"):
        hw.pp.split(table, by="spots")
    with pytest.warns(HistoweaveWarning, match="leaks"):
        hw.pp.split(table, by="spots", allow_leakage=True)
    del table.obs["donor"]
    tiles = AnnData(obs=table.obs[["region"]])  # unrelated images: no coordinates, no sections
    hw.pp.split(tiles, by="spots", n_folds=5)
    counts = pd.crosstab(tiles.obs["fold"], tiles.obs["region"])
    assert np.ptp(counts.to_numpy()) <= 1


def test_users_own_folds() -> None:
    table = section(n=10)
    own = np.where(table.obs["array_col"] < 3, 0.0, np.where(table.obs["array_col"] > 6, 1.0, np.nan))
    table.obs["fold"] = own
    folds = {f.name: f for f in iter_folds(table)}
    assert list(folds) == ["0", "1"]
    assert folds["0"].test.sum() == 30
    assert (folds["0"].train == (own == 1)).all()
    assert leakage(table) is None  # four columns of no fold lie between them
    table.obs["fold"] = np.where(np.isnan(own), -1, own).astype(int)
    assert leakage(table) is None
    table.obs["fold"] = (table.obs["array_col"] < 5).astype(int)
    assert "px from test rows" in leakage(table)
    table.obs["fold"] = 0
    with pytest.raises(ValueError, match="2 folds or more"):
        list(iter_folds(table))
    with pytest.raises(KeyError, match=r"hw\.pp\.split"):
        list(iter_folds(table, fold_key="absent"))


def test_absent_classes_are_stated() -> None:
    table = cohort(*(section(d, d, 6) for d in "ABC"))
    table.obs["region"] = np.where((table.obs["donor"] == "A") & (table.obs["region"] == "a"), "rare", "b")
    with pytest.warns(HistoweaveWarning, match=r"fold 'A': 'rare'"):
        hw.pp.split(table, by="donor", n_folds=None)
    record = table.uns["histoweave"]["fold"]
    assert list(record["absent_in_training"]) == ["A"]


def test_without_labels_donors_or_scale() -> None:
    table = section(n=20)
    table.obs["region"] = pd.Series(None, index=table.obs_names, dtype=object)
    table.uns["spatial"]["s1"] = {"metadata": {}, "scalefactors": {}}
    quiet(table, by="blocks", n_folds=3)
    assert table.obs["fold"].nunique() == 3
    with pytest.raises(ValueError, match="um_per_px"):
        hw.pp.split(table, by="blocks", block_um=500)
    quiet(table, by="blocks", block_um=500, um_per_px=2.0, n_folds=3)
    table.obs["donor"] = None
    with pytest.raises(ValueError, match="missing for 400 rows"):
        hw.pp.split(table, by="donor")
    del table.obs["donor"], table.obs["region"]
    with pytest.raises(KeyError, match="by='library_id'"):
        hw.pp.split(table, by="donor")
    with pytest.raises(ValueError, match=r"1 sections .*blocks"):
        hw.pp.split(table, by="library_id")
    with pytest.raises(KeyError, match="labels_key"):
        hw.pp.split(table, by="blocks", labels_key="typo")
    with pytest.raises(ValueError, match="`by` must be one of"):
        hw.pp.split(table, by="random")


def test_buffer_that_leaves_nothing_says_so() -> None:
    table = section(n=8)
    with pytest.raises(ValueError, match="nothing to train on"):
        hw.pp.split(table, by="blocks", n_folds=2, buffer_um=5000)
    with pytest.raises(ValueError, match=r"blocks .* cannot be dealt .* Smaller blocks"):
        hw.pp.split(table, by="blocks", n_folds=5, block_um=10_000)


def test_coordinates_that_are_missing_are_named_where_they_matter() -> None:
    table = cohort(section("A1", "A", 8), section("B1", "B", 8))
    table.obsm["spatial"] = table.obsm["spatial"].astype(float)
    table.obsm["spatial"][5] = np.nan
    hw.pp.split(table, by="donor", n_folds=2)  # no distance is needed
    with pytest.raises(ValueError, match="1 rows have NaN"):
        hw.pp.split(table, by="blocks", n_folds=2)
    with pytest.raises(KeyError, match="spatial_key"):
        hw.pp.split(table, by="blocks", n_folds=2, spatial_key="xy")


def test_seed_and_file_round_trip(tmp_path: Path) -> None:
    table = cohort(*(section(f"{d} {i}", f"{d}{i}", n=12) for d in "AB" for i in range(3)))
    quiet(table, by="blocks", n_folds=3, random_state=1)
    again = table.copy()
    quiet(again, by="blocks", n_folds=3, random_state=1)
    assert (again.obs["fold"] == table.obs["fold"]).all()
    table.write_h5ad(tmp_path / "t.h5ad")
    back = ad.read_h5ad(tmp_path / "t.h5ad")
    for one, two in zip(iter_folds(table), iter_folds(back), strict=True):
        np.testing.assert_array_equal(one.train, two.train)
    assert not all(f.train.sum() + f.test.sum() == table.n_obs for f in iter_folds(back))


def test_leaking_design_inflates_the_score() -> None:
    """Features that only carry the position: a leaking split rewards them, blocks do not."""
    from sklearn.neighbors import KNeighborsClassifier

    table = section(n=30)
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 3, size=(10, 10))  # labels in patches of 3 x 3 spots, without any rule
    labels = patches[table.obs["array_row"] // 3, table.obs["array_col"] // 3]
    table.obs["region"] = labels.astype(str)
    scores = {}
    for by in ("spots", "blocks"):
        quiet(table, by=by, n_folds=4, allow_leakage=True)
        hits = [
            KNeighborsClassifier(3).fit(table.obsm["spatial"][f.train], labels[f.train])
            .score(table.obsm["spatial"][f.test], labels[f.test])
            for f in iter_folds(table)
        ]  # fmt: skip
        scores[by] = np.mean(hits)
    assert scores["spots"] > 0.6
    assert scores["blocks"] < 0.45


@pytest.mark.real_data
def test_her2st_a1_blocks(shared_data: Path) -> None:
    path = next(shared_data.glob("her2st/**/A1_selection.tsv"))
    spots = pd.read_csv(path, sep="\t")
    xy = spots[["pixel_x", "pixel_y"]].to_numpy() * 2000 / 6954
    obs = pd.DataFrame({"library_id": "A1", "array_row": spots["y"].to_numpy(), "array_col": spots["x"].to_numpy()})
    obs.index = [f"A1-{i}" for i in range(len(obs))]
    meta = {"array_grid": "square", "array_pitch_um": 200.0}
    uns = {"spatial": {"A1": {"metadata": meta, "scalefactors": {}}}}
    table = AnnData(obs=obs, obsm={"spatial": xy}, uns=uns)
    quiet(table, by="blocks", n_folds=3)
    folds = list(iter_folds(table))
    assert all(f.train.sum() > 0.15 * table.n_obs for f in folds)
    for one, two in combinations(folds, 2):
        assert not (one.test & two.test).any()


def test_rows_at_one_place_hide_nothing() -> None:
    table = section(n=10)
    twice = ad.concat([table, table], index_unique="-", uns_merge="unique")
    del twice.obs["array_row"], twice.obs["array_col"]
    with pytest.raises(ValueError, match="training rows lie 0 px from test rows"):
        hw.pp.split(twice, by="spots", n_folds=4)
    twice.obsm["spatial"][:] = 7.0  # all at one
    with pytest.raises(ValueError, match="training rows lie 0 px from test rows"):
        hw.pp.split(twice, by="spots", n_folds=4, n_rings=0)


@pytest.mark.parametrize("n_rings", [1, 2])
def test_without_an_array_no_test_row_is_among_the_neighbours_of_training_rows(n_rings: int) -> None:
    xy = np.random.default_rng(0).uniform(0, 3000, (900, 2))
    table = AnnData(obs=pd.DataFrame({"library_id": "s"}, index=[str(i) for i in range(900)]), obsm={"spatial": xy})
    table.obsm["X_gene"] = np.random.default_rng(1).normal(size=(900, 3)).astype(np.float32)
    hw.pp.spatial_context(table, keys="X_gene", n_rings=n_rings)
    nearest = np.median(np.sort(cdist(xy, xy), axis=1)[:, 1])
    with pytest.raises(ValueError, match="the neighbourhood rings reach"):
        hw.pp.split(table, by="blocks", n_folds=3, n_rings=n_rings, buffer_um=(n_rings + 0.5) * nearest, um_per_px=1.0)
    quiet(table, by="blocks", n_folds=3, n_rings=n_rings)
    near = sum(ring_graphs(table, n_rings=n_rings))
    for fold in iter_folds(table):
        assert not (near[fold.train] @ fold.test.astype(float)).any()
        assert fold.train.sum() > 200


@pytest.mark.parametrize("name", ["-1", "None", "nan", "2.0"])
def test_donors_whose_names_mean_no_fold(name: str) -> None:
    table = cohort(*(section(f"s{i}", donor, n=6) for i, donor in enumerate(["a", "b", name])))
    if name == "2.0":
        quiet(table, by="donor", n_folds=None)
        assert [fold.name for fold in iter_folds(table)] == ["2.0", "a", "b"]
        return
    with pytest.raises(ValueError, match=f"donors '{name}' would name folds.*rename them"):
        hw.pp.split(table, by="donor", n_folds=None)
    quiet(table, by="donor", n_folds=3)
    assert len(list(iter_folds(table))) == 3


def test_scales_of_sections_that_are_not_there() -> None:
    table = cohort(section("s1", "a"), section("s2", "b"))
    options = {"by": "blocks", "n_folds": 4, "block_um": 500, "buffer_um": 300, "n_rings": 1}
    with pytest.raises(KeyError, match="`um_per_px` names 's3', but the sections are 's1', 's2'"):
        hw.pp.split(table, um_per_px={"s1": 2.0, "s3": 2.0}, **options)
    quiet(table, um_per_px={"s1": 2.0, "s2": 2.0, "elsewhere": 1.0}, **options)
