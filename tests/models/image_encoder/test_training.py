from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._pretexts import BYOL, SimCLR
from histoweave.models.image_encoder._training import _activated_norms

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"backbone": "tiny", "max_epochs": 3, "batch_size": 40, "precision": "float32", "n_components": 8}


@pytest.fixture
def tissue(sections):
    adata = sections[sections.obs["library_id"].isin(["section_1", "section_2"])].copy()
    hw.pp.crops(adata, size_um={"crops": 110, "crops_context": 250}, out_px=32)
    return adata


def weights(encoder) -> dict[str, torch.Tensor]:
    return encoder._network.state_dict()


def assert_same(a, b) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)


def encoder(method="simclr", **options):
    return hw.models.ImageEncoder(method, **OPTIONS | options)


def test_the_seed_decides_every_bit_and_the_global_generators_are_left_alone(tissue):
    state = torch.get_rng_state()
    np_state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = encoder().fit(tissue), encoder().fit(tissue)
    assert_same(first, again)
    assert first.history.equals(again.history)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], np_state)  # noqa: NPY002
    other = encoder(random_state=1).fit(tissue)
    assert not torch.equal(weights(first)["network.0.weight"], weights(other)["network.0.weight"])


def test_history_has_an_epoch_a_row_and_the_rate_rises_and_falls(tissue):
    history = encoder(max_epochs=10).fit(tissue).history
    assert list(history.columns) == ["epoch", "loss", "learning_rate"]
    assert history["epoch"].tolist() == list(range(10))
    assert history["learning_rate"].idxmax() == 0  # the first tenth is the warm-up
    assert history["learning_rate"].is_monotonic_decreasing
    assert history["learning_rate"].iloc[-1] < 1e-5


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_an_interrupted_training_continues_to_the_same_bits(tissue, tmp_path, monkeypatch, method):
    straight = encoder(method, max_epochs=4).fit(tissue)
    pretext = {"simclr": SimCLR, "byol": BYOL}[method]
    forward, calls = pretext.forward, []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 13:  # in the third epoch of 5 batches
            raise ConnectionError("the machine goes down")
        return forward(self, *args)

    checkpoint = tmp_path / "training.ckpt"
    monkeypatch.setattr(pretext, "forward", dies)
    resumed = encoder(method, max_epochs=4, checkpoint=checkpoint)
    with pytest.raises(ConnectionError):
        resumed.fit(tissue)
    assert checkpoint.is_file()
    assert resumed.sections_seen is None
    resumed.fit(tissue)
    assert len(calls) == 13 + 2 * 5  # two epochs were not done again
    assert_same(straight, resumed)
    assert straight.history.equals(resumed.history)
    np.testing.assert_array_equal(straight.embed(tissue), resumed.embed(tissue))
    assert not checkpoint.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_training_is_refused(tissue, tmp_path, monkeypatch):
    checkpoint = tmp_path / "training.ckpt"
    monkeypatch.setattr("pathlib.Path.unlink", lambda self, **_: None)
    encoder(max_epochs=1, checkpoint=checkpoint).fit(tissue)
    monkeypatch.undo()
    for change in ({"learning_rate": 0.5}, {"method": "vicreg"}, {"random_state": 3}):
        with pytest.raises(ValueError, match=f"another training.*{next(iter(change))}"):
            encoder(**{"max_epochs": 1, "checkpoint": checkpoint} | change).fit(tissue)
    again = {"max_epochs": 1, "checkpoint": checkpoint}
    with pytest.raises(ValueError, match="another training: crops differ"):
        encoder(**again).fit(tissue[:60].copy())
    other = tissue.copy()
    other.obs["library_id"] = np.roll(other.obs["library_id"].astype(str), 30)
    with pytest.raises(ValueError, match="another training: crops differ"):
        encoder(**again).fit(other)
    other = tissue.copy()
    other.obsm["crops"][1:] = 255 - other.obsm["crops"][1:]
    with pytest.raises(ValueError, match="another training: crops differ"):
        encoder(**again).fit(other)
    start = Backbone("tiny", pretrained=False).network.state_dict()
    save_file(start, tmp_path / "start.safetensors")
    with pytest.raises(ValueError, match="another training: start differ"):
        encoder(weights=tmp_path / "start.safetensors", **again).fit(tissue)


