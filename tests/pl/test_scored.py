"""Rows and probabilities that pictures of scores count."""

import numpy as np
import pandas as pd

from histoweave.pl import _scored


def test_rows_have_a_label_a_prediction_and_the_mask(table):
    frame = pd.DataFrame({1: np.linspace(0, 1, 36), "stroma": np.linspace(1, 0, 36)}, index=table.obs_names)
    frame.iloc[7] = np.nan
    table.obsm["p"] = frame
    table.obs["held_out"] = np.arange(36) < 12
    truth, kept = _scored.labels_and_probability(table, "region", "p", "held_out")
    rows = [i for i in range(12) if i not in (0, 7)]  # the first has no label
    assert list(truth) == list(table.obs["region"].iloc[rows])
    assert list(kept) == ["1", "stroma", "tumour"]
    np.testing.assert_allclose(kept["1"], np.linspace(0, 1, 36)[rows])
    assert (kept["tumour"] == 0).all()  # no column says tumour
    assert list(frame) == [1, "stroma"]  # the stored ones are as they were
