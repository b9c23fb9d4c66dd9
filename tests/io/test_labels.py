"""Labels joined on barcode and array position, against the table they were written from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import histoweave as hw
from histoweave._resolve import section_column
from histoweave._validate import HistoweaveWarning, require_labels


def make(lib: str = "P1", n: int = 6) -> AnnData:
    names = [f"AAC{i}-1" for i in range(n)]
    obs = pd.DataFrame(
        {"library_id": pd.Categorical([lib] * n), "array_row": np.arange(n), "array_col": np.arange(n) * 2},
        index=names,
    )
    return AnnData(
        np.ones((n, 2), dtype=np.float32),
        obs=obs,
        obsm={"spatial": np.column_stack([np.arange(n) * 10.0, np.arange(n) * 5.0])},
    )


LABELS = ["tumor", "stroma", None, "tumor", "fat", "stroma"]


def check(adata: AnnData, expected: list = LABELS, key: str = "region") -> None:
    got = adata.obs[key]
    assert isinstance(got.dtype, pd.CategoricalDtype)
    assert [None if pd.isna(v) else v for v in got] == expected


@pytest.mark.parametrize("form", ["csv", "tsv", "semicolon", "loupe", "gz", "no_suffix_barcodes", "with_index", "bom"])
def test_formats(tmp_path, form):
    adata = make()
    names = [n.removesuffix("-1") if form == "no_suffix_barcodes" else n for n in adata.obs_names]
    frame = pd.DataFrame({"Barcode": names, "Pathologist": LABELS}).sample(frac=1, random_state=0)
    file = tmp_path / {"tsv": "l.tsv", "gz": "l.csv.gz"}.get(form, "Beschriftung ü.csv")
    if form == "with_index":
        frame = frame.set_index("Barcode").rename_axis(None)
    frame.to_csv(
        file,
        sep={"tsv": "\t", "semicolon": ";"}.get(form, ","),
        index=form == "with_index",
        encoding="utf-8-sig" if form == "bom" else "utf-8",
    )
    assert hw.io.read_labels(adata, file) is None
    check(adata)
    record = adata.uns["histoweave"]["region"]
    assert (record["n_labelled"], record["n_unknown"]) == (5, 0)


def test_copy_and_key_leave_the_original(tmp_path):
    adata = make()
    frame = pd.DataFrame({"Barcode": adata.obs_names, "Pathologist": LABELS})
    out = hw.io.read_labels(adata, frame, labels_key="truth", copy=True)
    check(out, key="truth")
    assert "truth" not in adata.obs
    assert not adata.uns


def test_barcodes_as_index_of_a_data_frame():
    adata = make()
    hw.io.read_labels(adata, pd.DataFrame({"region": LABELS}, index=adata.obs_names))
    check(adata)


def test_rows_picked_from_a_larger_table():
    adata = make()
    frame = pd.DataFrame({"barcode": [*adata.obs_names, "AAC0-1"], "layer": [*LABELS, "fat"], "slice": [1] * 6 + [2]})
    hw.io.read_labels(adata, frame[frame["slice"] == 1].drop(columns="slice"))
    check(adata)


def test_spatialdata(section):
    truth = section("P1/outs")
    sdata = hw.io.read_visium(truth.path)
    table = sdata.tables["table"]
    hw.io.read_labels(sdata, pd.DataFrame({"Barcode": table.obs_names[:2], "x1": ["a", "b"]}))
    assert table.obs["region"].tolist()[:2] == ["a", "b"]
    assert table.obs["region"].isna().sum() == table.n_obs - 2


def test_unknown_barcodes_are_counted():
    adata = make()
    frame = pd.DataFrame({"Barcode": [*adata.obs_names, "GGG-1", "TTT-1"], "label": [*LABELS, "tumor", "fat"]})
    with pytest.warns(HistoweaveWarning, match="2 entries of the label file fit no spot"):
        hw.io.read_labels(adata, frame)
    check(adata)
    assert adata.uns["histoweave"]["region"]["n_unknown"] == 2


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (
            pd.DataFrame({"Barcode": ["GG-1"], "label": ["a"]}),
            ValueError,
            r"'GG-1'.*'AAC0-1', 'AAC1-1', 'AAC2-1'",
        ),
        (
            pd.DataFrame({"Barcode": ["AAC0-1", "AAC0-1"], "label": ["a", "b"]}),
            ValueError,
            "'AAC0-1' as 'a', 'b'",
        ),
        (pd.DataFrame({"Barcode": ["AAC0-1", "AAC0"], "label": ["a", "b"]}), ValueError, "different labels"),
        (
            pd.DataFrame({"Barcode": ["AAC0-1"], "one": ["a"], "two": ["b"]}),
            ValueError,
            r"'one', 'two'.*`column=`",
        ),
        (pd.DataFrame({"Barcode": ["AAC0-1"]}), ValueError, "has no label column"),
        (pd.DataFrame({"Barcode": ["AAC0-1"], "label": [""]}), ValueError, "labels no spot"),
        (pd.DataFrame({"who": ["AAC0-1"], "label": ["a"]}), ValueError, "`barcode_column=`"),
    ],
)
def test_bad_tables(frame, error, message):
    adata = make()
    before = adata.copy()
    with pytest.raises(error, match=message):
        hw.io.read_labels(adata, frame)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert not adata.uns


def test_named_columns():
    adata = make()
    frame = pd.DataFrame({"who": adata.obs_names, "one": "x", "two": LABELS})
    hw.io.read_labels(adata, frame, barcode_column="who", column="two")
    check(adata)
    with pytest.raises(KeyError, match=r"`column='three'` is not in the label table; available: 'one', 'two'"):
        hw.io.read_labels(adata, frame, barcode_column="who", column="three")
    with pytest.raises(KeyError, match="barcode_column='nobody'"):
        hw.io.read_labels(adata, frame, barcode_column="nobody", column="two")


def test_same_label_twice_and_labels_that_are_numbers():
    adata = make()
    hw.io.read_labels(adata, pd.DataFrame({"Barcode": ["AAC0-1", "AAC0-1", "AAC1-1"], "cluster": [1, 1, 2]}))
    check(adata, ["1", "2", None, None, None, None])
    hw.io.read_labels(adata, pd.DataFrame({"Barcode": ["AAC0-1", "AAC1-1", "AAC2-1"], "cluster": [1.0, np.nan, 2.0]}))
    check(adata, ["1", None, "2", None, None, None])


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(FileNotFoundError, match=r"none.csv'; its folder holds 'other.csv'"):
        hw.io.read_labels(make(), tmp_path / "none.csv")
    with pytest.raises(ValueError, match="cannot read"):
        hw.io.read_labels(make(), tmp_path / "other.csv")


# -- several sections --------------------------------------------------------------------------------------


@pytest.fixture
def two() -> AnnData:
    return hw.io.concat([make("P1"), make("P2", 4)])


def test_prefix_of_concat_and_library_column(two):
    hw.io.read_labels(two, pd.DataFrame({"Barcode": ["P2_AAC0-1", "P1_AAC3"], "label": ["a", "b"]}))
    assert two.obs["region"].dropna().to_dict() == {"P1_AAC3-1": "b", "P2_AAC0-1": "a"}
    frame = pd.DataFrame({"Barcode": ["AAC0-1", "AAC0-1"], "library_id": ["P1", "P2"], "label": ["c", "d"]})
    hw.io.read_labels(two, frame)
    assert two.obs["region"].dropna().to_dict() == {"P1_AAC0-1": "c", "P2_AAC0-1": "d"}


def test_one_section_at_a_time(two):
    with pytest.raises(ValueError, match=r"1 barcodes occur in several sections .*library_id="):
        hw.io.read_labels(two, pd.DataFrame({"Barcode": ["AAC0-1", "AAC5-1"], "label": ["a", "b"]}))
    hw.io.read_labels(two, pd.DataFrame({"Barcode": ["AAC0-1"], "label": ["a"]}), library_id="P1")
    hw.io.read_labels(two, pd.DataFrame({"Barcode": ["AAC0-1"], "label": ["b"]}), library_id="P2")
    assert two.obs["region"].dropna().to_dict() == {"P1_AAC0-1": "a", "P2_AAC0-1": "b"}
    with pytest.raises(ValueError, match="occur in several sections"):
        hw.io.read_labels(two, pd.DataFrame({"Barcode": ["AAC0-1"], "label": ["a"]}))
    with pytest.raises(KeyError, match=r"library_id='P9'.*'P1', 'P2'"):
        hw.io.read_labels(two, pd.DataFrame({"Barcode": ["AAC0-1"], "label": ["b"]}), library_id="P9")


# -- array positions and polygons --------------------------------------------------------------------------


def test_array_positions(tmp_path):
    adata = make()
    frame = pd.DataFrame(
        {
            "Row.names": "1x1",
            "x": adata.obs["array_col"] + 0.04,
            "y": adata.obs["array_row"] - 0.04,
            "pixel_x": 3.0,
            "pixel_y": 4.0,
            "label": LABELS,
        }
    )
    frame.to_csv(tmp_path / "l.tsv", sep="\t", index=False)
    hw.io.read_labels(adata, tmp_path / "l.tsv")
    check(adata)
    one_hot = pd.DataFrame(
        {f"{2 * i}_{i}": [int(v == "tumor"), int(v == "stroma"), int(v == "fat")] for i, v in enumerate(LABELS)},
        index=["tumor", "stroma", "fat"],
    )
    one_hot.to_csv(tmp_path / "h.tsv", sep="\t")
    other = make()
    hw.io.read_labels(other, tmp_path / "h.tsv")
    check(other)
    one_hot.iloc[:, 0] = 1
    one_hot.to_csv(tmp_path / "h.tsv", sep="\t")
    with pytest.raises(ValueError, match=r"1 spots have more than one label \(e.g. '0_0'\)"):
        hw.io.read_labels(make(), tmp_path / "h.tsv")
    with pytest.raises(ValueError, match=r"'90x90'.*'0x0'"):
        hw.io.read_labels(make(), pd.DataFrame({"x": [90], "y": [90], "label": ["a"]}))


def test_polygons_need_one_section(two, tmp_path):
    with pytest.raises(ValueError, match=r"2 sections \('P1', 'P2'\).*library_id="):
        hw.io.read_labels(two, tmp_path / "a.geojson")


@pytest.mark.real_data
def test_dlpfc_layers(shared_data):
    sdata = hw.io.read_visium(shared_data / "dlpfc" / "151673", counts=None)
    layers = pd.read_csv(shared_data / "dlpfc" / "layers.tsv", sep="\t", dtype=str)
    here = layers[layers.iloc[:, 1] == "151673"]
    hw.io.read_labels(sdata, here, column=here.columns[2], barcode_column=here.columns[0])
    region = sdata.tables["table"].obs["region"]
    expected = here.set_index(here.columns[0])[here.columns[2]].reindex(region.index)
    assert (region.astype(object).fillna("-") == expected.fillna("-")).all()
    assert region.nunique() == 7


def test_sections_that_another_reader_names_where_labels_go_keep_their_names(section):
    import warnings

    from spatialdata_io import visium

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata = visium(section("P1/outs").path, dataset_id="P1")
    table = sdata.tables["table"]
    with pytest.raises(ValueError, match="names the sections.*it holds no labels.*hw.io.read_labels"):
        require_labels(table, "region")
    names = table.obs_names[:4]
    hw.io.read_labels(sdata, pd.DataFrame({"barcode": names, "label": ["a", "b", "a", "b"]}))
    assert table.obs["region"].dropna().tolist() == ["a", "b", "a", "b"]
    assert set(section_column(table)) == {"P1"}
    table.obs["library_id"] = "other"
    table.uns["spatialdata_attrs"]["region_key"] = "region"
    with pytest.raises(ValueError, match="labels_key='annotation'"):
        hw.io.read_labels(sdata, pd.DataFrame({"barcode": names, "label": ["a", "b", "a", "b"]}))
