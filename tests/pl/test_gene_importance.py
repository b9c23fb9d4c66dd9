import numpy as np
import pandas as pd
import pytest

import histoweave as hw


@pytest.fixture
def explained(table):
    rng = np.random.default_rng(0)
    rows = []
    for section in ("all", "A"):
        for region in ("fat", "tumour"):
            values = np.sort(rng.random(20))[::-1]
            genes = rng.permutation([f"G{i}" for i in range(20)])
            rows.append(pd.DataFrame({"section": section, "region": region, "gene": genes, "importance": values,
                                      "rank": range(1, 21), "stability": 0.875 if section == "all" else np.nan,
                                      "de_score": 0.0, "de_rank": range(20, 0, -1)}))  # fmt: skip
    table.uns["gene_importance"] = pd.concat(rows, ignore_index=True)
    return table


@pytest.mark.parametrize("section", ["all", "A"])
def test_bars_are_the_best_genes_from_the_top_down(explained, section):
    axes = hw.pl.gene_importance(explained, section=section, n_genes=4)
    result = explained.uns["gene_importance"]
    assert axes.shape == (1, 2)
    for ax, region in zip(axes[0], ("fat", "tumour"), strict=True):
        top = result[(result["section"] == section) & (result["region"] == region)].head(4)
        assert [t.get_text() for t in ax.get_yticklabels()] == top["gene"].tolist()
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], top["importance"])
        assert ax.get_ylim()[0] > ax.get_ylim()[1]
        assert [t.get_text() for t in ax.texts] == ["20", "19", "18", "17"]
        assert ax.get_title() == region + (" (stability 0.88)" if section == "all" else "")


def test_missing_results_are_named(explained):
    with pytest.raises(ValueError, match="`section` must be one of 'all', 'A', got 'B'"):
        hw.pl.gene_importance(explained, section="B")
    del explained.uns["gene_importance"]
    with pytest.raises(KeyError, match=r"hw\.tl\.gene_importance"):
        hw.pl.gene_importance(explained)
