"""Findings from one pass through the encoders: each as if learned alone."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import MultiLabelClassifier, RegionClassifier

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture(scope="module")
def known(_sections):
    """Region 1, regions 1 or 2, and what no spot has; a third of the spots was not looked at for the second."""
    region = _sections.obs["region_truth"].astype(str)
    names = sorted(region.unique())
    frame = pd.DataFrame(index=_sections.obs_names)
    frame["first"], frame["early"], frame["never"] = region == names[0], region.isin(names[:2]), False
    frame = frame.astype(float)
    frame.iloc[np.random.default_rng(0).random(len(frame)) < 1 / 3, 1] = np.nan
    return frame


@pytest.fixture(scope="module")
def train(_sections, known):
    table = _sections.copy()
    table.obsm["findings"] = known
    return table[(table.obs["library_id"] != "section_4").to_numpy()].copy()


@pytest.fixture(scope="module")
def new(_sections):
    return _sections[(_sections.obs["library_id"] == "section_4").to_numpy()].copy()


@pytest.fixture(scope="module")
def clf(train):
    with pytest.warns(HistoweaveWarning, match="Left out.*'never'"):
        return MultiLabelClassifier(RegionClassifier(image=None)).fit(train)


def test_each_finding_is_what_a_region_classifier_of_it_says(clf, train, new):
    assert clf.findings == ["first", "early"]
    train = train.copy()
    for name in clf.findings:
        train.obs["alone"] = train.obsm["findings"][name].map({1.0: "present", 0.0: "absent"})
        alone = RegionClassifier(image=None).fit(train, labels_key="alone")
        np.testing.assert_allclose(clf.predict_proba(new)[name], alone.predict_proba(new)["present"], rtol=1e-6)
        expected = alone.predict(new)
        found = clf.predict(new)[name]
        assert (found["predicted"] == (expected["predicted"] == "present")).all()
        assert (found["abstain"] == expected["abstain"]).all()


@pytest.mark.parametrize("smoothing", ["potts", "similar"])
def test_answers_are_smoothed_as_those_of_a_region_classifier(train, new, known, smoothing):
    options = {"image": None, "fusion_options": {"smoothing": smoothing, "heads": "linear"}}
    train = train.copy()
    train.obsm["findings"] = known.loc[train.obs_names, ["early"]]
    both = MultiLabelClassifier(RegionClassifier(**options)).fit(train)
    train.obs["early"] = known["early"].reindex(train.obs_names).map({1.0: "present", 0.0: "absent"})
    alone = RegionClassifier(**options).fit(train, labels_key="early")
    assert alone.history["smoothing_strength"].max() > 0
    np.testing.assert_allclose(both.predict_proba(new)["early"], alone.predict_proba(new)["present"], atol=1e-6)
    decided = both.predict(new)["early", "predicted"].map({True: "present", False: "absent"})
    assert (decided == alone.predict(new)["predicted"]).all()


def test_donors_of_another_column(train):
    train = train.copy()
    train.obs["patient"] = train.obs.pop("donor")
    clf = MultiLabelClassifier(RegionClassifier(image=None, fusion_options={"heads": "linear"}))
    with pytest.warns(HistoweaveWarning, match="Left out.*'never'"):
        assert clf.fit(train, donor_key="patient").chain.inner_groups == "donor"


def test_findings_are_found(clf, new, known):
    table = hw.metrics.multilabel(known.loc[new.obs_names, clf.findings], clf.predict_proba(new))
    assert table["roc_auc"].min() > 0.9


def test_saving(clf, new, tmp_path):
    again = MultiLabelClassifier.load(clf.save(tmp_path / "model"))
    pd.testing.assert_frame_equal(again.predict(new), clf.predict(new))
    pd.testing.assert_frame_equal(again.history, clf.history)
    assert again.sections_seen == clf.sections_seen == ["section_1", "section_2", "section_3"]
    assert clf.history.groupby("finding").size().index.tolist() == ["early", "first"]


def test_spots_without_counts_are_missing(clf, new):
    new = new.copy()
    counts = new.layers["counts"].toarray()
    counts[3] = 0
    new.layers["counts"] = sp.csr_matrix(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HistoweaveWarning)  # that a spot is empty is said elsewhere
        found = clf.predict(new)
    assert found.iloc[3].xs("predicted", level=1).isna().all()
    assert found.iloc[3].xs("abstain", level=1).all()
    assert clf.findings == found.columns.get_level_values(0).unique().tolist()


def test_refused(train, new, clf):
    with pytest.raises(KeyError, match="labels_key='other'"):
        MultiLabelClassifier().fit(train, labels_key="other")
    same = train.copy()
    same.obsm["findings"] = pd.DataFrame(1.0, index=same.obs_names, columns=["all"])
    with pytest.raises(ValueError, match="No finding of 'all'"):
        MultiLabelClassifier().fit(same)
    same.obsm["findings"] = pd.DataFrame("yes", index=same.obs_names, columns=["all"])
    with pytest.raises(ValueError, match="must hold 1"):
        MultiLabelClassifier().fit(same)
    with pytest.raises(RuntimeError, match="not fitted"):
        MultiLabelClassifier().predict(new)
