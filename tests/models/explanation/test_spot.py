"""What is said of one spot is what a classifier says when the table itself is changed so."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import histoweave as hw
from histoweave.models.explanation._spot import ImageHead, Spot
from histoweave.models.fusion import _inner
from histoweave.models.fusion._heads import ForestHead
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._module import set_scale


@pytest.fixture(scope="module")
def table():
    table = hw.datasets.simulate_section(n_rows=10, n_cols=10, n_genes=80, um_per_px=2.0)
    hw.pp.crops(table, size_um={"crops": 110, "crops_context": 300}, out_px=32)
    return table


def spot_of(model, table, row, **kwargs):
    light, features = model._encode(table, None, **{"layer": None, "library_key": "library_id",
                                                    "spatial_key": "spatial", "table_key": "table"})  # fmt: skip
    region = int(model.predict_proba(table).to_numpy()[row].argmax())
    return Spot(model, light, features, row, region)


@pytest.fixture(scope="module")
def clf(table):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_inner, "ForestHead", partial(ForestHead, 20))
        yield hw.models.RegionClassifier().fit(table)


def test_hidden_cell_is_the_change_of_the_table(clf, table):
    """The crop of one spot is changed in a copy of the table; the section's mean moves by a hundredth of that."""
    one, row = spot_of(clf, table, 37), 37
    found = one.hidden_cells("crops", 4)
    i, j = np.unravel_index(np.abs(found).argmax(), found.shape)
    changed = table.copy()
    crop = changed.obsm["crops"][row].copy()
    colour = crop.reshape(-1, 3).mean(axis=0).round()
    crop[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = colour
    changed.obsm["crops"][row] = crop
    name = clf.classes[one.region]
    before, after = (clf.predict_proba(t)[name].iloc[row] for t in (table, changed))
    assert found[i, j] == pytest.approx(np.log(before) - np.log(after), abs=0.1 * abs(found[i, j]) + 0.01)


def test_grad_cam_is_of_the_network_where_statistics_stand_beside_it(table):
    encoder = hw.models.ImageEncoder("simclr", crops_keys=("crops", "crops_context"), backbone="tiny", max_epochs=1,
                                     n_components=4, statistics=True, precision="float32", batch_size=50)  # fmt: skip
    model = hw.models.RegionClassifier(
        image=encoder.fit(table), genes=None, n_rings=0, fusion_options={"heads": "linear"}
    )
    model.fit(table)
    head, width = ImageHead(model, "crops_context"), encoder._network.dim
    own = model._fusion._members["image:linear"]
    mapped = encoder._map.weights()[:4, width : 2 * width] / encoder._scaler.sd[width : 2 * width]
    np.testing.assert_allclose(head.weight.numpy(), (own.coef / own.sd)[:, :4] @ mapped, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("genes", ["pca", "masked", "masked with neighbours"])
def test_hidden_gene_is_the_change_of_the_table(clf, table, genes):
    model, row = clf, 37
    if genes != "pca":
        options = {"n_latent": 8, "max_epochs": 1, "validation_fraction": 0, "neighbours": "neighbours" in genes}
        model = hw.models.RegionClassifier(
            image=None, genes="masked", gene_options=options, fusion_options={"heads": "linear"}
        ).fit(table)
    one = spot_of(model, table, row)
    found = one.hidden_genes().set_index("gene")
    assert found["contribution"].is_monotonic_decreasing
    gene = found.index[0]
    encoder = model._encoders["gene"]
    counts = table.layers["counts"].toarray()
    depth = counts.sum(axis=1)
    target = encoder._target if genes == "pca" else np.median(depth)
    log = np.log1p(target * counts / depth[:, None])
    column = table.var_names.get_loc(gene)
    assert found.loc[gene, "value"] == pytest.approx(log[row, column] - log[:, column].mean(), abs=2e-2)
    if genes == "pca":
        changed = counts.copy()
        # the count whose log value is the gene's mean, while the spot's depth is taken to stay
        changed[row, column] = np.expm1(log[:, column].mean()) * depth[row] / target
        shift = np.zeros_like(log)
        shift[row, column] = log[:, column].mean() - log[row, column]
        own = encoder._map.apply(encoder._scaler.transform(log, {"section_1": np.arange(100)}) + shift)[[row]]
    else:
        rows = encoder._rows(encoder._aligned(table, None, "library_id"))
        at = torch.tensor([row])
        x, around, shown = rows.log_batch(at).clone(), rows.around_batch(at), torch.zeros((1, 80), dtype=torch.bool)
        x[0, encoder.genes.index(gene)] = 0
        own = encoder._net.hide(x, shown, around, shown).detach().numpy()
    moved = one.log_probability("gene", own)[0]
    whole = np.log(model.predict_proba(table).to_numpy()[row, one.region])
    assert found.loc[gene, "contribution"] == pytest.approx(whole - moved, abs=1e-3)


def test_head_is_the_classifier_s_own_linear_head(table):
    """Differences of logits between two crops are those of the fitted head on their embeddings."""
    crops_keys = ("crops", "crops_context")
    options = {"crops_keys": crops_keys, "backbone": "tiny", "n_components": 8, "precision": "float32"}
    given = hw.models.ImageEncoder("pretrained", **options)
    given._network = Backbone("tiny", pretrained=False)  # random weights do here
    model = hw.models.RegionClassifier(image=given.fit(table), genes=None, fusion_options={"heads": "linear"})
    model.fit(table)
    encoder, head = model._encoders["image"], model._fusion._members["image:linear"]
    crops = table.obsm["crops"][:6]
    network = ImageHead(model, "crops").eval()
    set_scale(network, 0)
    with torch.inference_mode():
        logits = network(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255).numpy()
    raw = np.repeat(encoder.features(table)[[0]], 6, axis=0)
    width = raw.shape[1] // 2
    raw[:, :width] = encoder.features(table)[:6, :width]  # the other scale is the first spot's throughout
    own = encoder.features_as_in(raw, encoder.features(table))
    expected = own @ (head.coef / head.sd)[:, : own.shape[1]].T
    np.testing.assert_allclose(logits - logits[0], expected - expected[0], atol=2e-3)
    one = spot_of(model, table, 37)
    assert one.grad_cam("crops", "cpu").min() >= 0


@pytest.mark.filterwarnings("ignore:Expression can hardly be told")
def test_an_encoder_that_was_brought_to_expression_is_explained_by_what_it_embeds(table):
    guided = table.copy()
    hw.tl.gene_encoder(guided, n_components=5)
    encoder = hw.models.ImageEncoder("gene_regression", n_components=3).fit(guided)
    raw = encoder.features(guided)
    np.testing.assert_allclose(encoder.features_as_in(raw[:7], raw), encoder.embed(guided)[:7], atol=1e-5)
    model = hw.models.RegionClassifier(image=encoder, genes=None, fusion_options={"heads": "linear"}).fit(guided)
    found = hw.tl.explain_spot(guided, model, spot=guided.obs_names[37], n_cells=2)
    assert found["maps"]["crops"].shape == (2, 2)
    with pytest.raises(ValueError, match="needs an image encoder with a network"):
        hw.tl.explain_spot(guided, model, spot=guided.obs_names[37], image_method="grad_cam")
