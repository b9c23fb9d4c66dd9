"""Crops per second and memory: histoweave, squidpy, spatialdata and a bare NumPy loop, the limit.

Every figure comes from a process of its own that loads the image, runs once to warm up and is then timed
three times; the median counts. Contestants take turns, so that other load on the machine disturbs all alike.
Memory is the peak of the whole process: interpreter, libraries, the image (276 MB for 9274 x 9911) and crops.

    python benchmarks/speed/crops.py [--repeats 5] [--image FILE] [--lazy-side 32768]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

SIDE, OUT = 129, 64
DEFAULT_IMAGE = Path(__file__).resolve().parents[3] / "shared" / "data" / "her2st" / "images" / "C2.jpg"
N_SPOTS = {"numpy": 4000, "histoweave": 4000, "squidpy": 400, "spatialdata": 60}
NAMES = {
    "numpy": "bare NumPy loop (+ Pillow), the limit",
    "histoweave": "histoweave.pp.crops",
    "squidpy": "squidpy generate_spot_crops",
    "spatialdata": "spatialdata ImageTilesDataset",
}


# --- one contestant in one process ---


def peak_mb() -> float:
    """Return the process's own high-water mark; ru_maxrss would start at that of the process that forked it."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def section(centres: np.ndarray, image: np.ndarray | None, source: str = ""):
    import anndata as ad
    import pandas as pd

    obs = pd.DataFrame({"library_id": "s"}, index=[f"spot{i}" for i in range(len(centres))])
    table = ad.AnnData(np.zeros((len(centres), 1), np.float32), obs=obs, obsm={"spatial": centres})
    factors = {"tissue_full_scalef": 1.0, "tissue_hires_scalef": 1.0, "spot_diameter_fullres": float(SIDE)}
    images = {} if image is None else {"full": image}
    metadata = {"source_image_path": source} if source else {}
    table.uns["spatial"] = {"s": {"images": images, "scalefactors": factors, "metadata": metadata}}
    return table


def numpy_loop(image: np.ndarray, out: int | None):
    from PIL import Image

    def run(centres: np.ndarray) -> int:
        half = SIDE // 2
        crops = np.empty((len(centres), out or SIDE, out or SIDE, 3), np.uint8)
        for i, (x, y) in enumerate(centres.astype(int).tolist()):
            window = image[y - half : y + half + 1, x - half : x + half + 1]
            crops[i] = window if out is None else Image.fromarray(window).resize((out, out), Image.Resampling.BILINEAR)
        return len(crops)

    return run


def histoweave(image: np.ndarray, out: int | None):
    import histoweave as hw

    hw.settings.progress = False

    def run(centres: np.ndarray) -> int:
        table = section(centres, image)
        hw.pp.crops(table, size_px=SIDE, out_px=out)
        return len(table.obsm["crops"])

    return run


def squidpy(image: np.ndarray, out: int | None):
    import squidpy as sq

    container = sq.im.ImageContainer(image, layer="image", library_id="s")
    options = {} if out is None else {"scale": out / SIDE}

    def run(centres: np.ndarray) -> int:
        table = section(centres, None)
        crops = container.generate_spot_crops(table, library_id="s", as_array="image", **options)
        return len(list(crops))

    return run


def spatialdata(image: np.ndarray, out: int | None):
    import spatialdata as sd
    from spatialdata.dataloader import ImageTilesDataset

    element = sd.models.Image2DModel.parse(np.moveaxis(image, -1, 0), dims=("c", "y", "x"), chunks=(3, 1024, 1024))

    def run(centres: np.ndarray) -> int:
        spots = sd.models.ShapesModel.parse(centres.astype(float), geometry=0, radius=SIDE / 2)
        sdata = sd.SpatialData(images={"image": element}, shapes={"spots": spots})
        tiles = ImageTilesDataset(
            sdata=sdata,
            regions_to_images={"spots": "image"},
            regions_to_coordinate_systems={"spots": "global"},
            tile_dim_in_units=SIDE,
            rasterize=out is not None,
            rasterize_kwargs={} if out is None else {"target_width": out},
        )
        crops = []
        for i in range(len(tiles)):
            crops.append(np.asarray(next(iter(tiles[i].images.values())).data))
        return len(crops)

    return run


def contestant(name: str, image_file: str, out: int | None) -> dict[str, float]:
    warnings.simplefilter("ignore")
    image = np.load(image_file)
    run = {"numpy": numpy_loop, "histoweave": histoweave, "squidpy": squidpy, "spatialdata": spatialdata}[name](
        image, out
    )
    rng = np.random.default_rng(0)
    centres = rng.integers(SIDE, np.array(image.shape[1::-1]) - SIDE, (N_SPOTS[name], 2)).astype(float)
    run(centres)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        rates.append(run(centres) / (time.perf_counter() - start))
    return {"rate": statistics.median(rates), "memory": peak_mb()}


