from __future__ import annotations

import pytest
import torch

from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._module import NETWORKS, Decoder, head


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_as_many_features_as_they_say(name):
    network = Backbone(name, pretrained=False).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, network.dim)


def test_the_stem_for_small_pictures_keeps_twice_the_resolution():
    maps = {}
    for name in ("resnet18", "resnet18-small"):
        with torch.inference_mode():
            maps[name] = Backbone(name, pretrained=False).eval().network.forward_features(torch.zeros(1, 3, 64, 64))
    assert maps["resnet18"].shape[2:] == (2, 2)
    assert maps["resnet18-small"].shape[2:] == (4, 4)


def test_the_narrow_network_is_a_resnet_of_ten_layers_with_a_ninth_of_the_weights():
    weights = {name: sum(p.numel() for p in Backbone(name, pretrained=False).parameters()) for name in
               ("resnet10-narrow", "resnet18")}  # fmt: skip
    assert weights["resnet10-narrow"] < weights["resnet18"] / 9
    network = Backbone("resnet10-narrow", pretrained=False).eval().network
    main_path = [m for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d) and "downsample" not in n]
    assert len(main_path) + 1 == 10  # the head, which is not there, is the tenth
    with torch.inference_mode():
        assert network.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 2, 2)


def test_networks_of_our_own_have_no_published_weights():
    with pytest.raises(ValueError, match="'tiny'.*no published weights"):
        Backbone("tiny", pretrained=True)


def test_heads_normalise_between_layers_and_at_the_end_where_asked():
    assert [type(m).__name__ for m in head(8, 6, 4)] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    z = head(8, 6, 4, normalise_last=True)(torch.randn(50, 8))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.var(dim=0, correction=0), torch.ones(4), atol=1e-2, rtol=0)


def test_decoder_draws_16_by_16_pictures():
    assert Decoder(10)(torch.randn(3, 10)).shape == (3, 3, 16, 16)
