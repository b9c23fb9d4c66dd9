"""Training on few labels: balance, rates by layer, what a good start is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import histoweave as hw
from histoweave._random import torch_seed
from histoweave.models import ImageClassifier
from histoweave.models.image_classifier._training import Pictures, _layers, _section_statistics, balanced_rows
from histoweave.models.image_encoder._backbone import Backbone


def test_batches_hold_equal_shares_of_the_classes():
    y = np.repeat([0, 1, 2], [100, 5, 1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = balanced_rows(y, 32, rng)
        assert sorted(np.bincount(y[rows])) == [10, 11, 11]
    seen = np.concatenate([balanced_rows(y, 32, rng) for _ in range(100)])
    assert set(seen) == set(range(len(y)))


def test_rates_rise_geometrically_from_the_first_layer_to_the_head():
    backbone, head = Backbone("tiny", pretrained=False), nn.Linear(64, 2)
    plan = ImageClassifier(strategy="scratch", backbone="tiny", learning_rate=0.1, first_layer=0.01)._plan()
    groups = _layers(backbone, head, plan)
    rates = [g["lr"] for g in groups]
    assert groups[0]["params"][0] is backbone.network[0].weight
    assert groups[-1]["params"][0] is head.bias
    np.testing.assert_allclose([rates[0], rates[-1]], [0.001, 0.1])
    np.testing.assert_allclose(np.diff(np.log(rates)), np.log(100) / (len(rates) - 1))
    assert [g["weight_decay"] > 0 for g in groups] == [g["params"][0].ndim > 1 for g in groups]


def test_statistics_are_those_of_each_section_and_pooled_for_small_ones():
    with torch_seed(0):
        backbone = Backbone("tiny", pretrained=False)
    crops = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (50, 16, 16, 3), dtype=np.uint8))
    section = np.repeat([0, 1, 2], [22, 23, 5])
    mean, sd = _section_statistics(backbone, Pictures([crops, crops.flip(1)], section), "cpu")
    with torch.no_grad():
        features = torch.cat([backbone.eval()(crops), backbone(crops.flip(1))], dim=1)
    for number, own in enumerate((section == 0, section == 1, section >= 0)):
        torch.testing.assert_close(mean[number], features[own].mean(0))
        spread = features[own].std(0, correction=0)
        torch.testing.assert_close(sd[number], torch.where(spread > 0, spread, 1.0))


def simulated(n_sections: int, random_state: int):
    options = {"n_genes": 60, "n_regions": 3, "um_per_px": 4.0}
    table = hw.datasets.simulate_sections(n_sections, n_rows=9, n_cols=9, random_state=random_state, **options)
    hw.pp.crops(table, size_um=150, out_px=24)
    return table


def labels_of(table, **counts: int) -> np.ndarray:
    """Labels of so many rows of each region, chosen at random."""
    rng = np.random.default_rng(0)
    region = table.obs["region"].astype(str).to_numpy()
    kept = [rng.choice(np.flatnonzero(region == name), n, replace=False) for name, n in counts.items()]
    return np.where(np.isin(np.arange(len(region)), np.concatenate(kept)), region, None)


def recall(clf: ImageClassifier, table):
    predicted = clf.predict(table)["predicted"].astype(str)
    return hw.metrics.per_class(table.obs["region"].astype(str), predicted)["recall"]


@pytest.fixture(scope="module")
def start():
    """An encoder that knows the regions of other tissue."""
    options = {"backbone": "tiny", "precision": "float32", "n_steps": 120}
    return ImageClassifier(strategy="scratch", **options).fit(simulated(3, 7)).encoder


@pytest.fixture
def tissue():
    return simulated(2, 1), simulated(1, 2)


def test_an_informed_start_beats_random_weights_on_few_labels(tissue, start):
    train, test = tissue
    train.obs["region"] = labels_of(train, region_1=5, region_2=5, region_3=5)
    options = {"precision": "float32", "n_steps": 20}
    scores = {"fine_tune": [], "scratch": []}
    for seed in (0, 1):
        for strategy, source in (("fine_tune", {"encoder": start}), ("scratch", {"backbone": "tiny"})):
            clf = ImageClassifier(strategy=strategy, random_state=seed, **source, **options).fit(train)
            scores[strategy].append(recall(clf, test).mean())
    assert np.mean(scores["fine_tune"]) > np.mean(scores["scratch"]) + 0.1
    assert min(scores["fine_tune"]) > 0.7


def test_a_rare_class_is_recovered_by_balance(tissue, start):
    train, test = tissue
    train.obs["region"] = labels_of(train, region_1=30, region_2=30, region_3=5)
    options = {"strategy": "fine_tune", "precision": "float32", "n_steps": 20, "label_smoothing": 0.0}
    balanced = recall(ImageClassifier(start, **options).fit(train), test)
    assert balanced["region_3"] > 0.6
    assert balanced.min() > 0.5


@pytest.mark.parametrize("n_steps", [1, 9, 14])
def test_trainings_of_few_steps_have_a_warm_up_too(tissue, n_steps):
    clf = ImageClassifier(strategy="scratch", backbone="tiny", precision="float32", n_steps=n_steps).fit(tissue[0])
    assert clf.history["step"].tolist() == [n_steps]
    assert np.isfinite(clf.history["loss"]).all()


def test_loss_falls_and_is_recorded_with_the_rate(tissue, start):
    train, _ = tissue
    history = ImageClassifier(strategy="scratch", backbone="tiny", precision="float32", n_steps=70).fit(train).history
    assert history["step"].tolist() == [20, 40, 60, 70]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] - 0.1
    assert history["learning_rate"].is_monotonic_decreasing
