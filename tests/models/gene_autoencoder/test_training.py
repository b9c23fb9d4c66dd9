"""The training of the masked autoencoder: interrupted and continued, refused where it is another one's, shared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import histoweave as hw
from histoweave.models import GeneAutoencoder
from histoweave.models.gene_autoencoder._training import Batches, MaskedTraining

QUICK = {"n_latent": 6, "widths": (24,), "max_epochs": 4, "masking": "mixed", "batch_size": 64}


@pytest.fixture(autouse=True)
def _quiet_and_single():
    threads, hw.settings.progress = torch.get_num_threads(), False
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    hw.settings.progress = True


def dies_in_epoch(monkeypatch, number):
    start = MaskedTraining.on_train_epoch_start

    def dying(self):
        if self.current_epoch == number:
            raise ConnectionError("the machine goes down")
        start(self)

    monkeypatch.setattr(MaskedTraining, "on_train_epoch_start", dying)


def test_an_interrupted_training_continues_to_the_same_bits(sections, tmp_path, monkeypatch):
    straight = GeneAutoencoder(**QUICK).fit(sections)
    resumed = GeneAutoencoder(**QUICK, checkpoint=tmp_path / "training.ckpt")
    with monkeypatch.context() as patch:
        dies_in_epoch(patch, 2)
        with pytest.raises(ConnectionError):
            resumed.fit(sections)
    assert resumed.genes is None
    assert [path.name for path in tmp_path.iterdir()] == ["training.ckpt"]
    resumed.fit(sections)
    assert straight.history.equals(resumed.history)
    np.testing.assert_array_equal(straight.embed(sections), resumed.embed(sections))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_refused(sections, tmp_path, monkeypatch):
    checkpoint = tmp_path / "training.ckpt"
    with monkeypatch.context() as patch:
        dies_in_epoch(patch, 1)
        with pytest.raises(ConnectionError):
            GeneAutoencoder(**QUICK, checkpoint=checkpoint).fit(sections)
    for name, value in {"learning_rate": 0.5, "mask_rate": 0.2, "dropout": 0.05}.items():
        told = name.replace("mask_rate", "masking")
        with pytest.raises(ValueError, match=f"another training: {told}"):
            GeneAutoencoder(**QUICK | {name: value}, checkpoint=checkpoint).fit(sections)
    with pytest.raises(ValueError, match="another training: .*counts differ"):
        GeneAutoencoder(**QUICK, checkpoint=checkpoint).fit(sections[::2].copy())


def test_a_loss_that_is_not_finite_is_told(sections):
    with pytest.raises(FloatingPointError, match="Lower `learning_rate`"):
        GeneAutoencoder(**QUICK, learning_rate=1e30).fit(sections)


def test_processes_share_every_batch():
    order = torch.randperm(10)
    parts = [list(Batches(order, 4, rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    for step, batch in enumerate(order.split(4)):
        seen = torch.cat([part[step] for part in parts])
        assert set(seen.tolist()) == set(batch.tolist())
    assert all(len(rows) for part in parts for rows in part)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_together(sections):
    model = GeneAutoencoder(**QUICK | {"max_epochs": 2}, devices=2, strategy="ddp_fork", device="cpu").fit(sections)
    assert np.isfinite(model.embed(sections)).all()
