import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import histoweave as hw


@pytest.fixture
def divided(table):
    """Left half (tumour, one spot unlabelled) in domain 0; the right half is divided by rows into 1 and 2."""
    x, y = table.obsm["spatial"].T
    table.obs["domain"] = np.where(x < 350, "0", np.where(y < 350, "1", "2"))
    return table


def test_domains_stand_beside_labels_with_their_agreement(divided):
    axes = hw.pl.domains(divided)
    assert axes.shape == (1, 2)
    labelled = divided.obs["region"].notna()
    ari = hw.metrics.clustering(divided.obs["region"], divided.obs["domain"])["adjusted_rand"]
    assert axes[0, 1].get_title() == f"domain, 3 in all; ARI {ari:.2f}"
    assert labelled.sum() == 35


def test_without_labels_domains_stand_alone(divided):
    divided.obs["region"] = None
    ax = hw.pl.domains(divided, image=False)
    assert isinstance(ax, plt.Axes)
    assert ax.get_title() == "domain, 3 in all"


def test_table_holds_the_counts(divided):
    ax = hw.pl.overlap(divided, kind="table")
    rows = [text.get_text() for text in ax.get_yticklabels()]
    columns = [text.get_text() for text in ax.get_xticklabels()]
    assert rows == ["stroma  (n = 18)", "tumour  (n = 17)"]
    assert sorted(columns) == ["0", "1", "2"]
    assert columns[-1] == "0"  # beside the tumour, the last row
    shown = {
        (rows[round(t.get_position()[1])][:6], columns[round(t.get_position()[0])]): t.get_text() for t in ax.texts
    }
    assert shown == {
        ("stroma", "0"): "0", ("stroma", "1"): "9", ("stroma", "2"): "9",
        ("tumour", "0"): "17", ("tumour", "1"): "0", ("tumour", "2"): "0",
    }  # fmt: skip
    assert "35 spots, ARI" in ax.get_title()


def test_bands_are_as_wide_as_what_is_shared(divided):
    ax = hw.pl.overlap(divided)
    heights = sorted(round(bar.get_height() * 35) for bar in ax.patches)
    assert heights == [9, 9, 17, 17, 18]
    bands = []
    for band in ax.collections:
        vertices = band.get_paths()[0].vertices
        for end in (0, 1):
            y = vertices[np.isclose(vertices[:, 0], end), 1]
            bands.append(round(np.ptp(y) * 35))
    assert sorted(bands) == [9, 9, 9, 9, 17, 17]
    assert {"tumour", "stroma", "0", "1", "2", "region", "domain"} == {text.get_text() for text in ax.texts}


def test_bands_stay_within_their_parts(divided):
    ax = hw.pl.overlap(divided)
    bars = [(bar.get_x() > 0.5, bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches]
    for band in ax.collections:
        vertices = band.get_paths()[0].vertices
        for end in (0, 1):
            y = vertices[np.isclose(vertices[:, 0], end), 1]
            inside = [a - 1e-9 <= y.min() and y.max() <= b + 1e-9 for side, a, b in bars if side == bool(end)]
            assert sum(inside) == 1


def test_bad_input(divided):
    with pytest.raises(KeyError, match=r"hw\.tl\.domains"):
        hw.pl.domains(divided, key="domian")
    with pytest.raises(KeyError, match="second"):
        hw.pl.overlap(divided, second="nonesuch")
    with pytest.raises(ValueError, match="'alluvial', 'table'"):
        hw.pl.overlap(divided, kind="sankey")
    divided.obs["domain"] = pd.Series(None, index=divided.obs_names, dtype=object)
    with pytest.raises(ValueError, match="No spot has a value in both"):
        hw.pl.overlap(divided)
