"""Seconds per epoch of the masked autoencoder, of scVI, and of the bare network on a ready batch, the limit.

Every contestant trains in a process of its own and waits after each turn of steps (an epoch of 4,000 rows) until all
others have had theirs, so that a machine whose speed changes from minute to minute is as slow for one as for the next.
Only training is timed, from the end of one step to the end of another; the first turn, with all that is set up, is not.
Same genes, batches of 128, all rows trained on. Memory is the peak of the whole process, setting up included.

The second table is the time to equal held-out reconstruction: a tenth of the rows is not trained on, and after every
epoch (the clock stopped) the expected expression of these rows, seen whole, is compared with what was counted, both as
log(1 + share * 10,000). The mark is what scVI reaches by its last epoch, give or take 1 %.

    python benchmarks/speed/gene.py [--turns 30] [--rows 4000] [--genes 3000] [--without-scvi] [--race-epochs 40]
    python benchmarks/speed/gene.py --rows 50000 --race-epochs 0
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

BATCH, TURN = 128, 32  # rows of a step, steps of a turn
NAMES = {
    "limit mse": "bare network, one ready batch (mse): the limit",
    "masked mse": "GeneAutoencoder, mse",
    "masked mse sparse": "the same, one dense batch at a time",
    "limit nb": "bare network, one ready batch (nb): the limit",
    "masked nb": "GeneAutoencoder, nb",
    "scvi": "scvi.model.SCVI, default (zinb)",
    "scvi nb": "scvi.model.SCVI, nb",
}


# --- one contestant in one process ---


class Turns:
    """Steps in turns: after each the process says how long it took, and waits to be called again."""

    def __init__(self) -> None:
        self.steps, self.start = 0, time.perf_counter()

    def step(self) -> None:
        self.steps += 1
        if self.steps % TURN:
            return
        print(json.dumps({"seconds": time.perf_counter() - self.start, "memory": peak_mb()}), flush=True)
        if sys.stdin.readline() != "go\n":
            os._exit(0)
        self.start = time.perf_counter()


def peak_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def masked(table, likelihood: str, loading: str, epochs: int, turns: Turns) -> None:
    import histoweave as hw
    from histoweave.models.gene_autoencoder._training import MaskedTraining

    hw.settings.progress = False
    MaskedTraining.on_train_batch_end = lambda *_: turns.step()
    hw.models.GeneAutoencoder(
        likelihood=likelihood, loading=loading, max_epochs=epochs, batch_size=BATCH, validation_fraction=0
    ).fit(table)


def limit(table, likelihood: str, epochs: int, turns: Turns) -> None:
    import torch

    from histoweave.models.gene_autoencoder._masking import bernoulli
    from histoweave.models.gene_autoencoder._module import GeneNetwork

    network = GeneNetwork(table.n_vars, 1, likelihood=likelihood, widths=(128, 128), n_latent=64, dropout=0.1)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01, fused=True)
    counts = torch.from_numpy(table.X[:BATCH].toarray())
    depth = counts.sum(dim=1, keepdim=True)
    x = torch.log1p(counts / depth * 1e4)
    target = x if likelihood == "mse" else counts
    mask, section = bernoulli(BATCH, table.n_vars, 0.5, torch.Generator().manual_seed(0)), torch.zeros(BATCH).long()
    for _ in range(epochs * -(-table.n_obs // BATCH)):
        loss = network.loss(network(x, mask, section), target, depth, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        turns.step()


def scvi(table, likelihood: str, epochs: int, turns: Turns) -> None:
    import scvi
    from lightning.pytorch.callbacks import Callback

    class Step(Callback):
        def on_train_batch_end(self, *_) -> None:
            turns.step()

    scvi.settings.verbosity = 40
    scvi.model.SCVI.setup_anndata(table)
    scvi.model.SCVI(table, gene_likelihood=likelihood).train(
        max_epochs=epochs, batch_size=BATCH, train_size=1.0, accelerator="cpu", enable_progress_bar=False,
        logger=False, callbacks=[Step()],
    )  # fmt: skip


def contestant(name: str, file: str, epochs: int) -> None:
    import anndata as ad

    warnings.simplefilter("ignore")
    table, turns = ad.read_h5ad(file), Turns()
    kind, *rest = name.split()
    if kind == "masked":
        masked(table, rest[0], "sparse" if "sparse" in rest else "auto", epochs, turns)
    elif kind == "limit":
        limit(table, rest[0], epochs, turns)
    else:
        scvi(table, rest[0] if rest else "zinb", epochs, turns)


# --- time to equal reconstruction ---


def errors(log: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """RMSE, and the mean correlation over the genes of a spot less those genes' means."""
    a, b = log - truth.mean(axis=0), truth - truth.mean(axis=0)
    r = (a * b).sum(axis=1) / np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return float(np.sqrt(np.square(log - truth).mean())), float(np.nanmean(r))


