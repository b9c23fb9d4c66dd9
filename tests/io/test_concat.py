"""Joining sections: what is kept, what is said, against the sections that went in."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import histoweave as hw
from histoweave._validate import HistoweaveWarning


def make(lib: str, genes: list[str], *, n: int = 4, seed: int = 0, lazy: bool = False) -> AnnData:
    generator = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"library_id": pd.Categorical([lib] * n), "in_tissue": True}, index=[f"AAC{i}-1" for i in range(n)]
    )
    counts = sp.csr_matrix(generator.poisson(2, (n, len(genes))).astype(np.float32))
    adata = AnnData(counts, obs=obs, var=pd.DataFrame(index=genes), layers={"counts": counts.copy()})
    adata.var["gene_ids"] = [f"ENS_{g}" for g in genes]
    adata.obsm["spatial"] = generator.uniform(0, 100, (n, 2))
    crops = generator.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    adata.obsm["crops"] = da.from_array(crops, chunks=(2, 4, 4, 3)) if lazy else crops
    adata.obsp["spatial_connectivities"] = sp.csr_matrix(np.ones((n, n)) - np.eye(n))
    adata.uns["spatial"] = {lib: {"images": {}, "scalefactors": {"spot_diameter_fullres": 9.0 + seed}, "metadata": {}}}
    return adata


@pytest.fixture
def pair() -> tuple[AnnData, AnnData]:
    return make("P1", ["A", "B", "C"]), make("P2", ["C", "B", "D"], n=3, seed=1)


def test_inner(pair):
    with pytest.warns(HistoweaveWarning, match="2 of 4 genes are not in all sections and were left out; 2 remain"):
        both = hw.io.concat(pair)
    assert list(both.obs_names) == [f"P1_AAC{i}-1" for i in range(4)] + [f"P2_AAC{i}-1" for i in range(3)]
    assert both.obs["library_id"].tolist() == ["P1"] * 4 + ["P2"] * 3
    for lib, one in zip(("P1", "P2"), pair, strict=True):
        rows = both[both.obs["library_id"] == lib]
        np.testing.assert_array_equal(rows[:, ["B", "C"]].X.toarray(), one[:, ["B", "C"]].X.toarray())
        np.testing.assert_array_equal(rows[:, "B"].layers["counts"].toarray(), one[:, "B"].layers["counts"].toarray())
        np.testing.assert_array_equal(rows.obsm["crops"], one.obsm["crops"])
        np.testing.assert_array_equal(rows.obsm["spatial"], one.obsm["spatial"])
        assert both.uns["spatial"][lib] == one.uns["spatial"][lib]
    assert both.var["gene_ids"].to_dict() == {"C": "ENS_C", "B": "ENS_B"}
    graph = both.obsp["spatial_connectivities"].toarray()
    assert graph[:4, 4:].sum() == 0
    np.testing.assert_array_equal(graph[:4, :4], pair[0].obsp["spatial_connectivities"].toarray())
    assert not any(c.startswith("measured_") for c in both.var)


def test_sections_are_not_changed(pair):
    before = [one.copy() for one in pair]
    with pytest.warns(HistoweaveWarning):
        both = hw.io.concat(pair)
    both.obsm["crops"][:] = 0
    both.X[:] = 0
    for one, old in zip(pair, before, strict=True):
        pd.testing.assert_frame_equal(one.obs, old.obs)
        np.testing.assert_array_equal(one.obsm["crops"], old.obsm["crops"])
        np.testing.assert_array_equal(one.X.toarray(), old.X.toarray())


def test_outer_says_what_was_measured(pair):
    with pytest.warns(HistoweaveWarning, match="2 of 4 genes were not measured in all sections: they are 0 there"):
        both = hw.io.concat(pair, join="outer")
    assert set(both.var_names) == {"A", "B", "C", "D"}
    assert both.var["measured_P1"].to_dict() == {"A": True, "B": True, "C": True, "D": False}
    assert both.var["measured_P2"].to_dict() == {"A": False, "B": True, "C": True, "D": True}
    assert both[both.obs["library_id"] == "P2", "A"].X.sum() == 0
    assert both.var["gene_ids"].to_dict() == {g: f"ENS_{g}" for g in "ABCD"}
    third = make("P3", ["A", "D"])
    with pytest.warns(HistoweaveWarning):
        three = hw.io.concat([both, third], join="outer")
    assert three.var["measured_P1"].to_dict() == {"A": True, "B": True, "C": True, "D": False}
    assert three.var["measured_P3"].to_dict() == {"A": True, "B": False, "C": False, "D": True}


def test_section_without_genes(pair):
    bare = AnnData(obs=pair[1].obs.copy(), obsm={"spatial": pair[1].obsm["spatial"], "crops": pair[1].obsm["crops"]})
    with pytest.raises(ValueError, match=r"share no gene \('P1': 'A', 'B', 'C'; 'P2': none\).*join='outer'"):
        hw.io.concat([pair[0], bare])
    with pytest.warns(HistoweaveWarning):
        both = hw.io.concat([pair[0], bare], join="outer")
    assert both.shape == (7, 3)
    assert not both.var["measured_P2"].any()
    np.testing.assert_array_equal(both[:4].layers["counts"].toarray(), pair[0].layers["counts"].toarray())
    alone = hw.io.concat({"a": bare, "b": bare})
    assert alone.shape == (6, 0)


def test_no_shared_gene():
    with pytest.raises(ValueError, match=r"share no gene \('P1': 'A'; 'P2': 'B'\)"):
        hw.io.concat([make("P1", ["A"]), make("P2", ["B"])])


@pytest.mark.parametrize("lazy", [(True, True), (True, False)])
def test_lazy_crops_stay_lazy(lazy):
    one, two = (make(f"P{i}", ["A"], seed=i, lazy=flag) for i, flag in enumerate(lazy))
    both = hw.io.concat([one, two])
    assert hasattr(both.obsm["crops"], "dask")
    np.testing.assert_array_equal(
        both.obsm["crops"].compute(),
        np.concatenate([np.asarray(one.obsm["crops"]), np.asarray(two.obsm["crops"])]),
    )


def test_missing_and_unlike_obsm():
    one, two = make("P1", ["A"]), make("P2", ["A"], seed=1)
    one.obsm["X_image"] = np.ones((4, 3), np.float32)
    one.obsm["region_probability"] = pd.DataFrame(np.full((4, 1), 1.0), index=one.obs_names, columns=["x"])
    two.obsm["region_probability"] = pd.DataFrame(np.full((4, 1), 0.5), index=two.obs_names, columns=["y"])
    two.obsm["crops"] = two.obsm["crops"][:, :2, :2]
    with pytest.warns(HistoweaveWarning, match=r"`obsm` 'crops \(\(4, 4, 3\), \(2, 2, 3\)\)' was left out"):
        both = hw.io.concat([one, two])
    assert "crops" not in both.obsm
    assert both.obsm["X_image"].dtype == np.float32
    assert np.isnan(both.obsm["X_image"][4:]).all()
    assert (both.obsm["X_image"][:4] == 1).all()
    assert list(both.obsm["region_probability"].columns) == ["x", "y"]
    del two.obsm["crops"]
    with pytest.warns(HistoweaveWarning, match=r"crops \(\(4, 4, 3\), missing\)"):
        hw.io.concat([one, two])


def test_layers_and_graphs_that_only_some_have(pair):
    one, two = make("P1", ["A"]), make("P2", ["A"], seed=1)
    one.layers["scaled"] = one.X.copy()
    del two.obsp["spatial_connectivities"]
    with pytest.warns(HistoweaveWarning) as caught:
        both = hw.io.concat([one, two])
    assert {"`layers` 'scaled'", "`obsp` 'spatial_connectivities'"} == {
        str(w.message).split(" was left out")[0] for w in caught
    }
    assert set(both.layers) == {"counts"}


def test_labels_and_columns_of_some_sections(tmp_path):
    one, two = make("P1", ["A"]), make("P2", ["A"], seed=1)
    one.obs["region"] = pd.Categorical(["tumor", None, "fat", "fat"])
    two.obs["region"] = pd.Categorical(["stroma", "tumor", None, "stroma"])
    one.obs["donor"] = pd.Categorical(["D1"] * 4)
    one.obs["flag"] = [True, False, True, False]
    two.obs["n"] = [1, 2, 3, 4]
    both = hw.io.concat([one, two])
    assert set(both.obs["region"].cat.categories) == {"tumor", "fat", "stroma"}
    assert both.obs["region"].astype(object).where(both.obs["region"].notna(), None).tolist() == [
        "tumor",
        None,
        "fat",
        "fat",
        "stroma",
        "tumor",
        None,
        "stroma",
    ]
    assert both.obs["donor"].isna().tolist() == [False] * 4 + [True] * 4
    assert both.obs["in_tissue"].dtype == bool
    assert both.obs["flag"].isna().sum() == 4
    assert both.obs["n"].tolist()[4:] == [1, 2, 3, 4]
    both.write_h5ad(tmp_path / "a.h5ad")
    import anndata as ad

    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(back.obs, both.obs)


def test_joining_twice_keeps_names(pair):
    three = hw.io.concat([hw.io.concat([make("P1", ["A"]), make("P2", ["A"])]), make("P3", ["A"])])
    assert list(dict.fromkeys(n.split("_")[0] for n in three.obs_names)) == ["P1", "P2", "P3"]
    assert three.obs_names.str.count("_").max() == 1


def test_names_from_a_mapping(pair):
    one, two = make("same", ["A"]), make("same", ["A"], seed=1)
    with pytest.raises(ValueError, match=r"Section 'same' occurs in more than one"):
        hw.io.concat([one, two])
    both = hw.io.concat({"P1": one, "P2": two})
    assert both.obs["library_id"].unique().tolist() == ["P1", "P2"]
    assert both.uns["spatial"]["P2"] == two.uns["spatial"]["same"]
    with pytest.raises(ValueError, match=r"holds several sections \('P1', 'P2'\)"):
        hw.io.concat({"all": both})


def test_what_is_kept_by_section_follows_its_new_name():
    ones = [hw.datasets.simulate_section(n_rows=6, n_cols=6, random_state=i) for i in (0, 1)]
    for one, size in zip(ones, (110, 600), strict=True):
        one.uns["histoweave"] = {}
        hw.pp.crops(one, size_um=size, out_px=16)
    (old,) = ones[0].obs["library_id"].unique()
    with pytest.warns(HistoweaveWarning, match="different 'size_um'"):
        both = hw.io.concat({"P1": ones[0], "P2": ones[1]})
    sizes = both.uns["histoweave"]["crops"]["size_px"]
    assert sizes == {"P1": ones[0].uns["histoweave"]["crops"]["size_px"][old],
                     "P2": ones[1].uns["histoweave"]["crops"]["size_px"][old]}  # fmt: skip
    assert sizes["P1"] < sizes["P2"]


def test_flags_kept_as_truth_values_and_as_numbers(tmp_path):
    first, second, third = (make(lib, ["A", "B"], seed=i) for i, lib in enumerate(("P1", "P2", "P3")))
    second.obs["in_tissue"] = 1
    second.obs["crops_available"] = [True, False, True, True]
    del third.obs["in_tissue"]
    both = hw.io.concat([first, second, third])
    assert both.obs["in_tissue"].tolist()[:8] == [1] * 8
    assert both.obs["in_tissue"].isna().sum() == 4
    assert both.obs["crops_available"].tolist() == [True] * 5 + [False] + [True] * 6
    both.write_h5ad(tmp_path / "both.h5ad")
    section = hw.datasets.simulate_section(n_rows=6, n_cols=6)
    other = hw.datasets.simulate_section(n_rows=6, n_cols=6, random_state=1)
    del other.obs["in_tissue"]
    joined = hw.io.concat({"a": section, "b": other})
    hw.pp.crops(joined, out_px=16)
    assert len(joined.obsm["crops"]) == joined.n_obs
    hw.pp.check_alignment(joined)


def test_spatialdata(section):
    ones = [hw.io.read_visium(section(f"{n}/outs", seed=i).path) for i, n in enumerate(("P1", "P2"))]
    both = hw.io.concat(ones)
    assert set(both.images) == {"P1_hires_image", "P1_lowres_image", "P2_hires_image", "P2_lowres_image"}
    assert set(both.shapes) == {"P1", "P2"}
    table = both.tables["table"]
    assert table.uns["spatialdata_attrs"] == {
        "region": ["P1", "P2"],
        "region_key": "library_id",
        "instance_key": "spot_id",
    }
    assert table.n_obs == sum(one.tables["table"].n_obs for one in ones)
    from spatialdata import match_table_to_element

    rows = match_table_to_element(both, "P2", "table")
    assert set(rows.obs["library_id"]) == {"P2"}
    np.testing.assert_array_equal(both.shapes["P2"].get_coordinates(), rows.obsm["spatial"])
    with pytest.raises(TypeError, match="mixes AnnData and SpatialData"):
        hw.io.concat([ones[0], table])
    with pytest.raises(TypeError, match="pass a list"):
        hw.io.concat({"a": ones[0]})


def test_spatialdata_of_another_reader(section):
    import warnings

    from spatialdata_io import visium

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ones = [visium(section(f"{n}/outs", seed=i).path, dataset_id=n) for i, n in enumerate(("P1", "P2"))]
    both = hw.io.concat(ones)
    assert both.tables["table"].uns["spatialdata_attrs"]["region_key"] == "library_id"
    assert set(both.tables["table"].obs["library_id"]) == {"P1", "P2"}


def test_bad_input(pair):
    with pytest.raises(ValueError, match="`sections` is empty"):
        hw.io.concat([])
    with pytest.raises(ValueError, match="`join` must be one of"):
        hw.io.concat(pair, join="left")
    one = make("P1", ["A", "A"])
    with pytest.raises(ValueError, match="repeated gene names"):
        hw.io.concat([one])
