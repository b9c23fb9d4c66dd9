"""What is gathered for a training, and where it starts: labels, probes, memory, weights, scales."""

from __future__ import annotations

import warnings
from functools import partialmethod

import numpy as np
import pytest
import torch

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._module import set_scale
from histoweave.models.image_encoder._optimizer import parameter_groups
from histoweave.models.image_encoder._pretexts import SupCon, Supervised

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"backbone": "tiny", "max_epochs": 2, "batch_size": 40, "precision": "float32", "n_components": 8}


@pytest.fixture
def tissue(sections):
    adata = sections[sections.obs["library_id"].isin(["section_1", "section_2"])].copy()
    hw.pp.crops(adata, size_um={"crops": 110, "crops_context": 250}, out_px=32)
    return adata


def encoder(method="simclr", **options):
    return hw.models.ImageEncoder(method, **OPTIONS | options)


def same_weights(a, b) -> bool:
    first, second = a._network.state_dict(), b._network.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


def spy(monkeypatch, pretext) -> list[np.ndarray]:
    """Rows of every batch that a pretext is shown."""
    forward, seen = pretext.forward, []

    def watched(self, backbone, views):
        seen.append(views.rows.numpy())
        return forward(self, backbone, views)

    monkeypatch.setattr(pretext, "forward", watched)
    return seen


def test_methods_with_labels_see_labelled_rows_and_in_combination_all(tissue, monkeypatch):
    tissue.obs["region"] = tissue.obs["region"].astype(object).where(np.arange(tissue.n_obs) % 3 == 0)
    labelled = set(np.flatnonzero(tissue.obs["region"].notna()))
    seen = spy(monkeypatch, Supervised)
    encoder("supervised", max_epochs=3).fit(tissue)
    assert set(np.concatenate(seen)) == labelled
    codes = tissue.obs["region"].astype("category").cat.codes.to_numpy()
    assert all(len(set(np.bincount(codes[rows]))) == 1 for rows in seen)  # classes balanced in every batch
    seen.clear()
    history = encoder({"simclr": 2.0, "supervised": 0.5}).fit(tissue).history
    assert set(np.concatenate(seen)) == set(range(tissue.n_obs))
    np.testing.assert_allclose(history["loss"], 2 * history["loss_simclr"] + history["loss_supervised"] / 2, rtol=1e-5)


def test_rows_held_out_for_the_probe_lend_no_labels(tissue, monkeypatch):
    seen = spy(monkeypatch, SupCon)
    history = encoder("supcon", probe="linear").fit(tissue).history
    rows = np.concatenate(seen)
    assert tissue.obs["library_id"].iloc[rows].nunique() == 1  # the other section is held out
    assert history["probe"].between(0, 1).all()
    changed = tissue.copy()
    held = ~changed.obs["library_id"].isin(tissue.obs["library_id"].iloc[rows]).to_numpy()
    names = changed.obs["region"].astype(str).to_numpy()
    names[held] = np.random.default_rng(0).permutation(names[held])
    changed.obs["region"] = names
    again = encoder("supcon", probe="linear").fit(changed)
    assert same_weights(again, encoder("supcon", probe="linear").fit(tissue))
    assert not again.history["probe"].equals(history["probe"])


def test_training_stops_where_the_probe_no_longer_improves(tissue, monkeypatch):
    scores = iter([0.2, 0.5, 0.4, 0.3, 0.6, 0.7])
    monkeypatch.setattr("histoweave.models.image_encoder._probe.Probe.score", lambda *_: next(scores))
    history = encoder(probe="knn", patience=2, max_epochs=6).fit(tissue).history
    assert history["probe"].tolist() == [0.2, 0.5, 0.4, 0.3]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_batch_and_starts_again(tissue, tmp_path, monkeypatch, error):
    forward, calls = SupCon.forward, []

    def small_only(self, backbone, views):
        calls.append(len(views.rows))
        if len(views.rows) > 20 and len(calls) > 6:  # a checkpoint of the larger batches is there by then
            raise error
        return forward(self, backbone, views)

    monkeypatch.setattr(SupCon, "forward", small_only)
    checkpoint = tmp_path / "training.ckpt"
    with pytest.warns(HistoweaveWarning, match="`batch_size=40`: training starts again with `batch_size=20`"):
        found = encoder("supcon", checkpoint=checkpoint).fit(tissue)
    assert same_weights(found, encoder("supcon", batch_size=20).fit(tissue))
    assert len(found.history) == 2
    monkeypatch.setattr(SupCon, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("another error")))
    with pytest.raises(RuntimeError, match="another error"):
        encoder("supcon").fit(tissue)


