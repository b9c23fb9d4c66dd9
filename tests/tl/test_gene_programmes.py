"""Programmes read, learned and scored on tables whose programmes are known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import histoweave as hw
from histoweave._validate import HistoweaveWarning


def markers(adata) -> dict[str, list[str]]:
    marker_of = adata.var["marker_of"]
    return {name: adata.var_names[marker_of == name].tolist() for name in sorted(set(marker_of) - {""})}


@pytest.mark.parametrize("method", ["aucell", "zscore"])
def test_each_programme_is_active_in_its_region(section, method):
    hw.tl.gene_programmes(section, programmes=markers(section), method=method, top_share=0.2)
    activity = section.obsm["gene_programmes"]
    region = section.obs["region_truth"].astype(str)
    for name in activity:
        assert roc_auc_score(region == name.replace("programme", "region"), activity[name]) > 0.9, name


def test_a_gmt_file_is_the_same_as_a_mapping(section, tmp_path):
    given = markers(section)
    lines = ["\t".join([name, "from a paper", *genes, "NOT_MEASURED"]) for name, genes in given.items()]
    path = tmp_path / "sets.gmt"
    path.write_text("\n".join(lines) + "\n")
    assert hw.tl.gene_programmes(section, programmes=path, key_added="file") == given
    hw.tl.gene_programmes(section, programmes=given, key_added="mapping")
    np.testing.assert_array_equal(section.obsm["file"], section.obsm["mapping"])
    assert section.uns["histoweave"]["file"]["params"]["programmes"] == str(path)


def test_learned_programmes_hold_markers_together():
    adata = hw.datasets.simulate_section(n_rows=16, n_cols=16, n_genes=200, image=False, gene_signal=2)
    found = hw.tl.gene_programmes(adata, n_programmes=12)
    group = {gene: name for name, genes in found.items() for gene in genes}
    for genes in markers(adata).values():
        _, counts = np.unique([group[g] for g in genes], return_counts=True)
        assert counts.max() / counts.sum() > 0.6
    assert hw.tl.gene_programmes(adata, n_programmes=12, key_added="again") == found


def test_missing_programmes_are_named_and_bad_input_changes_nothing(section, tmp_path):
    keys = set(section.obsm)
    with pytest.warns(HistoweaveWarning, match="1 of 2 programmes have fewer than 3 genes .* 'other'"):
        hw.tl.gene_programmes(section, programmes={"a": section.var_names[:5].tolist(), "other": ["X", "Y"]})
    assert section.obsm.pop("gene_programmes").columns.tolist() == ["a"]
    with pytest.raises(ValueError, match="None of the 1 programmes"):
        hw.tl.gene_programmes(section, programmes={"other": ["X", "Y", "Z"]})
    with pytest.raises(TypeError, match="is one string"):
        hw.tl.gene_programmes(section, programmes={"a": "GENE0001"})
    with pytest.raises(FileNotFoundError, match=r"none\.gmt"):
        hw.tl.gene_programmes(section, programmes=tmp_path / "none.gmt")
    with pytest.raises(ValueError, match="`top_share=0.001` of .* genes is the best one alone.*pass more than"):
        hw.tl.gene_programmes(section, programmes={"a": section.var_names[:5].tolist()}, top_share=0.001)
    section.layers["counts"] = section.X / 2
    with pytest.raises(ValueError, match="raw counts"):
        hw.tl.gene_programmes(section, programmes={"a": section.var_names[:5].tolist()})
    assert set(section.obsm) == keys
