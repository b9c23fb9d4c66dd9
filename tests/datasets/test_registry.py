from __future__ import annotations

import re
from pathlib import Path

import pytest

import histoweave as hw
from histoweave.datasets._registry import Source, _registry


def test_available_lists_what_can_be_called() -> None:
    table = hw.datasets.available()
    assert list(table.index) == ["visium_breast", "dlpfc", "her2st", "mob_st", "pathmnist"]
    for name, row in table.iterrows():
        assert callable(getattr(hw.datasets, name))
        for column in ("description", "licence", "citation", "homepage", "sections", "files"):
            assert row[column]
    assert table["donors"].to_dict() == {
        "visium_breast": 1,
        "dlpfc": 3,
        "her2st": 8,
        "mob_st": 5,
        "pathmnist": 0,
    }
    assert table["sections"].map(len).to_dict() == {
        "visium_breast": 2, "dlpfc": 12, "her2st": 36, "mob_st": 12, "pathmnist": 4,
    }  # fmt: skip


@pytest.mark.parametrize("name", list(_registry()))
def test_every_entry_can_be_filled_in(name: str) -> None:
    entry = _registry()[name]
    for section in entry["sections"]:
        source = Source(name, section, None)
        for kind, spec in entry["files"].items():
            assert bool(spec.get("urls")) != bool(spec.get("listing"))
            assert set(spec.get("hashes", {})) <= set(entry["sections"])
            for digest in spec.get("hashes", {}).values():
                assert re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", digest)
            for text in (spec["path"], spec.get("listing", ""), *spec.get("urls", [])):
                assert "{" not in text.format(section=section, donor=source.donor)
            for url in spec.get("urls", [spec.get("listing")]):
                assert url.startswith("https://")
            assert source.has(kind) or kind == "labels"


def test_offline_says_which_file_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hw.settings, "offline", True)
    monkeypatch.setattr(hw.settings, "data_dir", tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        hw.datasets.pathmnist(split="test")
    message = str(caught.value)
    assert str(tmp_path / "pathmnist" / "pathmnist.npz") in message
    assert "https://zenodo.org/records/10519652/files/pathmnist.npz" in message
