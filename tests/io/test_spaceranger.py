"""Finding and reading the files of a Space Ranger folder that is not as it should be."""

from __future__ import annotations

import pandas as pd
import pytest

import histoweave as hw


def test_hd_default_bin_is_8_and_wrong_bins_are_listed(hd):
    sdata = hw.io.read_visium(hd["root"])
    assert sdata.tables["table"].uns["spatial"]["HD1"]["metadata"]["array_pitch_um"] == 8.0
    with pytest.raises(ValueError, match=r"bin_um=2.*available bins: '8', '16'"):
        hw.io.read_visium(hd["root"], bin_um=2)
    with pytest.raises(ValueError, match="holds the 16 um bins"):
        hw.io.read_visium(hd[16].path, bin_um=8)


def test_bins_of_a_classic_section_are_refused(section):
    with pytest.raises(ValueError, match="classic Visium section"):
        hw.io.read_visium(section().path, bin_um=8)


def test_no_folder_and_no_space_ranger_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing; a Space Ranger folder is needed"):
        hw.io.read_visium(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"looked for `spatial/`.*'notes.txt'"):
        hw.io.read_visium(tmp_path)


def test_missing_positions_and_counts_are_named(section):
    truth = section("P1/outs", kinds=("raw",))
    with pytest.raises(FileNotFoundError, match=r"filtered_feature_bc_matrix.h5.*'raw_feature_bc_matrix.h5'"):
        hw.io.read_visium(truth.path)
    (truth.path / "spatial/tissue_positions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"'tissue_positions\.parquet'"):
        hw.io.read_visium(truth.path, counts="raw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: pd.concat([p, p.iloc[:2]]), "2 barcodes more than once"),
        (
            lambda p: p.assign(pxl_row_in_fullres=p["pxl_row_in_fullres"].where(p.index > 2)),
            "non-numeric positions for 3",
        ),
        (lambda p: p.drop(columns="array_col"), "no column 'array_col'"),
        (lambda p: p.iloc[:0], "the section is empty"),
    ],
)
def test_bad_positions(section, change, message):
    truth = section("P1/outs")
    file = truth.path / "spatial/tissue_positions.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(ValueError, match=message):
        hw.io.read_visium(truth.path)


def test_several_matrices_in_one_folder(section):
    truth = section("P1/outs", prefix="A_")
    file = truth.path / "A_filtered_feature_bc_matrix.h5"
    file.with_name("B_filtered_feature_bc_matrix.h5").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"several matrices \('A_filtered.*Keep one section a folder"):
        hw.io.read_visium(truth.path)


def test_scale_factors_that_are_not_json(section):
    truth = section("P1/outs")
    (truth.path / "spatial/scalefactors_json.json").write_text('{"tissue_hires_scalef": 0.')
    with pytest.raises(ValueError, match="is not valid JSON"):
        hw.io.read_visium(truth.path)


def test_a_link_names_the_section(section, tmp_path):
    truth = section("store/outs")
    (tmp_path / "P7").symlink_to(truth.path.parent, target_is_directory=True)
    assert list(hw.io.read_visium(tmp_path / "P7").shapes) == ["P7"]


@pytest.mark.parametrize("name", ["tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1\x00\xff\xfe,in_tissue\n1,2\n1,2,3,4\n"])
def test_damaged_positions(section, name, content):
    truth = section("P1/outs", positions=name)
    (truth.path / "spatial" / name).write_bytes(content)
    with pytest.raises(ValueError, match="empty, damaged or was cut off"):
        hw.io.read_visium(truth.path)
