"""Pretrained networks from local weights, without any download, against a plain timm loop."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from histoweave.models.image_encoder import _backbone
from histoweave.models.image_encoder._backbone import load_backbone

TINY = "test_resnet"
FIXED = "test_vit"


def weights_of(name: str, folder, *, head: int = 0):
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=head)
    for buffer in network.buffers():  # batch statistics other than 0 and 1
        if buffer.ndim:
            buffer += 0.1
    path = folder / f"{name}.safetensors"
    save_file(network.state_dict(), path)
    return network.eval(), path


@pytest.fixture
def crops():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, 48, 48, 3), dtype=np.uint8))


@torch.inference_mode()
@pytest.mark.parametrize("head", [0, 10])
def test_features_are_timms(tmp_path, crops, head):
    network, path = weights_of(TINY, tmp_path, head=head)
    network.reset_classifier(0)
    config = timm.data.resolve_model_data_config(network)
    scaled = (crops.permute(0, 3, 1, 2) / 255 - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(
        config["std"]
    ).view(3, 1, 1)
    backbone = load_backbone(TINY, path).eval()
    torch.testing.assert_close(backbone(crops), network(scaled), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_fixed_input_size_is_met(tmp_path, crops):
    network, path = weights_of(FIXED, tmp_path)
    size = network.pretrained_cfg["input_size"][-1]
    assert network.pretrained_cfg["fixed_input_size"]
    backbone = load_backbone(FIXED, path).eval()
    assert backbone(crops).shape == (5, network.num_features)
    config = timm.data.resolve_model_data_config(network)
    exact = torch.randint(0, 255, (2, size, size, 3), dtype=torch.uint8)
    mean, sd = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(
        backbone(exact), network((exact.permute(0, 3, 1, 2) / 255 - mean) / sd), atol=1e-4, rtol=1e-3
    )


def test_weights_of_another_architecture(tmp_path):
    _, path = weights_of(FIXED, tmp_path)
    with pytest.raises(ValueError, match=f"does not fit '{TINY}'.*tensors differ"):
        load_backbone(TINY, path)


def test_pickled_weights_are_refused_unread(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a safetensors file.*never loaded"):
        load_backbone(TINY, path)


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_backbone(TINY, tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_backbone(TINY, tmp_path)


def test_unknown_name_lists_similar_ones():
    with pytest.raises(ValueError, match=r"`backbone='resnet1888'` is not a timm model.*timm.list_models"):
        load_backbone("resnet1888", None)
    with pytest.raises(ValueError, match="'resnet18'"):
        load_backbone("resnet18_typo", None)


@pytest.mark.parametrize("name", ["resnet18", "hf-hub:somebody/gated"])
def test_no_network_is_said_with_the_way_out(monkeypatch, name):
    def fail(*args, **kwargs):
        raise OSError("cannot find the requested files, check your connection")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(RuntimeError, match=r"weights of .* cannot be loaded.*weights='file.safetensors'"):
        load_backbone(name, None)


def test_layers_that_only_the_hub_knows(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("no network")

    weights_of(TINY, tmp_path)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ConnectionError, match="'hf-hub:somebody/net' has is told by the hub alone.*no network"):
        load_backbone("hf-hub:somebody/net", tmp_path / f"{TINY}.safetensors")


def test_published_weights_are_asked_for_by_name_only(monkeypatch):
    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda n, pretrained, **k: asked.append((n, pretrained)) or create(n, **k)
    )
    _backbone.load_backbone(TINY, None)
    assert asked == [(TINY, True)]


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "vgg11", "convnext_tiny", "vit_tiny_patch16_224"]
)
def test_width_is_that_of_the_features(name):
    with torch.device("meta"):
        backbone = _backbone.Backbone(name, pretrained=False).eval()
        assert backbone.encode(torch.zeros(2, 3, 160, 160)).shape == (2, backbone.dim)