def test_lower_layers_learn_slower_and_norms_do_not_decay():
    network = Backbone("test_vit", pretrained=False)
    head = torch.nn.Linear(network.dim, 2)
    groups = parameter_groups(network, head.parameters(), 1.0, 0.5)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    names = dict(network.network.named_parameters())
    assert set(rate) == {id(p) for p in [*names.values(), *head.parameters()]}
    depth = len(network.network.blocks)
    assert rate[id(head.weight)] == 1
    assert rate[id(names["norm.weight"])] == 0.5
    for i in range(depth):
        assert rate[id(names[f"blocks.{i}.attn.qkv.weight"])] == 0.5 ** (depth - i)
    assert rate[id(names["patch_embed.proj.weight"])] == 0.5 ** (1 + depth)
    assert all((decay[id(p)] > 0) == (p.ndim > 1) for p in names.values())
    assert groups[-1]["lr"] == 1  # the rate that the history tells
    assert {g["lr"] for g in parameter_groups(network, head.parameters(), 1.0, 1.0)} == {1.0}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("convnext_tiny", "vit_small_patch16_224")]


@pytest.mark.parametrize("name", ["resnet10-narrow", "vit_tiny_patch16_224", *SLOW])
def test_networks_of_every_kind_make_a_step(sections, name):
    adata = sections[:16].copy()
    hw.pp.crops(adata, size_um={"crops": 110, "crops_context": 250}, out_px=32)
    options = {"backbone": name, "max_epochs": 1, "batch_size": 8, "n_components": 4, "precision": "float32"}
    if "vit" in name:
        adata = adata[:4].copy()  # 224 px, whatever the crops
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HistoweaveWarning)
        fitted = hw.models.ImageEncoder(
            "simclr", crops_keys=("crops", "crops_context"), scale_token=True, layer_decay=0.7, **options
        ).fit(adata)
    tokens = {k: v for k, v in fitted._network.state_dict().items() if k.endswith((".gain", ".offset"))}
    assert len(tokens) == 2
    assert all((values.abs().sum(dim=1) > 0).all() for values in tokens.values())  # both scales have learned
    assert np.isfinite(fitted.history["loss"]).all()


def test_the_network_is_told_the_scale(tissue, tmp_path, monkeypatch):
    keys = ("crops", "crops_context")
    fitted = encoder(crops_keys=keys, scale_token=True, learning_rate=0.02, n_components=None).fit(tissue)
    network, crops = fitted._network, torch.from_numpy(tissue.obsm["crops"])
    expected = []
    for scale, key in enumerate(keys):
        set_scale(network, scale)
        with torch.inference_mode():
            expected.append(network(torch.from_numpy(tissue.obsm[key])).numpy())
    np.testing.assert_allclose(fitted.features(tissue), np.concatenate(expected, axis=1), atol=1e-5)
    with torch.inference_mode():
        assert not np.allclose(network(crops).numpy(), expected[0], atol=1e-3)  # as if they were of the other scale
    loaded = hw.models.ImageEncoder.load(fitted.save(tmp_path / "encoder"))
    loaded.precision = "float32"
    np.testing.assert_array_equal(loaded.embed(tissue), fitted.embed(tissue))
    monkeypatch.setattr("histoweave.models.image_encoder._backbone.FIRST_LAYERS", {"elsewhere": 1})
    with pytest.raises(ValueError, match="knows no first layer of Tiny"):
        encoder(crops_keys=keys, scale_token=True).fit(tissue)


