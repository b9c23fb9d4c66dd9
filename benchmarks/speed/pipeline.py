"""Seconds and memory of every step from a Space Ranger folder to the report, by number of spots.

A section is simulated and written as Space Ranger writes it (h5 matrix, positions, scale factors, full-resolution
TIFF). Each size then runs in a process of its own: read, check, cut, embed, fit, map and cross-validate
on blocks of tissue, with the defaults and a tenth of the spots labelled. Memory is the highest the process stood at
during a step. The last columns say how a step grows: the exponent of seconds between one size and the next, 1 where
twice the spots take twice the time.

With `--ablation`, the embedding is followed by `tl.ablation` (fused, image and gene, with and without context, and the
nulls; 5 folds, 3 seeds) and its report instead, and the time of the ablation is divided by that of the embedding. The
image encoder is then a choice: with a network that is trained here, two arms without it join.

    python benchmarks/speed/pipeline.py [--spots 1000 4000 16000] [--genes 2000] [--um-per-px 2]
    python benchmarks/speed/pipeline.py --ablation [--image statistics simclr] [--backbone resnet10-narrow] [--epochs N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tifffile

LABELLED = 0.1


def write_folder(path: Path, n_spots: int, n_genes: int, um_per_px: float) -> None:
    """Simulate a section and write it as `spaceranger count` does."""
    import histoweave as hw

    side = int(np.ceil(np.sqrt(n_spots)))
    table = hw.datasets.simulate_section(
        n_rows=side, n_cols=side, n_genes=n_genes, um_per_px=um_per_px, labelled_fraction=LABELLED
    )
    spatial = path / "spatial"
    spatial.mkdir(parents=True)
    barcodes = [f"{name}-1" for name in table.obs_names]
    matrix = sp.csc_matrix(table.X.T.astype(np.int32))
    with h5py.File(path / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(matrix, key)
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        group["barcodes"] = np.array(barcodes, dtype="S")
        for key, values in {"id": table.var_names, "name": table.var_names}.items():
            group[f"features/{key}"] = np.array(list(values), dtype="S")
        for key, value in {"feature_type": "Gene Expression", "genome": "GRCh38"}.items():
            group[f"features/{key}"] = np.array([value] * table.n_vars, dtype="S")
    xy = table.obsm["spatial"]
    pd.DataFrame({
        "barcode": barcodes, "in_tissue": 1, "array_row": table.obs["array_row"].to_numpy(),
        "array_col": table.obs["array_col"].to_numpy(), "pxl_row_in_fullres": xy[:, 1], "pxl_col_in_fullres": xy[:, 0],
    }).to_csv(spatial / "tissue_positions.csv", index=False)  # fmt: skip
    entry = next(iter(table.uns["spatial"].values()))
    factors = {"spot_diameter_fullres": 55 / um_per_px, "tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 1.0}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    image = np.asarray(next(iter(entry["images"].values())))
    image = image if image.dtype == np.uint8 else (image * 255).round().astype(np.uint8)
    tifffile.imwrite(path / "full.tif", image, tile=(256, 256), compression="zlib")
    labels = table.obs["region"].astype(object).set_axis(barcodes)
    labels.rename("region").to_csv(path / "labels.csv")


# --- one size, in a process of its own ---


def high_water_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@contextmanager
def step(name: str, found: dict[str, tuple[float, float]]) -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    start = time.perf_counter()
    yield
    found[name] = (time.perf_counter() - start, high_water_mb())


def run(folder: Path, image: str | None, options: dict) -> dict[str, tuple[float, float]]:
    """Time the steps; those of the ablation where an encoder for the image is named."""
    found: dict[str, tuple[float, float]] = {}
    with step("import", found):
        import histoweave as hw
        from histoweave.report import write_ablation

        hw.settings.progress = False
        hw.tl.cross_validate, hw.models.RegionClassifier, hw.pp.crops  # noqa: B018  (modules are loaded on first use)
    with step("io.read_visium", found):
        data = hw.io.read_visium(folder, image=folder / "full.tif", library_id="a", donor="p")
    table = data.tables["table"]
    table.obs["region"] = pd.read_csv(folder / "labels.csv", index_col=0)["region"].reindex(table.obs_names)
    model = hw.models.RegionClassifier(image=image or "statistics", image_options=options)
    with step("pp.check_alignment", found):
        hw.pp.check_alignment(data)
    with step("pp.crops, three scales", found):
        hw.pp.crops(data, size_um={"crops_detail": 55, "crops": 110, "crops_context": 300}, out_px=64)
    with step("pp.split, blocks", found):
        hw.pp.split(data, by="blocks", n_folds=5, n_rings=model.n_rings)
    crops = ["crops_detail", "crops", "crops_context"]
    with step("embedding: tl.image_encoder", found):
        hw.tl.image_encoder(data, method=image or "statistics", crops_key=crops, **options)
    with step("embedding: tl.gene_encoder", found):
        hw.tl.gene_encoder(data, method="pca")
    if image is not None:
        with step("tl.ablation, 5 folds, 3 seeds", found):
            ablate = ["context", "self-supervision"]
            scores = hw.tl.ablation(data, model=model, ablate=ablate, seeds=range(3))
        print(f"{scores['arm'].nunique()} arms: {'; '.join(scores['arm'].unique())}", file=sys.stderr)
        with step("report.write_ablation", found):
            write_ablation(folder / "report.html", scores)
        return found
    with step("pp.spatial_context", found):
        hw.pp.spatial_context(data, keys=["X_image", "X_gene"], n_rings=1)
    with step("tl.fusion_classifier", found):
        hw.tl.fusion_classifier(data)
    with step("RegionClassifier.fit", found):
        model.fit(data)
    with step("tl.predict_regions", found):
        hw.tl.predict_regions(data, model)
    with step("tl.cross_validate, 5 folds", found):
        hw.tl.cross_validate(data)
    return found


def child(n_spots: int, image: str | None, args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    network = {"backbone": args.backbone, "max_epochs": args.epochs} if image not in (None, "statistics") else {}
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "outs", n_spots, args.genes, args.um_per_px)
        command = [sys.executable, __file__, "--child", f"{folder}/outs", json.dumps([image, network])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    print(f"{n_spots} spots, {image}: {done.stderr.splitlines()[-1]}" if image else f"{n_spots} spots", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table_of(seconds: pd.DataFrame, memory: pd.DataFrame) -> pd.DataFrame:
    """Seconds and memory by size, and how seconds grow from one size to the next."""
    sizes = list(seconds)
    table = pd.DataFrame({f"{n:,} spots, s": seconds[n].round(2) for n in sizes})
    for n in sizes:
        table[f"{n:,} spots, MB"] = memory[n].round().reindex(seconds.index)
    for a, b in pairwise(sizes):
        table[f"growth {a:,} to {b:,}"] = (np.log(seconds[b] / seconds[a]) / np.log(b / a)).round(2)
    return table


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        warnings.simplefilter("ignore")
        print(json.dumps(run(Path(sys.argv[2]), *json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--um-per-px", type=float, default=2.0)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--image", nargs="+", default=["statistics"], help="image encoders of the ablation")
    parser.add_argument("--backbone", default="resnet10-narrow")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    for image in args.image if args.ablation else [None]:
        found = {n: child(n, image, args) for n in args.spots}
        seconds, memory = (
            pd.DataFrame({n: {step: v[i] for step, v in steps.items()} for n, steps in found.items()}) for i in (0, 1)
        )
        embedding = seconds[seconds.index.str.startswith("embedding")].sum()
        seconds.loc["all"] = seconds.sum()
        print(f"\n{image or 'defaults'}\n\n{table_of(seconds, memory).to_markdown()}")
        if image:
            cost = seconds.loc["tl.ablation, 5 folds, 3 seeds"] / embedding
            print(f"\nablation over one-time embedding: {cost.round(1).to_dict()}")


if __name__ == "__main__":
    main()
