"""The files of a Space Ranger folder: where they are, and what each of them holds."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._validate import listing, warn

POSITION_COLUMNS = [
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
]
POSITION_FILES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")


@dataclass(frozen=True)
class Layout:
    """One section on disk: ``root`` holds the matrix and ``spatial/``; ``bin_um`` is set for Visium HD."""

    root: Path
    name_folder: Path
    bin_um: int | None = None

    @property
    def spatial(self) -> Path:
        return self.root / "spatial"


def locate(path: Path, bin_um: int | None) -> Layout:
    """Find the section in ``path``, its ``outs`` folder or its ``binned_outputs``."""
    if not path.is_dir():
        msg = (
            f"`path={str(path)!r}` is {'not a folder' if path.exists() else 'missing'}; a Space Ranger "
            "folder is needed."
        )
        raise FileNotFoundError(msg)
    candidates = [path, path / "outs"]
    for folder in candidates:
        binned = folder if _bins(folder) else folder / "binned_outputs"
        if bins := _bins(binned):
            return _choose_bin(binned, bins, bin_um)
    for folder in candidates:
        if (folder / "spatial").is_dir():
            size = _bin_size(folder)
            if bin_um is not None and bin_um != size:
                found = "a classic Visium section, which has no bins" if size is None else f"the {size} um bins"
                msg = f"`bin_um={bin_um}` was asked for, but {str(folder)!r} holds {found}. Leave `bin_um` out."
                raise ValueError(msg)
            return Layout(folder, _name_folder(folder, size), size)
    msg = (
        f"{str(path)!r} is not a Space Ranger folder: looked for `spatial/`, `outs/spatial/` and "
        f"`binned_outputs/square_*um/`; found {listing(sorted(p.name for p in path.iterdir()))}. Pass the "
        "`outs/` folder of `spaceranger count`."
    )
    raise FileNotFoundError(msg)


def _bin_size(folder: Path) -> int | None:
    match = re.fullmatch(r"square_(\d+)um", folder.name)
    return int(match.group(1)) if match else None


def _bins(folder: Path) -> dict[int, Path]:
    found = folder.glob("square_*um") if folder.is_dir() else ()
    return {size: p for p in sorted(found) if (size := _bin_size(p)) is not None and p.is_dir()}


def _choose_bin(binned: Path, bins: dict[int, Path], bin_um: int | None) -> Layout:
    size = 8 if bin_um is None else bin_um
    if size not in bins:
        msg = (
            f"`bin_um={size}` is not in {str(binned)!r}; available bins: {listing(list(bins))} um. Pass one "
            "of them as `bin_um=`."
        )
        raise ValueError(msg)
    return Layout(bins[size], _name_folder(bins[size], size), size)


def _name_folder(root: Path, bin_um: int | None) -> Path:
    """The folder whose name tells the section: above ``binned_outputs`` and never ``outs``."""
    folder = Path(os.path.abspath(root))  # not resolve(): a link may carry the telling name
    if bin_um is not None:
        folder = folder.parent.parent if folder.parent.name == "binned_outputs" else folder.parent
    return folder.parent if folder.name == "outs" else folder


def find_counts(root: Path, kind: str) -> tuple[Path, str]:
    """Return the h5 file or MatrixMarket folder of a kind ("filtered", "raw") and its file-name prefix."""
    stem = f"{kind}_feature_bc_matrix"
    files = sorted(root.glob(f"*{stem}.h5"), key=lambda p: (len(p.name), p.name))
    if len(files) > 1 and files[0].name != f"{stem}.h5":
        msg = (
            f"{str(root)!r} holds several matrices ({listing([f.name for f in files])}). Keep one section a "
            f"folder, or rename the one you mean to `{stem}.h5`."
        )
        raise ValueError(msg)
    if files:
        return files[0], files[0].name.removesuffix(f"{stem}.h5").rstrip("_.-")
    if (root / stem).is_dir():
        return root / stem, ""
    other = sorted({p.name for p in root.glob("*_bc_matrix*")})
    msg = (
        f"No counts in {str(root)!r}: looked for `{stem}.h5` (with or without a prefix) and the folder "
        f"`{stem}/`; found {listing(other)}. Pass `counts='raw'` or `'filtered'` for the other matrix, or "
        "`counts=None` to read the section without expression."
    )
    raise FileNotFoundError(msg)


def read_positions(spatial: Path) -> pd.DataFrame:
    """Read the position of every barcode, indexed by barcode, from any Space Ranger version."""
    found = [spatial / name for name in POSITION_FILES if (spatial / name).exists()]
    if not found:
        names = sorted(p.name for p in spatial.iterdir())
        msg = f"No spot positions in {str(spatial)!r}: looked for {listing(POSITION_FILES)}; found {listing(names)}."
        raise FileNotFoundError(msg)
    path = found[0]
    try:
        positions = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (ValueError, OSError) as error:
        msg = f"Spot positions {str(path)!r}: the file is empty, damaged or was cut off ({error})."
        raise ValueError(msg) from error
    absent = [name for name in POSITION_COLUMNS if name not in positions]
    if absent:
        msg = f"{str(path)!r} has no column {listing(absent)}; found {listing(positions.columns)}."
        raise ValueError(msg)
    positions = positions[POSITION_COLUMNS].set_index("barcode")
    positions.index = positions.index.astype(str).rename(None)
    return _checked(positions, path)


def _read_csv(path: Path) -> pd.DataFrame:
    """Space Ranger 1 writes no header; some tools add one to a file of that name."""
    with path.open(encoding="utf-8-sig") as stream:
        header = "in_tissue" in stream.readline()
    positions = pd.read_csv(path, header=0 if header else None, encoding="utf-8-sig")
    if not header and positions.shape[1] == len(POSITION_COLUMNS):
        positions.columns = POSITION_COLUMNS
    return positions


def _checked(positions: pd.DataFrame, path: Path) -> pd.DataFrame:
    if positions.empty:
        msg = f"{str(path)!r} lists no spots: the section is empty."
        raise ValueError(msg)
    twice = positions.index[positions.index.duplicated()]
    if len(twice):
        msg = f"{str(path)!r} lists {twice.nunique()} barcodes more than once (e.g. {listing(twice.unique(), 3)})."
        raise ValueError(msg)
    numbers = positions.apply(pd.to_numeric, errors="coerce").astype(float)
    bad = ~np.isfinite(numbers.to_numpy()).all(axis=1)
    if bad.any():
        msg = (
            f"{str(path)!r} has missing or non-numeric positions for {int(bad.sum())} barcodes (e.g. "
            f"{listing(positions.index[bad], 3)})."
        )
        raise ValueError(msg)
    return numbers.astype({_keys.IN_TISSUE: bool, _keys.ARRAY_ROW: int, _keys.ARRAY_COL: int})


def read_scalefactors(spatial: Path) -> dict[str, float]:
    """Read the usable scale factors; those that are zero or not finite are left out, with a warning."""
    path = spatial / "scalefactors_json.json"
    if not path.exists():
        warn(f"{str(path)!r} is missing: images cannot be placed and are not read.")
        return {}
    try:
        factors = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{str(path)!r} is not valid JSON ({error}). Copy it again from the Space Ranger output."
        raise ValueError(msg) from error
    good = {
        k: float(v)
        for k, v in factors.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) and v > 0
    }
    if bad := {k: v for k, v in factors.items() if k not in good}:
        warn(f"{str(path)!r}: scale factors must be positive numbers, ignored {bad}.")
    return good
