"""The 10x matrix on disk: what is left out, what is damaged."""

from __future__ import annotations

import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning


def test_other_features_are_left_out(section):
    import h5py

    truth = section("P1/outs")
    with h5py.File(truth.path / "filtered_feature_bc_matrix.h5", "a") as file:
        file["matrix/features/feature_type"][1] = b"Antibody Captur"
    with pytest.warns(HistoweaveWarning, match="1 features that are not gene expression"):
        table = hw.io.read_visium(truth.path).tables["table"]
    assert list(table.var_names) == ["GENE1", "TWIN", "TWIN-1", "MT-CO1"]


@pytest.mark.parametrize("matrix", ["h5", "mtx", "mtx.gz"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_matrix(section, matrix, keep):
    truth = section("P1/outs", matrix=matrix)
    name = "filtered_feature_bc_matrix" + (".h5" if matrix == "h5" else "/matrix." + matrix)
    file = truth.path / name
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises((OSError, ValueError), match="cut off"):
        hw.io.read_visium(truth.path)


def test_h5_of_another_kind(section):
    import h5py

    truth = section("P1/outs")
    with h5py.File(truth.path / "filtered_feature_bc_matrix.h5", "a") as file:
        del file["matrix/features/name"]
    with pytest.raises(ValueError, match=r"not a 10x feature-barcode matrix: it has no 'features/name'"):
        hw.io.read_visium(truth.path)


def test_duplicate_barcodes_and_empty_matrix(section, tmp_path):
    from histoweave.io._tenx import read_counts

    truth = section("P1/outs", matrix="mtx")
    folder = truth.path / "filtered_feature_bc_matrix"
    lines = (folder / "barcodes.tsv").read_text().splitlines()
    (folder / "barcodes.tsv").write_text("\n".join([lines[1], *lines[1:]]))
    with pytest.raises(ValueError, match="1 barcodes more than once"):
        hw.io.read_visium(truth.path)
    empty = truth.path / "raw_feature_bc_matrix"
    (empty / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n5 0 0\n")
    (empty / "barcodes.tsv").write_text("")
    with pytest.raises((OSError, ValueError), match="empty"):
        read_counts(empty)
