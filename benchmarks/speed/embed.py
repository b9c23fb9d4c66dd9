"""Embedding throughput beside the limit and beside a plain timm loop.

    python benchmarks/speed/embed.py [--sizes 64 96 224] [--crops 2048] [--batch 256] [--repeats 5] [--folder FOLDER]

Images/s of ResNet-18, random weights and pixels (neither matters to the time), one process for all contestants,
interleaved. `ImageEncoder.embed` is timed whole, with standardisation and components, on crops in memory and on lazy
ones in a Zarr store. The plain loop is what a timm user writes: a DataLoader over the crops, as floats, normalised,
through the network; in its default float32, and in our precision and memory format as well. The limit is the same
network's forward pass alone, on one ready batch, in our precision and memory format.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import timm
import torch

from histoweave._device import resolve_device, resolve_precision
from histoweave.models import ImageEncoder
from histoweave.models.image_encoder._backbone import Backbone

BACKBONE = "resnet18"
Run = Callable[[], object]


def table(crops: np.ndarray | da.Array) -> ad.AnnData:
    obs = pd.DataFrame({"library_id": "a"}, index=np.arange(len(crops)).astype(str))
    return ad.AnnData(np.zeros((len(crops), 1), np.float32), obs=obs, obsm={"crops": crops})


def ours(crops: np.ndarray | da.Array, fitted: ImageEncoder) -> Run:
    data = table(crops)
    return lambda: fitted.embed(data)


def fitted_encoder(crops: np.ndarray, batch: int) -> ImageEncoder:
    encoder = ImageEncoder("pretrained", backbone=BACKBONE, batch_size=batch)
    encoder._network = Backbone(BACKBONE, pretrained=False)
    return encoder.fit(table(crops[:256]))


def limit(crops: np.ndarray, batch: int, device: str, precision: str) -> Run:
    network = timm.create_model(BACKBONE, num_classes=0).to(device, memory_format=torch.channels_last).eval()
    x = torch.rand(batch, 3, *crops.shape[1:3], device=device).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(len(crops) // batch):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                network(x)

    return run


def plain(crops: np.ndarray, batch: int, device: str, precision: str, workers: int, last: bool) -> Run:
    layout = torch.channels_last if last else torch.contiguous_format
    network = timm.create_model(BACKBONE, num_classes=0).to(device, memory_format=layout).eval()
    mean, sd = (torch.tensor(network.pretrained_cfg[k]).view(1, 3, 1, 1).to(device) for k in ("mean", "std"))
    loader = torch.utils.data.DataLoader(torch.from_numpy(crops), batch_size=batch, num_workers=workers)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        found = []
        for pictures in loader:
            x = (pictures.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / sd
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                found.append(network(x.contiguous(memory_format=layout)).float().cpu())
        return torch.cat(found)

    return run


def rate(run: Run, n: int, device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return n / (time.perf_counter() - start)


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def race(side: int, options: argparse.Namespace, folder: Path, device: str, precision: str) -> None:
    n = options.crops // options.batch * options.batch
    crops = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    store = str(folder / f"{side}.zarr")
    da.from_array(crops, chunks=(256, side, side, 3)).to_zarr(store)
    fitted = fitted_encoder(crops, options.batch)
    contestants: dict[str, Run] = {
        "histoweave": ours(crops, fitted),
        "histoweave, lazy crops": ours(da.from_zarr(store), fitted),
        "limit: forward alone": limit(crops, options.batch, device, precision),
    }
    for workers in options.workers:
        for kind, last in dict.fromkeys([("float32", False), (precision, True)]):
            name = f"timm loop, {kind}{', channels last' if last else ''}, {workers} workers"
            contestants[name] = plain(crops, options.batch, device, kind, workers, last)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(options.repeats + 1):  # the first one warms up
        for name, run in contestants.items():
            rates[name] += [found] if (found := rate(run, n, device)) and repeat else []
    print(f"\n### {side} px, {n} crops, batch {options.batch}\n")
    print("| | images/s, median (range) | histoweave / this |\n|---|---|---|")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(rates["histoweave"], found, strict=True)]
        print(f"| {name} | {spread(found, 1)} | {spread(ratios, 2)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 224])
    parser.add_argument("--crops", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--folder", help="where the Zarr store goes; a temporary folder by default")
    options = parser.parse_args()
    from histoweave import settings

    settings.progress = False
    warnings.simplefilter("ignore")
    device = resolve_device()
    precision = resolve_precision("auto", device)
    print(
        f"{device}, {precision}, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for side in options.sizes:
            race(side, options, Path(folder), device, precision)


if __name__ == "__main__":
    main()
