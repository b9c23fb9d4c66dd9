"""From one set of sections to another: scores by hand, labels of the target, names, what was seen before."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._random import child_seeds
from histoweave._validate import HistoweaveWarning
from histoweave.models import RegionClassifier

GENES = RegionClassifier(image=None)
WAY = {"source": ["section_1", "section_2"], "target": "section_3"}


@pytest.fixture
def table(sections):
    return sections[sections.obs["library_id"] != "section_4"].copy()


def in_sections(table, *names):
    return table.obs["library_id"].isin(names).to_numpy()


def overall(scores, metric="macro_f1", arm="gene"):
    return scores[(scores["region"] == "overall") & (scores["metric"] == metric) & (scores["arm"] == arm)]


def test_scores_are_those_of_a_hand_made_fit(table):
    scores = hw.tl.transfer(table, **WAY, model=GENES, n_seeds=1, nulls=False)
    assert scores[["source", "target"]].drop_duplicates().to_numpy().tolist() == [
        ["section_1, section_2", "section_3"], ["section_3", "section_1, section_2"]]  # fmt: skip
    known = in_sections(table, "section_1", "section_2")
    for source, part in ((known, scores.iloc[0]["source"]), (~known, "section_3")):
        clf = RegionClassifier(image=None, random_state=child_seeds(0, 1)[0]).fit(table[source].copy())
        new = table[~source].copy()
        guess, p, truth = clf.predict(new)["predicted"], clf.predict_proba(new), new.obs["region"].astype(str)
        found = scores[(scores["source"] == part) & (scores["arm"] == "gene")].set_index(["region", "metric"])["value"]
        expected = hw.metrics.classification(truth, guess, p)
        for metric in ("macro_f1", "accuracy", "log_loss"):
            assert found["overall", metric] == pytest.approx(expected[metric], abs=1e-6)
        regions = hw.metrics.per_class(truth, guess, p)
        for region in regions.index:
            assert found[region, "recall"] == pytest.approx(regions.loc[region, "recall"])
            assert found[region, "f1"] == pytest.approx(regions.loc[region, "f1"])
    assert not scores["transductive"].any()
    assert (scores["leakage"] == "").all()


def test_labels_of_the_target(table):
    """The source's labels are shuffled: what is right then comes from the labels of the target."""
    known = in_sections(table, "section_1", "section_2")
    labels = table.obs["region"].astype(str).to_numpy()
    labels[known] = np.random.default_rng(0).permutation(labels[known])
    table.obs["region"] = labels
    before = table.copy()
    few = RegionClassifier(image=None, fusion_options={"heads": "linear", "n_inner": 2})
    options = {"model": few, "n_seeds": 2, "both_directions": False, "nulls": False}
    scores = hw.tl.transfer(table, **WAY, **options, n_target_labels=(0, 5, 15))
    found = overall(scores).pivot(index="seed", columns="n_target_labels", values="value")
    assert (found[15] > found[0] + 0.2).all()
    about = overall(scores).set_index(["seed", "n_target_labels"])
    assert about["n"].nunique() == 1
    sizes = pd.Series(labels[~known]).value_counts()
    assert about["n"].iloc[0] == (~known).sum() - np.minimum(15, sizes // 2).sum()
    assert about.loc[0, "n_labelled"].tolist() == [0, 15, int(np.minimum(15, sizes // 2).sum())]
    assert (about["n_train"] == known.sum() + about["n_labelled"]).all()
    again = hw.tl.transfer(table, **WAY, **options, n_target_labels=15)
    np.testing.assert_array_equal(overall(again)["value"], found[15])
    pd.testing.assert_frame_equal(table.obs, before.obs)
    assert set(table.uns["histoweave"]) == set(before.uns["histoweave"])


def test_regions_of_one_side_are_stated_and_not_scored(table):
    labels = table.obs["region"].astype(str).to_numpy()
    new = in_sections(table, "section_3")
    labels[new & (labels == "region_1")] = "necrosis"
    labels[new & (labels == "region_2")] = "Region 2"
    table.obs["region"] = labels
    with pytest.warns(HistoweaveWarning) as told:
        scores = hw.tl.transfer(table, **WAY, model=GENES, n_seeds=1, both_directions=False, nulls=False)
    said = " ".join(str(w.message) for w in told)
    assert "'Region 2' as 'region_2'" in said
    assert "Only in the source: 'region_1'; only in the target: 'necrosis'" in said
    assert set(scores["region"]) == {"overall", "region_2", "region_3"}
    assert scores["only_in_target"].unique().tolist() == ["necrosis"]
    assert scores["only_in_source"].unique().tolist() == ["region_1"]
    assert overall(scores)["n"].item() == (new & (labels != "necrosis")).sum()
    mapping = {"necrosis": "region_1", "Region 2": "region_2"}
    same = hw.tl.transfer(table, **WAY, model=GENES, n_seeds=1, mapping=mapping, nulls=False)
    assert set(same["only_in_target"]) == {""}


def test_target_seen_in_training_is_refused(table, cut):
    table.obs["donor"] = np.where(in_sections(table, "section_1", "section_3"), "same", "other")
    with pytest.raises(ValueError, match="donor 'same' has sections in both sets"):
        hw.tl.transfer(table, **WAY, model=GENES)
    scores = hw.tl.transfer(table, **WAY, model=GENES, n_seeds=1, nulls=False, allow_leakage=True)
    assert scores["leakage"].str.contains("same").all()
    table.obs["half"] = np.arange(table.n_obs) % 2
    with pytest.raises(ValueError, match="is in both sets"):
        hw.tl.transfer(table, source="0", target="1", group_key="half", model=GENES)
    encoder = hw.models.ImageEncoder().fit(cut[in_sections(cut, "section_1")].copy())
    given = RegionClassifier(image=encoder, genes=None)
    where = {"source": "section_1", "target": "section_2", "n_seeds": 1, "nulls": False}
    with pytest.raises(ValueError, match="encoder had been fitted on 'section_1'"):
        hw.tl.transfer(cut, **where, model=given)
    one_way = hw.tl.transfer(cut, **where | {"nulls": True}, model=given, both_directions=False)
    nulls = {"majority", "coordinates", "neighbour vote"}  # no depth: the model leaves the counts out
    assert set(one_way["arm"]) == {"image"} | nulls


def test_bad_sets(table):
    with pytest.raises(ValueError, match="`target` must be one of 'section_1'"):
        hw.tl.transfer(table, source="section_1", target="section_9", model=GENES)
    with pytest.raises(ValueError, match="is in `source` and in `target`"):
        hw.tl.transfer(table, source="section_1", target=["section_1", "section_2"], model=GENES)
    with pytest.raises(KeyError, match="hospital"):
        hw.tl.transfer(table, source="a", target="b", group_key="hospital", model=GENES)
    labels = table.obs["region"].astype(str)
    table.obs["region"] = labels.where(in_sections(table, "section_1", "section_2"), "other_" + labels)
    with pytest.raises(ValueError, match=r"0 regions in common .* Target|`mapping=`"):
        hw.tl.transfer(table, **WAY, model=GENES)
