from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import histoweave as hw
from histoweave.datasets._download import ATTEMPTS, CHUNK, RemoteFile, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """A host whose misbehaviour is set by attributes; it notes the ranges asked for."""

    content = CONTENT
    etag: str | None = '"v1"'
    ranges = True
    cut_after: int | None = None
    cuts_left = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, start = self.server, 0
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if self.path.startswith("/listing"):
            self._send(
                json.dumps(
                    [
                        {"name": "readme.txt", "download_url": server.url + "/readme.txt"},
                        {"name": "FHE_1.jpg", "download_url": server.url + "/FHE_1.jpg"},
                    ]
                ).encode()
            )
            return
        if asked and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(re.match(r"bytes=(\d+)-", asked).group(1))
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut_after is not None and server.cuts_left > 0:
            server.cuts_left -= 1
            body = body[: server.cut_after]
        self.wfile.write(body)

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(hw.settings, "offline", False)
    monkeypatch.setattr(hw.settings, "progress", False)
    host = Server()
    threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
    yield host
    host.shutdown()
    host.server_close()


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*") if p.is_file()}


def test_downloads_once(server: Server, tmp_path: Path) -> None:
    file = RemoteFile("a/b.bin", (f"{server.url}/b.bin",), SHA)
    path = fetch(file, tmp_path)
    assert path == tmp_path / "a" / "b.bin"
    assert path.read_bytes() == CONTENT
    assert fetch(file, tmp_path) == path
    assert server.asked == [None]
    assert names(tmp_path) == {"b.bin"}


def test_truncated_connection_is_resumed_within_one_call(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts_left = 100_000, 2
    path = fetch(RemoteFile("b.bin", (f"{server.url}/b.bin",), SHA), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={6 * CHUNK}-", f"bytes={12 * CHUNK}-"]


def test_broken_download_is_kept_and_resumed_by_the_next_call(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts_left = CHUNK + 10, ATTEMPTS
    file = RemoteFile("b.bin", (f"{server.url}/b.bin",), SHA)
    with pytest.raises(ConnectionError, match="kept and resumed"):
        fetch(file, tmp_path)
    assert names(tmp_path) == {"b.bin.part", "b.bin.part.json"}
    assert fetch(file, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={CHUNK * ATTEMPTS}-"
    assert names(tmp_path) == {"b.bin"}


@pytest.mark.parametrize("change", ["no_ranges", "new_version", "weak_tag", "part_too_long"])
def test_partial_download_that_cannot_be_continued_starts_again(server: Server, tmp_path: Path, change: str) -> None:
    part = tmp_path / "b.bin.part"
    part.write_bytes(b"x" * (400_000 if change == "part_too_long" else 1000))
    tag = 'W/"v1"' if change == "weak_tag" else '"v1"'
    server.etag = '"v2"' if change == "new_version" else tag
    server.ranges = change != "no_ranges"
    if change != "weak_tag":  # a weak tag is never noted
        note = {"url": f"{server.url}/b.bin", "version": tag}
        part.with_name("b.bin.part.json").write_text(json.dumps(note))
    path = fetch(RemoteFile("b.bin", (f"{server.url}/b.bin",), SHA), tmp_path)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == {"b.bin"}


@pytest.mark.parametrize("note", ["", '{"url": "http', "[]", "{}"])
def test_a_note_that_was_cut_short_is_no_obstacle(server: Server, tmp_path: Path, note: str) -> None:
    (tmp_path / "b.bin.part").write_bytes(CONTENT[:1000])
    (tmp_path / "b.bin.part.json").write_text(note)
    assert fetch(RemoteFile("b.bin", (f"{server.url}/b.bin",), SHA), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == {"b.bin"}


def test_wrong_content_is_removed_and_named(server: Server, tmp_path: Path) -> None:
    file = RemoteFile("b.bin", (f"{server.url}/b.bin",), "md5:" + "0" * 32)
    with pytest.raises(ValueError, match=r"b\.bin.*md5 .* expected 0000.*removed"):
        fetch(file, tmp_path)
    assert names(tmp_path) <= {"b.bin.part.json"}


def test_file_of_the_user_is_checked_but_never_removed(tmp_path: Path) -> None:
    (tmp_path / "b.bin").write_bytes(b"mine")
    with pytest.raises(ValueError, match="Delete"):
        fetch(RemoteFile("b.bin", ("http://127.0.0.1:1/b.bin",), SHA), tmp_path)
    assert (tmp_path / "b.bin").read_bytes() == b"mine"


def test_without_published_hash_the_first_download_is_recorded_and_held(server: Server, tmp_path: Path) -> None:
    file = RemoteFile("b.bin", (f"{server.url}/b.bin",))
    path = fetch(file, tmp_path)
    assert (tmp_path / "b.bin.sha256").read_text().strip() == SHA
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="damaged or changed"):
        fetch(file, tmp_path)


def test_mirror_is_tried_when_the_first_address_fails(server: Server, tmp_path: Path) -> None:
    urls = (f"{server.url}/missing", f"{server.url}/b.bin")
    assert fetch(RemoteFile("b.bin", urls, SHA), tmp_path).read_bytes() == CONTENT


def test_missing_everywhere_lists_each_address(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"404.*missing1.*404.*missing2"):
        fetch(RemoteFile("b.bin", (f"{server.url}/missing1", f"{server.url}/missing2"), SHA), tmp_path)
    assert names(tmp_path) == set()


def test_picture_is_found_in_a_listing(server: Server, tmp_path: Path) -> None:
    path = fetch(RemoteFile("images/F1.jpg", listing=f"{server.url}/listing"), tmp_path)
    assert path.read_bytes() == CONTENT


def test_offline_names_the_file_and_its_place(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hw.settings, "offline", True)
    with pytest.raises(FileNotFoundError, match="offline") as caught:
        fetch(RemoteFile("a/b.bin", (f"{server.url}/b.bin",), SHA), tmp_path)
    assert str(tmp_path / "a" / "b.bin") in str(caught.value)
    assert f"{server.url}/b.bin" in str(caught.value)
    assert server.asked == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(CONTENT)
    assert fetch(RemoteFile("a/b.bin", (), SHA), tmp_path).exists()


def test_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a folder")
    with pytest.raises(PermissionError, match="Cannot write"):
        fetch(RemoteFile("a/b.bin", (f"{server.url}/b.bin",), SHA), tmp_path)
