"""SimCLR training throughput beside the limit and beside lightly's documented loop.

    python benchmarks/speed/pretraining.py [--sizes 64 96 224] [--batch 128] [--steps 6] [--repeats 5] [--workers 0 2]

Images/s of ResNet-18, two views an image, random pixels (their content does not matter to the time), one process
for all contestants, interleaved. The limit is timm's network's forward and backward, with the projection head, on
two ready views in the same precision and memory format, without optimiser, data or augmentation. lightly runs
the loop of its SimCLR example (SGD, its SimCLRTransform on PIL pictures, its NTXentLoss) with a DataLoader of each
number of workers; in its documented float32, and in our precision as well.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from histoweave import settings
from histoweave._device import resolve_device, resolve_precision
from histoweave.loaders import CropEpochs
from histoweave.models import ImageTraining
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._losses import nt_xent
from histoweave.models.image_encoder._pretexts import SimCLR
from histoweave.models.image_encoder._training import Plan, train

BACKBONE = "resnet18"
Run = Callable[[int], float]  # steps -> images/s


def pictures(side: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ours(crops: np.ndarray, batch: int, device: str, precision: str) -> Run:
    """`train` as ImageEncoder calls it; the start of Lightning is taken out by the difference of two lengths."""
    rows = np.arange(len(crops))
    source = {"crops": (crops, np.ones(len(crops), bool))}

    def seconds(epochs: int) -> float:
        plan = Plan({"simclr": 1.0}, ImageTraining(max_epochs=epochs), precision)
        data = CropEpochs(source, {"a": rows}, batch_size=batch)
        start = time.perf_counter()
        train(Backbone(BACKBONE, pretrained=False), data, plan, device=device)
        synchronise(device)
        return time.perf_counter() - start

    def run(steps: int) -> float:
        a_pass = len(crops) // batch
        epochs = -(-steps // a_pass)
        return epochs * a_pass * batch / (seconds(1 + epochs) - seconds(1))

    return run


def limit(side: int, batch: int, device: str, precision: str) -> Run:
    backbone = Backbone(BACKBONE, pretrained=False)
    backbone.network = timm.create_model(BACKBONE, num_classes=0)  # with torch's own convolutions
    backbone = backbone.to(device, memory_format=torch.channels_last).train()
    pretext = SimCLR(backbone, ImageTraining()).to(device)
    views = list(torch.rand(2, batch, 3, side, side, device=device))

    def run(steps: int) -> float:
        for step in range(steps + 1):
            if step == 1:
                synchronise(device)
                start = time.perf_counter()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = nt_xent(*pretext.project(backbone.encode(torch.cat(views))).chunk(2))
            loss.backward()
            backbone.zero_grad()
        synchronise(device)
        return steps * batch / (time.perf_counter() - start)

    return run


class Folder(torch.utils.data.Dataset):
    """What lightly's LightlyDataset yields, without reading files: pictures are in memory, as ours."""

    def __init__(self, crops: np.ndarray, transform: Callable) -> None:
        self.pictures, self.transform = [Image.fromarray(c) for c in crops], transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple:
        return self.transform(self.pictures[i]), 0, str(i)


def lightly(crops: np.ndarray, batch: int, device: str, precision: str, workers: int) -> Run:
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    head = SimCLRProjectionHead(512, 512, 128)
    model = nn.Sequential(backbone, nn.Flatten(), head).to(device)
    data = Folder(crops, SimCLRTransform(input_size=crops.shape[1]))
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    criterion, optimizer = NTXentLoss(), torch.optim.SGD(model.parameters(), lr=0.06)

    def forever() -> Iterator:
        while True:
            yield from loader

    stream = forever()

    def run(steps: int) -> float:
        for step, ((x0, x1), *_) in enumerate(itertools.islice(stream, steps + 1)):
            if step == 1:
                synchronise(device)
                start = time.perf_counter()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                z0, z1 = model(x0.to(device)), model(x1.to(device))
            loss = criterion(z0.float(), z1.float())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        synchronise(device)
        return steps * batch / (time.perf_counter() - start)

    return run


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def contestants(side: int, options: argparse.Namespace, device: str, precision: str) -> dict[str, Callable[[], Run]]:
    crops = pictures(side, options.batch * 2)
    found = {
        "histoweave": partial(ours, crops, options.batch, device, precision),
        "limit: forward and backward alone": partial(limit, side, options.batch, device, precision),
    }
    for kind, workers in itertools.product(dict.fromkeys(["float32", precision]), options.workers):
        found[f"lightly, {kind}, {workers} workers"] = partial(lightly, crops, options.batch, device, kind, workers)
    return found


def peak_memory(name: str, side: int, options: argparse.Namespace, device: str, precision: str) -> float:
    """MB that a contestant takes at most, in a process of its own without its workers; on a GPU, what torch took."""
    quiet()
    contestants(side, options, device, precision)[name]()(2)
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    # not `ru_maxrss`, which begins at what the process that started this one held
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def race(side: int, options: argparse.Namespace, device: str, precision: str) -> None:
    runs = {name: make() for name, make in contestants(side, options, device, precision).items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            rates[name].append(run(options.steps))
    print(f"\n### {side} px, batch {options.batch}\n")
    print("| | images/s, median (range) | histoweave / this | peak memory, MB |\n|---|---|---|---|")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for name, found in rates.items():
            ratios = [a / b for a, b in zip(rates["histoweave"], found, strict=True)]
            memory = processes.submit(peak_memory, name, side, options, device, precision).result()
            print(f"| {name} | {spread(found, 1)} | {spread(ratios, 2)} | {memory:,.0f} |", flush=True)


def quiet() -> None:
    settings.progress = False
    warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 224])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    options = parser.parse_args()
    quiet()
    device = resolve_device()
    precision = resolve_precision("auto", device)
    print(f"{device}, {precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for side in options.sizes:
        race(side, options, device, precision)


if __name__ == "__main__":
    main()
