"""Predictions in a table: one set of columns, through files and back."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from histoweave._record import recorded
from histoweave.tl._write import write_prediction


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_columns_survive_files(section, tmp_path, suffix):
    n = section.n_obs
    prediction = pd.DataFrame({"predicted": ["a", None] * (n // 2), "confidence": [0.75, np.nan] * (n // 2)})
    prediction["abstain"] = prediction["predicted"].isna()
    probability = pd.DataFrame({"a": [0.75, np.nan] * (n // 2), "b": [0.25, np.nan] * (n // 2)})
    write_prediction(section, "x", prediction, probability, "tl.f", {"arg": 1}, random_state=0, seen_in_training=[])
    path = tmp_path / f"t.{suffix}"
    getattr(section, f"write_{suffix}")(path)
    back = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
    assert list(back.obs["x_predicted"].cat.categories) == ["a", "b"]
    assert back.obs["x_predicted"].isna().sum() == n // 2
    assert back.obs["x_abstain"].dtype == bool
    np.testing.assert_allclose(back.obs["x_confidence"], prediction["confidence"])
    pd.testing.assert_frame_equal(
        back.obsm["x_probability"].reset_index(drop=True), probability.astype("float32"), check_names=False
    )
    entry = recorded(back, "x_predicted")
    assert entry["function"] == "tl.f"
    assert list(entry["classes"]) == ["a", "b"]
