"""Trainings in processes of their own: one that is killed, and two that share the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import histoweave as hw

SCRIPT = """
import sys
import numpy as np, torch
import histoweave as hw

def trained(options):
    adata = hw.datasets.simulate_section(n_rows=8, n_cols=8, n_genes=60, um_per_px=2.0)
    hw.pp.crops(adata, out_px=32)
    encoder = hw.models.ImageEncoder(n_components=8, precision="float32", device="cpu", **options).fit(adata)
    network = encoder._network.network.state_dict()
    return {"loss": np.asarray(encoder.history["loss"])} | {k: v.numpy() for k, v in network.items()}

if __name__ == "__main__":
    torch.set_num_threads(1)
    hw.settings.progress = False
    found = trained(eval(sys.argv[2]))
    if int(__import__("os").environ.get("LOCAL_RANK", 0)) == 0:
        np.savez(sys.argv[1], **found)
"""


def start(tmp_path: Path, name: str, **options) -> tuple[subprocess.Popen, Path]:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    out = tmp_path / f"{name}.npz"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script), str(out), repr(options)], env=env), out


def read(started: tuple[subprocess.Popen, Path]) -> dict[str, np.ndarray]:
    assert started[0].wait() == 0
    with np.load(started[1]) as found:
        return dict(found)


@pytest.fixture
def trained(monkeypatch) -> Iterator[Callable[[dict], dict[str, np.ndarray]]]:
    """What the script does, in this process, on as many threads."""
    monkeypatch.setattr(hw.settings, "progress", False)
    here: dict = {"__name__": "here"}
    exec(SCRIPT, here)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield here["trained"]
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_killed_and_continued_is_never_stopped_to_the_last_bit(tmp_path, trained):
    checkpoint = tmp_path / "state" / "training.ckpt"
    options = {"method": {"byol": 1.0, "inpaint": 0.5}, "backbone": "tiny", "batch_size": 8, "max_epochs": 15}
    process, _ = start(tmp_path, "killed", **options, checkpoint=str(checkpoint))
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = torch.load(checkpoint, weights_only=True)["epoch"] + 1
    assert done < 15
    resumed = trained(options | {"checkpoint": str(checkpoint)})
    expected = trained(options)
    assert resumed.keys() == expected.keys()
    assert all(np.array_equal(resumed[k], expected[k]) for k in expected)
    assert len(expected["loss"]) == 15
    assert not checkpoint.exists()


@pytest.mark.slow
def test_two_processes_train_the_network_that_one_trains(tmp_path, trained):
    """Without batch normalisation the mean of the gradients of two halves of a batch is that of the batch."""
    options = {"method": "supervised", "backbone": "test_vit", "batch_size": 16, "max_epochs": 2}
    two, one = read(start(tmp_path, "two", **options, devices=2, strategy="ddp")), trained(options)
    assert one.keys() == two.keys()
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=2e-4, err_msg=name)
