"""Small Space Ranger folders, written by the tests as Space Ranger writes them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from PIL import Image

COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
FACTORS = {
    "spot_diameter_fullres": 13.0,
    "tissue_hires_scalef": 0.5,
    "tissue_lowres_scalef": 0.1,
    "fiducial_diameter_fullres": 21.0,
}


@dataclass
class Truth:
    """What was written: raw counts of all spots (spots x genes), and their positions."""

    path: Path
    counts: np.ndarray
    positions: pd.DataFrame
    genes: list[str]
    image: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        return self.positions["in_tissue"].to_numpy() == 1


def write_h5(path: Path, counts: np.ndarray, barcodes: list[str], genes: list[str], **attributes) -> None:
    """Write spots x genes as a version-3 10x h5 file."""
    matrix = sp.csc_matrix(counts.T.astype(np.int32))
    with h5py.File(path, "w") as file:
        for key, value in attributes.items():
            file.attrs[key] = value
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        group["features/id"] = np.array([f"ENSG{i:05d}" for i in range(len(genes))], dtype="S")
        group["features/name"] = np.array(genes, dtype="S")
        group["features/feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
        group["features/genome"] = np.array(["GRCh38"] * len(genes), dtype="S")


def write_mtx(folder: Path, counts: np.ndarray, barcodes: list[str], genes: list[str], *, zipped: bool) -> None:
    folder.mkdir(parents=True)
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(counts.T.astype(int)))
    rows = [f"ENSG{i:05d}\t{g}\tGene Expression" for i, g in enumerate(genes)]
    (folder / "features.tsv").write_text("\n".join(rows) + "\n")
    (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    if zipped:
        for name in ("matrix.mtx", "features.tsv", "barcodes.tsv"):
            plain = folder / name
            with gzip.open(folder / f"{name}.gz", "wb") as stream:
                stream.write(plain.read_bytes())
            plain.unlink()


def hex_positions(n_rows: int = 6, n_cols: int = 8) -> pd.DataFrame:
    """Spots on Space Ranger's hexagonal array, 20 px apart, some of them outside the tissue."""
    rows = []
    for r in range(n_rows):
        for c in range(n_cols):
            col = 2 * c + r % 2
            rows.append(
                (
                    f"{'ACGT'[r % 4]}{'ACGT'[c % 4]}{r:03d}{c:03d}-1",
                    int(c > 0),
                    r,
                    col,
                    20 + 17 * r,
                    30 + 10 * col,
                )
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def write_section(
    path: Path,
    *,
    matrix: str = "h5",
    positions: str = "tissue_positions.csv",
    header: bool = True,
    kinds: tuple[str, ...] = ("filtered", "raw"),
    prefix: str = "",
    factors: dict | None = None,
    seed: int = 0,
    library: str | None = None,
    hires_mode: str = "RGB",
) -> Truth:
    """Write a Space Ranger folder; ``path`` is what holds ``spatial/``."""
    generator = np.random.default_rng(seed)
    placed = hex_positions()
    genes = ["GENE1", "GENE2", "TWIN", "TWIN", "MT-CO1"]
    counts = generator.poisson(1.5, (len(placed), len(genes)))
    spatial = path / "spatial"
    spatial.mkdir(parents=True)
    shuffled = placed.sample(frac=1, random_state=1)  # Space Ranger's order of positions is not that of the matrix
    if positions.endswith("parquet"):
        shuffled.to_parquet(spatial / positions, index=False)
    else:
        shuffled.to_csv(spatial / positions, index=False, header=header)
    (spatial / "scalefactors_json.json").write_text(json.dumps(FACTORS if factors is None else factors))
    image = generator.integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(image).convert(hires_mode).save(spatial / "tissue_hires_image.png")
    Image.fromarray(image[::5, ::5]).save(spatial / "tissue_lowres_image.png")
    attributes = {"chemistry_description": "Visium V1", "software_version": "spaceranger-2.1.0"}
    if library is not None:
        attributes["library_ids"] = np.array([library], dtype="S")
    for kind in kinds:
        keep = np.ones(len(placed), dtype=bool) if kind == "raw" else placed["in_tissue"].to_numpy() == 1
        barcodes = placed["barcode"][keep].tolist()
        if matrix == "h5":
            write_h5(path / f"{prefix}{kind}_feature_bc_matrix.h5", counts[keep], barcodes, genes, **attributes)
        else:
            write_mtx(path / f"{kind}_feature_bc_matrix", counts[keep], barcodes, genes, zipped=matrix == "mtx.gz")
    return Truth(path, counts, placed, genes, image)


@pytest.fixture
def section(tmp_path: Path):
    """Function that writes a section below a temporary folder: ``section("name/outs", matrix="mtx")``."""

    def write(name: str = "outs", **options) -> Truth:
        return write_section(tmp_path / name, **options)

    return write


@pytest.fixture
def hd(section):
    for size in (8, 16):
        factors = {
            "spot_diameter_fullres": float(2 * size),
            "bin_size_um": float(size),
            "microns_per_pixel": 0.5,
            "tissue_hires_scalef": 0.5,
            "tissue_lowres_scalef": 0.1,
        }
        truth = section(
            f"HD1/outs/binned_outputs/square_{size:03d}um",
            positions="tissue_positions.parquet",
            factors=factors,
            seed=size,
        )
    return {"root": truth.path.parents[2], 16: truth}
