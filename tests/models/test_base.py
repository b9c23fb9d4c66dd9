"""Saving and loading: a folder that is whole, readable and executes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from histoweave.models import FusionClassifier, GenePCA
from histoweave.models._base import FORMAT, Model, prefixed, subset

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def clf():
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 30)
    return FusionClassifier(heads=("linear",)).fit({"x": rng.normal(size=(60, 3)) + (y == "b")[:, None]}, y)


@pytest.fixture
def saved(clf, tmp_path):
    return clf.save(tmp_path / "model")


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_folder_content(saved):
    assert sorted(p.name for p in saved.iterdir()) == FILES
    config = json.loads((saved / "config.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert config["model"] == "FusionClassifier"
    assert config["format"] == FORMAT
    assert {"histoweave", "numpy", "scikit-learn", "torch"} <= set(config["versions"])
    blob = (saved / "model.safetensors").read_bytes()
    assert blob[8:9] == b"{"  # the header is JSON: length, then text, then raw numbers
    assert b"pickle" not in blob


def test_nothing_in_the_folder_is_executed(saved, monkeypatch):
    import pickle

    import torch

    def refuse(*args, **kwargs):
        pytest.fail("unpickled something")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert FusionClassifier.load(saved).classes == ["a", "b"]


def test_unicode_path_and_missing_parents(clf, tmp_path):
    path = clf.save(tmp_path / "Größe 雪" / "modèle")
    assert FusionClassifier.load(str(path)).classes == ["a", "b"]


def test_existing_folder_needs_overwrite(clf, saved):
    before = (saved / "config.json").read_text()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        clf.save(saved)
    (saved / "stale").touch()
    assert clf.save(saved, overwrite=True) == saved
    assert sorted(p.name for p in saved.iterdir()) == FILES
    assert (saved / "config.json").read_text() == before


def test_folder_of_something_else_is_never_replaced(clf, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a saved model"):
        clf.save(tmp_path / "results", overwrite=True)
    assert (tmp_path / "results" / "thesis.txt").read_text() == "years of work"


def test_interrupted_save_leaves_nothing(clf, tmp_path, monkeypatch):
    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupt)  # the arrays are written by now
    with pytest.raises(KeyboardInterrupt):
        clf.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_overwrite_keeps_the_old_model(clf, saved, monkeypatch):
    monkeypatch.setattr(FusionClassifier, "_card", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clf.save(saved, overwrite=True)
    assert [p.name for p in saved.parent.iterdir()] == ["model"]
    assert FusionClassifier.load(saved).classes == ["a", "b"]


def test_read_only_folder(clf, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match="Choose a folder you may write to"):
        clf.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_unfitted_model_is_not_saved(tmp_path):
    with pytest.raises(RuntimeError, match="FusionClassifier is not fitted"):
        FusionClassifier().save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        FusionClassifier.load(saved)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a saved model"):
        FusionClassifier.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"\xff\xfe"),
        ("model.safetensors", b"\x80\x04K\x01."),  # a pickle
        ("model.safetensors", b""),
    ],
)
def test_damaged_file(saved, name, content):
    (saved / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        FusionClassifier.load(saved)


@pytest.mark.parametrize("content", [b"[]", b'"text"', b"{}"])
def test_json_of_something_else(saved, content):
    (saved / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="not written by histoweave"):
        FusionClassifier.load(saved)


@pytest.mark.parametrize(
    "change",
    [{"combinations": {"y": {"threshold": 0.5}}}, {"members": None}, {"members": {"x:linear": {"kind": "svm"}}}],
)
def test_config_that_does_not_fit_the_arrays(saved, change):
    rewrite(saved, **change)
    with pytest.raises(ValueError, match="damaged"):
        FusionClassifier.load(saved)


def test_newer_format(saved):
    rewrite(saved, format=FORMAT + 1, versions={"histoweave": "9.9"})
    with pytest.raises(ValueError, match=r"9\.9.*newer format.*Update"):
        FusionClassifier.load(saved)


def test_other_kind_of_model(saved):
    with pytest.raises(ValueError, match="holds a 'FusionClassifier'; load it with `hw.models.FusionClassifier.load`"):
        GenePCA.load(saved)
    assert isinstance(Model.load(saved), FusionClassifier)
    rewrite(saved, model="Unheard")
    with pytest.raises(ValueError, match="Unheard"):
        FusionClassifier.load(saved)


def test_names_of_arrays():
    arrays = {"a": np.zeros(1), "b.c": np.ones(1)}
    both = prefixed("x", arrays) | prefixed("xy", {"d": np.zeros(1)})
    assert list(both) == ["x.a", "x.b.c", "xy.d"]
    assert list(subset("x", both)) == ["a", "b.c"]
