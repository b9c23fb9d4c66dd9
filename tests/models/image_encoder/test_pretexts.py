from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import histoweave as hw
from histoweave._random import torch_seed
from histoweave.loaders import Augmentation
from histoweave.models import ImageTraining
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._pretexts import BYOL, CELLS, PRETEXTS, Colorize, Inpaint, Views

pytestmark = pytest.mark.usefixtures("one_thread")
RANK_FLOOR = 10  # of 64 features; a collapsed embedding has 1


@pytest.fixture(scope="module")
def tissue():
    """Two sections; the label of every other row is missing, the truth is in another column."""
    adata = hw.datasets.simulate_sections(2, n_rows=12, n_cols=12, n_genes=60, um_per_px=2.0)
    hw.pp.crops(adata, out_px=32)
    hw.tl.gene_encoder(adata, n_components=10)
    adata.obs["truth"] = adata.obs["region"].astype(str)
    adata.obs["region"] = adata.obs["truth"].where(np.arange(adata.n_obs) % 2 == 0)
    return adata


def features(network: Backbone, adata) -> np.ndarray:
    with torch.inference_mode():
        return network.eval()(torch.from_numpy(adata.obsm["crops"])).numpy()


def linear_probe(values: np.ndarray, adata) -> float:
    """Mean accuracy on the rows without a label, learned from 60 of those with one, 20 times."""
    seen = np.flatnonzero(adata.obs["region"].notna())
    rest = adata.obs["region"].isna().to_numpy()
    truth, scores = adata.obs["truth"].to_numpy(), []
    for seed in range(20):
        rows = np.random.default_rng(seed).choice(seen, 60, replace=False)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        scores.append(model.fit(values[rows], truth[rows]).score(values[rest], truth[rest]))
    return float(np.mean(scores))


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the singular values (Roy & Vetterli, 2007)."""
    s = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    share = s / s.sum()
    return float(np.exp(-(share * np.log(share + 1e-12)).sum()))


@pytest.fixture(scope="module")
def random_probe(tissue) -> float:
    scores = []
    for seed in range(3):
        with torch_seed(seed):
            scores.append(linear_probe(features(Backbone("tiny", pretrained=False), tissue), tissue))
    return float(np.mean(scores))


@pytest.mark.parametrize("method", PRETEXTS)
def test_training_learns_something_useful_and_does_not_collapse(method, tissue, random_probe):
    options = {
        "backbone": "tiny",
        "max_epochs": 20,
        "n_components": 16,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "precision": "float32",
    }
    encoder = hw.models.ImageEncoder(method, **options).fit(tissue)
    loss = encoder.history["loss"]
    assert loss.iloc[-3:].mean() < loss.iloc[0] * (1 - np.sign(loss.iloc[0]) * 0.02)
    values = features(encoder._network, tissue)
    assert effective_rank(values) > RANK_FLOOR
    assert linear_probe(values, tissue) > random_probe


def show(pictures: list[torch.Tensor]) -> Views:
    return Views(pictures, torch.arange(len(pictures[0])), torch.Generator().manual_seed(0))


def backbone() -> Backbone:
    with torch_seed(0):
        return Backbone("tiny", pretrained=False)


def test_the_copy_in_byol_follows_slowly_and_gets_no_gradient():
    network = backbone()
    pretext = BYOL(network, ImageTraining())
    views = list(torch.rand(2, 8, 3, 32, 32))
    pretext(network, show(views)).backward()
    assert all(p.grad is None for p in pretext.target.parameters())
    weight = network.network[0].weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    pretext.after_step(network, 0.0)
    copied = pretext.target[0].network[0].weight
    torch.testing.assert_close(copied, before + 0.01)
    pretext.after_step(network, 1.0)
    torch.testing.assert_close(copied, before + 0.01)


class Watcher(torch.nn.Module):
    """Stands for a backbone; keeps what it was shown."""

    dim = 64

    def encode(self, x):
        self.seen = x
        return torch.zeros(len(x), self.dim)


def test_inpainting_hides_a_quarter_of_the_picture_and_scores_all_of_it():
    watcher, x = Watcher(), torch.rand(5, 3, 32, 32)
    pretext = Inpaint(watcher, ImageTraining())
    pretext(watcher, show([x]))
    hidden = (watcher.seen != x).any(dim=1)
    assert hidden.float().mean(dim=(1, 2)).tolist() == [0.25] * 5
    assert len({tuple(mask.flatten().tolist()) for mask in hidden}) > 1
    for picture, mask, original in zip(watcher.seen, hidden, x, strict=True):
        torch.testing.assert_close(picture[:, mask], original[:, ~mask].mean(dim=1, keepdim=True).expand(3, 256))
    # a decoder that draws the mean colour explains nothing
    for p in pretext.decode.parameters():
        torch.nn.init.zeros_(p)
    assert pretext(watcher, show([x])).item() == pytest.approx(1)


def test_colorizing_shows_half_of_the_crops_in_grey_and_keeps_the_colours_as_they_are():
    watcher, x = Watcher(), torch.rand(200, 3, 32, 32)
    pretext = Colorize(watcher, ImageTraining())
    pretext(watcher, show([x]))
    coloured = (watcher.seen == x).flatten(1).all(dim=1)
    assert 70 < coloured.sum() < 130
    assert torch.equal(watcher.seen[~coloured], x.mean(dim=1, keepdim=True).expand_as(x)[~coloured])
    (aug,) = pretext.augmentations(Augmentation(scale=(0.3, 0.5), stain=0.2, grey=0.5, brightness=0.5))
    assert aug == Augmentation(scale=(0.3, 0.5))
    assert pretext.decode(torch.zeros(2, 64)).shape == (2, 3, CELLS, CELLS)