def lazy(path: str, side: int, shuffled: bool) -> dict[str, float]:
    """Crops of a slide that does not fit the memory allowed, written to a Zarr store as they are computed."""
    import histoweave as hw

    warnings.simplefilter("ignore")
    hw.settings.progress = False
    steps = np.arange(SIDE, side - SIDE, 320)  # about 10,000 spots
    centres = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2).astype(float)
    if shuffled:  # as Space Ranger's barcodes are
        np.random.default_rng(0).shuffle(centres)
    table = section(centres, None, path)
    start = time.perf_counter()
    hw.pp.crops(table, size_px=SIDE, out_px=OUT, lazy=True)
    with tempfile.TemporaryDirectory() as folder:
        table.obsm["crops"].to_zarr(f"{folder}/crops.zarr")
    return {"rate": len(centres) / (time.perf_counter() - start), "memory": peak_mb(), "n": len(centres)}


# --- the race ---


def child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def race(image_file: str, repeats: int) -> None:
    for out in (None, OUT):
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for _ in range(repeats):
            for name in NAMES:
                figures[name].append(child(name, image_file, str(out or 0)))
        title = f"{SIDE} px as they are" if out is None else f"{SIDE} px windows resampled to {out} px"
        print(f"\n### {title}\n")
        print("| | crops/s, median (range) | histoweave / this | peak memory, MB |")
        print("|---|---|---|---|")
        for name, runs in figures.items():
            pairs = zip(figures["histoweave"], runs, strict=True)
            ratios = [ours["rate"] / theirs["rate"] for ours, theirs in pairs]
            memory = spread([run["memory"] for run in runs])
            rates = spread([run["rate"] for run in runs])
            print(f"| {NAMES[name]} | {rates} | {spread(ratios, 2)} | {memory} ({N_SPOTS[name]} crops) |")


def race_lazy(folder: Path, side: int, repeats: int) -> None:
    path = folder / "slide.tif"
    write_slide(path, side)
    print(f"\n### Lazy: {side} x {side} px ({side**2 / 1e9:.2f} gigapixels) tiled JPEG TIFF, to a Zarr store\n")
    print("| order of the spots | crops | crops/s, median (range) | peak memory of the process, MB |")
    print("|---|---|---|---|")
    for order in ("rows of the array", "shuffled"):
        runs = [child("lazy", str(path), str(side), str(int(order == "shuffled"))) for _ in range(repeats)]
        rates, memory = spread([r["rate"] for r in runs]), spread([r["memory"] for r in runs])
        print(f"| {order} | {runs[0]['n']:.0f} | {rates} | {memory} |")


def write_slide(path: Path, side: int, tile: int = 256) -> None:
    import tifffile
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.normal(0, 1, (1024, 1024, 3)), (3, 3, 0))
    texture = (texture / texture.std() * 25 + (200, 140, 180)).clip(0, 255).astype(np.uint8)

    def tiles():
        for _ in range((side // tile) ** 2):
            y, x = rng.integers(0, 1024 - tile, 2)
            yield texture[y : y + tile, x : x + tile]

    options = {"tile": (tile, tile), "photometric": "rgb", "compression": "jpeg", "bigtiff": True}
    tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, **options)


def load(path: Path | None) -> tuple[np.ndarray, str]:
    from histoweave._image import open_image, to_rgb8

    path = path or DEFAULT_IMAGE
    if path.exists():
        return np.ascontiguousarray(to_rgb8(open_image(path))), path.name
    return np.random.default_rng(0).integers(0, 256, (9911, 9274, 3), dtype=np.uint8), "random pixels"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, source, number, *rest = sys.argv[2:]
        if name == "lazy":
            print(json.dumps(lazy(source, int(number), rest == ["1"])))
        else:
            print(json.dumps(contestant(name, source, int(number) or None)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--lazy-side", type=int, default=32768, help="0 leaves the lazy part out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image, name = load(options.image)
        np.save(f"{folder}/image.npy", image)
        print(f"Image {name}: {image.shape[1]} x {image.shape[0]} px; {options.repeats} runs each.")
        del image
        race(f"{folder}/image.npy", options.repeats)
        if options.lazy_side:
            race_lazy(Path(folder), options.lazy_side, max(1, options.repeats - 2))


if __name__ == "__main__":
    main()
