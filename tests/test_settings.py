"""Settings of a session."""

from __future__ import annotations

from pathlib import Path

import pytest

import histoweave as hw
from histoweave._settings import Settings, track


def test_package_offers_the_one_object():
    from histoweave._settings import settings

    assert hw.settings is settings


def test_data_folder(monkeypatch):
    monkeypatch.delenv("HISTOWEAVE_DATA_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Settings().data_dir == Path.home() / ".cache" / "histoweave"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert Settings().data_dir == Path("/cache/histoweave")
    monkeypatch.setenv("HISTOWEAVE_DATA_DIR", "/data/ä")
    assert Settings().data_dir == Path("/data/ä")


@pytest.mark.parametrize(("value", "offline"), [("", False), ("0", False), ("1", True)])
def test_offline(monkeypatch, value, offline):
    monkeypatch.setenv("HISTOWEAVE_OFFLINE", value)
    assert Settings().offline is offline


@pytest.mark.parametrize("progress", [True, False])
def test_track_yields_everything_and_is_silent_when_off(monkeypatch, capsys, progress):
    monkeypatch.setattr(hw.settings, "progress", progress)
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert ("counting" in capsys.readouterr().err) is progress
