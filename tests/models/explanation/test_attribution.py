"""Maps of networks against closed forms and against gradients followed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from histoweave.models.explanation._attribution import (
    choose_layers,
    grad_cam,
    occlusion,
    prepared,
    probabilities,
    randomised,
    stages,
)
from histoweave.models.image_encoder._backbone import Backbone

WEIGHTS = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 1.0, 2.0]])


class Classifier(nn.Module):
    """A backbone with a linear head."""

    def __init__(self, name: str, n_classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone(name, pretrained=False)
        self.head = nn.Linear(self.backbone.dim, n_classes)

    def forward(self, x):
        return self.head(self.backbone.encode(x))


class Pooled(nn.Module):
    """The mean colour, weighted: what each pixel contributes is known."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.head = nn.Identity(), nn.Linear(3, 2, bias=False)
        self.head.weight.data = WEIGHTS.clone()

    def forward(self, x):
        return self.head(self.pixels(x).mean(dim=(2, 3)))


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))


TARGET = torch.tensor([0, 1, 1, 0])


def test_grad_cam_of_a_mean_is_what_each_pixel_contributes(images):
    found = grad_cam(Pooled().eval(), images, TARGET, layer="pixels")
    expected = torch.einsum("nc,nchw->nhw", WEIGHTS[TARGET], images).clamp(min=0) / (32 * 48)
    torch.testing.assert_close(found, expected)


def test_occlusion_of_a_mean_is_what_each_cell_contributes(images):
    found = occlusion(Pooled().eval(), images, TARGET, cells=4)
    share = (images - images.mean(dim=(2, 3), keepdim=True)) / (32 * 48)
    cells = torch.einsum("nc,nchw->nhw", WEIGHTS[TARGET], share).unflatten(2, (4, 12)).unflatten(1, (4, 8))
    torch.testing.assert_close(found, cells.sum(dim=(2, 4)), atol=1e-6, rtol=1e-4)


def test_cells_that_do_not_divide_the_picture_cover_all_of_it(images):
    found = occlusion(Pooled().eval(), images, TARGET, cells=7)
    assert found.sum(dim=(1, 2)).abs().max() < 1e-5  # what the cells lack against the mean adds up to nothing


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_before_pooling_is_the_class_activation_map(images, frozen):
    """Zhou et al. (2016): with mean pooling and a linear head the map has a closed form."""
    network = Classifier("tiny").eval().requires_grad_(not frozen)
    target = torch.tensor([0, 1, 2, 0])
    found = grad_cam(network, images, target, layer="8")
    features = (images.detach() - 0.5) / 0.25
    with torch.no_grad():
        for layer in list(network.backbone.network)[:9]:
            features = layer(features)
        share = network.head.weight[target] / features[0, 0].numel()
        expected = torch.einsum("nc,nchw->nhw", share, features).clamp(min=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def by_hand(network, module, images, target, as_grid):
    """Grad-CAM from a kept activation and torch's own gradient."""
    kept = []
    handle = module.register_forward_hook(lambda _, __, out: kept.append(out) or out.retain_grad())
    logits = network(images.clone().requires_grad_())
    handle.remove()
    logits[torch.arange(len(target)), target].sum().backward()
    activation, gradient = as_grid(kept[0].detach()), as_grid(kept[0].grad)
    return (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).clamp(min=0)


@pytest.mark.parametrize(
    ("name", "layer"), [("test_resnet", "layer2"), ("test_resnet", "layer4"), ("test_convnext", "stages.2")]
)
def test_grad_cam_of_convolutions_is_that_of_gradients_by_hand(images, name, layer):
    network = Classifier(name).eval()
    found = grad_cam(network, images, TARGET, layer=layer)
    module = network.backbone.network.get_submodule(layer)
    expected = by_hand(network, module, images, TARGET, lambda grid: grid)
    assert found.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_grad_cam_of_a_transformer_is_that_of_its_patches(images):
    network = Classifier("test_vit").eval()
    core = network.backbone.network
    layer = choose_layers(network, (32, 48), None)[0]
    assert layer.endswith(".norm1")
    found = grad_cam(network, images, TARGET, layer=layer)
    side = core.patch_embed.grid_size[0]
    expected = by_hand(
        network,
        core.get_submodule(layer),
        images,
        TARGET,
        lambda tokens: tokens[:, core.num_prefix_tokens :].transpose(1, 2).unflatten(2, (side, side)),
    )
    assert found.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["tiny", "test_resnet", "test_convnext", "test_vit"])
def test_hooks_leave_no_trace(images, name):
    network = Classifier(name).eval()
    before = network(images)
    (layer,) = choose_layers(network, (32, 48), None)
    grad_cam(network, images.clone(), TARGET, layer=layer)
    torch.testing.assert_close(network(images), before)
    assert not any(m._forward_hooks for m in network.modules())
    assert all(p.grad is None for p in network.parameters())


def test_default_layer_is_the_deepest_that_shows_places():
    network = Classifier("resnet18").eval()
    assert list(stages(network, (64, 64))) == ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert choose_layers(network, (64, 64), None) == ["layer3"]
    assert choose_layers(network, (128, 128), None) == ["layer4"]
    assert choose_layers(network, (32, 32), None) == ["layer2"]
    assert choose_layers(network, (64, 64), "all") == list(stages(network, (64, 64)))
    assert stages(Classifier("tiny").eval(), (32, 48)) == {"2": (16, 24), "5": (8, 12), "8": (4, 6)}


def test_random_weights_are_new_everywhere_and_repeat():
    network = Classifier("test_vit").eval()
    first, again, other = (randomised(network, seed).state_dict() for seed in (0, 0, 1))
    changed = [k for k, v in network.state_dict().items() if v.ndim > 1 and "mean" not in k and "sd" not in k]
    assert changed
    for name in changed:
        assert not torch.equal(first[name], network.state_dict()[name]), name
        assert not torch.equal(first[name], other[name]), name
        assert torch.equal(first[name], again[name])


def test_prepared_copies_and_probabilities_are_softmax(images):
    network = Classifier("tiny").train()
    crops = (images * 255).byte().permute(0, 2, 3, 1).numpy()
    with torch.inference_mode():
        network.to(memory_format=torch.channels_last)  # what embedding does to the buffers
    copied = prepared(network, "cpu")
    assert network.training
    assert not copied.training
    found = probabilities(copied, crops, batch_size=3, device="cpu")
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(crops).permute(0, 3, 1, 2) / 255).numpy().astype(float)
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-4)
    assert grad_cam(copied, images, TARGET, layer="8").shape == (4, 4, 6)


def test_layers_that_do_not_exist_or_show_no_places():
    network = Classifier("test_resnet").eval()
    with pytest.raises(ValueError, match=r"`layers='layer9'` is not a layer.*'layer1', 'layer2'"):
        choose_layers(network, (64, 64), ["layer9"])
    with pytest.raises(ValueError, match="is no map of the picture"):
        grad_cam(network, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), layer="global_pool")
    with pytest.raises(ValueError, match="occlusion"):
        choose_layers(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (2, 2), None)
