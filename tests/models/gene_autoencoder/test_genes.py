"""Genes found by name, identifier, version and case; what cannot be told apart is left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models.gene_autoencoder._genes import align, other_names

pytestmark = pytest.mark.filterwarnings("error")


def test_every_way_of_finding_a_gene():
    model = pd.DataFrame({"gene_ids": ["ENSG01", "ENSG00000000002.3", "", "", "", "ENSG00000000009"]},
                         index=["SAME", "SYMBOL", "ENSG00000000003.1", "Case", "GONE", "MOVED"])  # fmt: skip
    table = pd.DataFrame(
        {"symbol": ["x", "y", None, "OTHER", "MOVED"]},
        index=["SAME", "ENSG00000000002.7", "ENSG00000000003.2", "CASE", "ENSG00000000008"],
    )
    found = align(model.index, other_names(model), table)
    assert found.table["how"].tolist() == ["name", "version", "version", "case", "missing", "identifier"]
    assert found.missing == ["GONE"]
    assert found.renamed == {
        "SYMBOL": "ENSG00000000002.7", "ENSG00000000003.1": "ENSG00000000003.2", "Case": "CASE",
        "MOVED": "ENSG00000000008",
    }  # fmt: skip
    assert found.share == pytest.approx(5 / 6)
    assert str(found).startswith("5 of 6 genes present (83%): version 2")


def test_a_gene_that_could_be_two_is_neither():
    table = pd.DataFrame({"gene_name": ["TP53", "TP53", "KRT8"]}, index=["ENSG1", "ENSG2", "ENSG3"])
    found = align(["TP53", "KRT8"], [[], []], table)
    assert found.table["how"].tolist() == ["ambiguous", "identifier"]
    assert found.missing == ["TP53"]
    claimed = align(["Krt8", "KrT8"], [[], []], pd.DataFrame(index=["KRT8"]))  # nor can one be two
    assert claimed.missing == ["Krt8", "KrT8"]


def test_a_dot_is_a_version_of_ensembl_identifiers_only():
    found = align(["AL1.2", "ENSMUSG00000000001"], [[], []], pd.DataFrame(index=["AL1.5", "ENSMUSG00000000001.9"]))
    assert found.missing == ["AL1.2"]


@pytest.mark.parametrize("make", [lambda: hw.models.GenePCA(5), lambda: hw.models.GeneAutoencoder(
    5, widths=(16,), max_epochs=1)])  # fmt: skip
def test_encoders_read_a_table_of_identifiers(sections, make, tmp_path):
    ids = [f"ENSG{i:011d}" for i in range(sections.n_vars)]
    sections.var["gene_ids"] = ids
    encoder = make().fit(sections)
    expected = encoder.embed(sections)
    other = sections[:, np.random.default_rng(0).permutation(sections.n_vars)].copy()
    other.var_names = other.var["gene_ids"] + ".4"
    del other.var["gene_ids"]
    loaded = type(encoder).load(encoder.save(tmp_path / "model"))
    with pytest.warns(HistoweaveWarning, match="under other names .*ENSG"):
        found = loaded.embed(other)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert loaded.overlap(other) == 1
    assert len(loaded.alignment(other).renamed) == len(encoder.genes)


def test_repeated_names_are_an_error_with_the_fix(sections):
    encoder = hw.models.GenePCA(5).fit(sections)
    sections.var_names = ["GENE0001", *sections.var_names[:-1]]
    with pytest.raises(ValueError, match=r"1 gene names repeat \('GENE0001'\).*var_names_make_unique"):
        encoder.alignment(sections)