def test_norms_with_activations_keep_them():
    """Torch's conversion for several devices takes them out; timm's networks are told apart."""
    norm = BatchNormAct2d(3)
    x = torch.randn(4, 3, 2, 2)
    assert norm(x).min() >= 0
    assert not isinstance(torch.nn.SyncBatchNorm.convert_sync_batchnorm(norm), BatchNormAct2d)
    assert _activated_norms(Backbone("efficientnet_b0", pretrained=False))
    assert not _activated_norms(Backbone("resnet18", pretrained=False))


def test_patience_stops_where_the_loss_no_longer_falls(tissue):
    history = encoder(max_epochs=30, learning_rate=1e-12, patience=2).fit(tissue).history
    assert len(history) < 30


def test_saved_and_loaded_encoders_give_the_same_bits(tissue, tmp_path):
    fitted = encoder(augmentation="light", max_epochs=1).fit(tissue)
    loaded = hw.models.ImageEncoder.load(fitted.save(tmp_path / "encoder"))
    loaded.precision = "float32"  # follows the machine, and is not saved
    assert_same(fitted, loaded)
    np.testing.assert_array_equal(fitted.embed(tissue), loaded.embed(tissue))
    assert loaded.history.equals(fitted.history)
    assert loaded.training == fitted.training
    assert loaded.training.max_epochs == 1


def test_one_network_describes_several_scales_and_lazy_crops_are_the_same(tissue):
    both = encoder(crops_keys=("crops", "crops_context"), max_epochs=1, n_components=None).fit(tissue)
    assert both.features(tissue).shape == (tissue.n_obs, 2 * 64)
    lazy = tissue.copy()
    hw.pp.crops(lazy, size_um=110, out_px=32, lazy=True)
    np.testing.assert_array_equal(lazy.obsm["crops"].compute(), tissue.obsm["crops"])
    assert_same(encoder(max_epochs=1).fit(tissue), encoder(max_epochs=1).fit(lazy))


def test_training_starts_from_given_weights(tissue, tmp_path):
    from safetensors.torch import save_file

    first = encoder(max_epochs=1).fit(tissue)
    state = {k: v.contiguous() for k, v in first._network.network.state_dict().items()}
    save_file(state, tmp_path / "tiny.safetensors")
    second = encoder(max_epochs=1, learning_rate=1e-12, weights=tmp_path / "tiny.safetensors").fit(tissue)
    torch.testing.assert_close(weights(second)["network.0.weight"], weights(first)["network.0.weight"])


def test_low_precision_trains(tissue):
    history = encoder(precision="bfloat16", max_epochs=1).fit(tissue).history
    assert np.isfinite(history["loss"]).all()


def test_tl_image_encoder_passes_and_records_the_training(tissue):
    fitted = hw.tl.image_encoder(
        tissue, method="vicreg", backbone="tiny", max_epochs=2, batch_size=50, learning_rate=2e-3, temperature=0.3,
        augmentation="light", patience=5, n_components=4, precision="float32",
    )  # fmt: skip
    assert tissue.obsm["X_image"].shape == (tissue.n_obs, 4)
    training = fitted.training
    assert (training.learning_rate, training.temperature, training.patience, len(fitted.history)) == (2e-3, 0.3, 5, 2)
    params = tissue.uns["histoweave"]["X_image"]["params"]
    assert (params["method"], params["max_epochs"], params["augmentation"]["stain"]) == ("vicreg", 2, 0.05)


def test_bad_input_is_told(tissue):
    with pytest.raises(RuntimeError, match="not fitted"):
        encoder().features(tissue)
    with pytest.warns(HistoweaveWarning, match="fewer than `batch_size=1000`"):
        encoder(batch_size=1000, max_epochs=1).fit(tissue)
    with pytest.raises(FloatingPointError, match="`learning_rate`"):
        encoder(learning_rate=1e30).fit(tissue)
    with pytest.raises(RuntimeError, match="cuda"):
        encoder(device="cuda:99").fit(tissue)
    flat = tissue.copy()
    flat.obsm["crops"] = np.full_like(flat.obsm["crops"], 200)
    failed = encoder()
    with pytest.raises(ValueError, match="one colour"):
        failed.fit(flat)
    with pytest.raises(RuntimeError, match="not fitted"):
        failed.embed(tissue)
    for wrong in ({"max_epochs": 0}, {"learning_rate": 0}, {"temperature": -1}, {"patience": 0}, {"augmentation": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            encoder(**wrong)