def test_published_weights_are_asked_for(tissue, monkeypatch):
    asked = []

    def start(self, name, *, pretrained):
        asked.append((name, pretrained))
        original(self, name, pretrained=False)

    original = Backbone.__init__
    monkeypatch.setattr(Backbone, "__init__", start)
    encoder(backbone="test_resnet", weights="published", max_epochs=1).fit(tissue)
    encoder(backbone="test_resnet", max_epochs=1).fit(tissue)
    assert asked == [("test_resnet", True), ("test_resnet", False)]


def test_bad_arguments_are_told(tissue):
    with pytest.raises(TypeError, match="no argument 'epochs'.*max_epochs"):
        encoder(epochs=3)
    for wrong in ({"layer_decay": 0}, {"quantiles": 0.5}, {"quantiles": (0.9, 0.5)}, {"mining": "x"}, {"probe": "x"}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            encoder(**wrong)
    for wrong, told in (({}, "names no method"), ({"pretrained": 1.0}, "'simclr'"), ({"simclr": 0.0}, "simclr")):
        with pytest.raises(ValueError, match=told):
            encoder(wrong)
    tissue.obs["region"] = "one"
    with pytest.raises(ValueError, match="at least 2 regions"):
        encoder("triplet").fit(tissue)


def test_what_was_begun_with_a_smaller_batch_goes_on_with_it(tissue, tmp_path, monkeypatch):
    forward, checkpoint = SupCon.forward, tmp_path / "training.ckpt"

    def dies(self, backbone, views):
        if len(views.rows) > 20:
            raise torch.OutOfMemoryError("CUDA")
        if checkpoint.exists():
            raise ConnectionError("the machine goes down")
        return forward(self, backbone, views)

    monkeypatch.setattr(SupCon, "forward", dies)
    with pytest.raises(ConnectionError), pytest.warns(HistoweaveWarning, match="starts again with `batch_size=20`"):
        encoder("supcon", checkpoint=checkpoint).fit(tissue)
    monkeypatch.setattr(SupCon, "forward", forward)
    with pytest.warns(HistoweaveWarning, match="begun with `batch_size=20`: training goes on with it"):
        found = encoder("supcon", checkpoint=checkpoint).fit(tissue)
    assert same_weights(found, encoder("supcon", batch_size=20).fit(tissue))


def test_a_checkpoint_from_where_there_was_more_memory_is_not_deleted(tissue, tmp_path, monkeypatch):
    forward, checkpoint = SupCon.forward, tmp_path / "training.ckpt"

    def dies(self, backbone, views, error=ConnectionError):
        if checkpoint.exists():
            raise error("no more")
        return forward(self, backbone, views)

    monkeypatch.setattr(SupCon, "forward", dies)
    with pytest.raises(ConnectionError):
        encoder("supcon", checkpoint=checkpoint).fit(tissue)
    monkeypatch.setattr(SupCon, "forward", partialmethod(dies, error=torch.OutOfMemoryError))
    kept = checkpoint.read_bytes()
    with pytest.raises(RuntimeError, match="while continuing .*begun with `batch_size=40`"):
        encoder("supcon", checkpoint=checkpoint).fit(tissue)
    assert checkpoint.read_bytes() == kept


def test_a_probe_needs_rows_of_classes_that_others_have(tissue):
    tissue.obs["region"] = np.where(tissue.obs["library_id"] == "section_1", "a", "b")
    tissue.obs.loc[tissue.obs_names[tissue.obs["library_id"] == "section_1"][:20], "region"] = "c"
    found = []
    for seed in range(6):  # either section may be held out
        try:
            encoder(probe="linear", max_epochs=1, random_state=seed).fit(tissue)
        except ValueError as error:
            found.append(str(error))
    assert found
    assert all("needs two classes to learn from beside rows of these to score" in text for text in found)