def split(table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.random.default_rng(0).permutation(table.n_obs)
    held, trained = np.sort(order[: table.n_obs // 10]), np.sort(order[table.n_obs // 10 :])
    counts = table.X[held].toarray()
    return held, trained, np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


class Clock:
    """Seconds of training so far; stands still while scoring."""

    def __init__(self, score) -> None:
        self.start, self.score, self.curve = time.perf_counter(), score, []

    def tick(self) -> None:
        seconds = time.perf_counter() - self.start
        self.curve.append((seconds, *self.score()))
        self.start = time.perf_counter() - seconds


def masked_curve(table, likelihood: str, epochs: int) -> list:
    import torch

    import histoweave as hw
    from histoweave.models.gene_autoencoder._training import MaskedTraining

    hw.settings.progress = False
    _, trained, truth = split(table)
    x, before, clock = torch.from_numpy(truth), MaskedTraining.on_train_epoch_end, None

    @torch.no_grad()
    def score(training) -> tuple[float, float]:
        network, rows = training.network.eval(), training._data
        mean = torch.from_numpy(rows.mean)
        z = network.encode(x - mean, torch.full((len(x), 1), x.shape[1]))
        out = network.decode(z, torch.zeros(len(x)).long())
        log = (out["value"] + mean).clamp(min=0) if likelihood == "mse" else torch.log1p(out["share"] * 1e4)
        network.train()
        return errors(log.numpy(), truth)

    def timed(training) -> None:
        clock.score = lambda: score(training)
        clock.tick()
        before(training)

    MaskedTraining.on_train_epoch_end = timed
    clock = Clock(None)
    hw.models.GeneAutoencoder(
        likelihood=likelihood, max_epochs=epochs, batch_size=BATCH, validation_fraction=0, target_sum=1e4
    ).fit(table[trained].copy())
    return clock.curve


def scvi_curve(table, likelihood: str, epochs: int) -> list:
    import scvi
    import torch
    from lightning.pytorch.callbacks import Callback

    scvi.settings.verbosity = 40
    held, trained, truth = split(table)
    train = table[trained].copy()
    scvi.model.SCVI.setup_anndata(train)
    model = scvi.model.SCVI(train, gene_likelihood=likelihood)
    x = torch.from_numpy(table.X[held].toarray())
    tensors = {"X": x, "batch": torch.zeros(len(x), 1), "labels": torch.zeros(len(x), 1)}

    @torch.no_grad()
    def score() -> tuple[float, float]:
        module = model.module.eval()
        found = module.inference(**module._get_inference_input(tensors))
        found["z"] = found["qz"].loc
        shares = module.generative(**module._get_generative_input(tensors, found))["px"].scale
        module.train()
        return errors(torch.log1p(shares * 1e4).numpy(), truth)

    class Score(Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            clock.tick()

    clock = Clock(score)
    model.train(
        max_epochs=epochs, batch_size=BATCH, train_size=1.0, accelerator="cpu", enable_progress_bar=False,
        logger=False, callbacks=[Score()],
    )  # fmt: skip
    return clock.curve


def race(file: str, epochs: int, names: list[str]) -> list[str]:
    curves = {name: child("curve", name, file, str(epochs))["curve"] for name in names}
    mark = 1.01 * curves["scvi"][-1][1]
    lines = [
        f"\nTo a held-out RMSE of {mark:.4f} (scVI after {epochs} epochs, plus 1 %):",
        "\n| | seconds | epoch | RMSE at the end | correlation at the end |\n|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        reached = next((i for i, point in enumerate(curve) if point[1] <= mark), None)
        when = "not reached" if reached is None else f"{curve[reached][0]:.1f}"
        epoch = "" if reached is None else reached + 1
        lines.append(f"| {NAMES[name]} | {when} | {epoch} | {curve[-1][1]:.4f} | {curve[-1][2]:.3f} |")
    return lines


# --- the race of epochs ---


def child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


class Contestant:
    """A process that trains when it is called, and the seconds of each of its turns."""

    def __init__(self, name: str, file: str, epochs: int) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        command = [sys.executable, __file__, "--child", "turns", name, file, str(epochs)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.name, self.seconds, self.memory = name, [], 0.0
        self._read()  # the first turn comes with all that is set up

    def _read(self) -> float:
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                found = json.loads(line)
                self.memory = found["memory"]
                return found["seconds"]
        self.errors.seek(0)
        sys.exit(f"{self.name} stopped: {self.errors.read()}")

    def turn(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(self._read())

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def simulate(path: str, n_rows: int, n_genes: int) -> None:
    import histoweave as hw

    side = int(np.ceil(np.sqrt(n_rows)))
    table = hw.datasets.simulate_section(image=False, n_rows=side, n_cols=side, n_genes=n_genes)[:n_rows].copy()
    table.var["highly_variable"] = True
    del table.uns["spatial"]
    table.write_h5ad(path)


def table_of(rivals: dict[str, Contestant], n_rows: int) -> list[str]:
    """Seconds of an epoch by the turns, and ratios of the turns of one round."""
    lines = ["\n| | s/epoch, median (range) | limit / this | scVI / this | peak memory, MB |\n|---|---|---|---|---|"]
    for name, rival in rivals.items():
        epoch = [seconds * -(-n_rows // BATCH) / TURN for seconds in rival.seconds]
        floor = rivals["limit nb" if "nb" in name or name == "scvi" else "limit mse"]
        peer = rivals.get("scvi nb" if "nb" in name else "scvi")
        ratios = [
            spread([a / b for a, b in zip(other.seconds, rival.seconds, strict=True)]) if other else "not run"
            for other in (floor, peer)
        ]
        lines.append(f"| {NAMES[name]} | {spread(epoch, 3)} | {ratios[0]} | {ratios[1]} | {rival.memory:,.0f} |")
    return lines


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and the range of the middle nine tenths."""
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{middle:,.{digits}f} ({low:,.{digits}f}..{high:,.{digits}f})"


def run_child(kind: str, name: str, file: str, epochs: int) -> None:
    if kind == "turns":
        contestant(name, file, epochs)
        return
    import anndata as ad

    warnings.simplefilter("ignore")
    model, *rest = name.split()
    curve = masked_curve if model == "masked" else scvi_curve
    print(json.dumps({"curve": curve(ad.read_h5ad(file), rest[0] if rest else "zinb", epochs)}))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:5], int(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--without-scvi", action="store_true")
    parser.add_argument("--race-epochs", type=int, default=40, help="epochs of the second table, 0 for none")
    options = parser.parse_args()
    names = [name for name in NAMES if not (options.without_scvi and name.startswith("scvi"))]
    epochs = 2 + (options.turns + 1) * TURN * BATCH // options.rows
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/table.h5ad"
        simulate(file, options.rows, options.genes)
        rivals = {name: Contestant(name, file, epochs) for name in names}
        for i in range(options.turns):
            for name in names[:: 1 if i % 2 else -1]:
                rivals[name].turn()
            print(f"turn {i + 1} of {options.turns}", file=sys.stderr)
        for rival in rivals.values():
            rival.stop()
        raced = options.race_epochs and not options.without_scvi
        second = race(file, options.race_epochs, ["scvi", "scvi nb", "masked mse", "masked nb"]) if raced else []
    print(
        f"\n{options.rows:,} rows x {options.genes:,} genes, batches of {BATCH}; {options.turns} turns of {TURN} steps"
    )
    print("\n".join([*table_of(rivals, options.rows), *second]))


if __name__ == "__main__":
    main()
