"""Writing without damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from histoweave._files import atomic_path, check_writable


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_appears_only_when_complete(tmp_path):
    with atomic_path(tmp_path / "new" / "ä b.txt") as path:
        path.write_text("half")
        assert not (tmp_path / "new" / "ä b.txt").exists()
    assert (tmp_path / "new" / "ä b.txt").read_text() == "half"
    assert names(tmp_path / "new") == ["ä b.txt"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_existing_target_is_replaced_whole(tmp_path, kind):
    target = tmp_path / "out"
    for content in ("old", "new"):
        with atomic_path(target) as path:
            if kind == "folder":
                path.mkdir()
                (path / content).write_text(content)
            else:
                path.write_text(content)
    assert names(tmp_path) == ["out"]
    assert names(target) == ["new"] if kind == "folder" else target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupted_writing_leaves_the_old_and_no_rest(tmp_path, error):
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept").touch()

    def write_half():
        with atomic_path(target) as path:
            path.mkdir()
            (path / "half").touch()
            raise error

    with pytest.raises(error):
        write_half()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["kept"]


def test_existing_target_is_refused_without_overwrite(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"), atomic_path(tmp_path / "out", overwrite=False):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_read_only_folder_is_named(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):  # permissions do not bind root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match=f"{tmp_path.name}.*Permission denied.*Choose a folder"):
        check_writable(tmp_path)
    assert names(tmp_path) == []


def test_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match="Cannot write to the folder"):
        check_writable(tmp_path / "file" / "folder")
