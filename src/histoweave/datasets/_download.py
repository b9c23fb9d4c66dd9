"""One public file: from the cache folder, else downloaded, resumed where it broke off, and checked."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests

from histoweave._files import check_writable
from histoweave._settings import settings

log = logging.getLogger("histoweave")

ATTEMPTS = 4
CHUNK = 1 << 14  # what a broken connection loses at most
TIMEOUT_S = 30


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public data set.

    Attributes
    ----------
    path
        Where it belongs in the data folder.
    urls
        Where it can be had, tried in this order.
    hash
        ``"sha256:..."`` or ``"md5:..."`` as published, None where its makers publish none.
    listing
        Address of a GitHub folder listing whose only picture is the file, for files of unpredictable name.
    """

    path: str
    urls: tuple[str, ...] = ()
    hash: str | None = None
    listing: str | None = None


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Return the local path of ``file`` in ``folder``, downloading it when it is not there.

    Raises
    ------
    FileNotFoundError
        Not there, and ``settings.offline`` forbids to download.
    ConnectionError
        No address could be reached, or the connection kept breaking; what has arrived is kept and resumed.
    ValueError
        The content is not what was published (a download is then removed, a file of the user's is not).
    """
    target = folder / file.path
    recorded = target.with_name(target.name + ".sha256")
    if target.exists():
        expected = file.hash or (recorded.read_text().strip() if recorded.exists() else None)
        if expected is not None:
            _check(target, expected, f"Delete {str(target)!r} to download it again.")
        return target
    if settings.offline:
        sources = ", ".join(file.urls) or file.listing
        msg = (
            f"{str(target)!r} is missing and `hw.settings.offline` (HISTOWEAVE_OFFLINE) forbids to download. "
            f"Get it from {sources} and place it there under that name, or switch offline off."
        )
        raise FileNotFoundError(msg)
    check_writable(target.parent)
    _download(file, target)
    if file.hash is None:
        digest = f"sha256:{pooch.file_hash(str(target))}"
        recorded.write_text(digest + "\n")
        log.info("%s: no published hash; recorded %s", target, digest)
    return target


def _download(file: RemoteFile, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    failures: list[Exception] = []
    for url in file.urls or (file.listing,):
        try:
            _transfer(_only_picture(url) if url == file.listing else url, part)
            if file.hash is not None:
                _check(part, file.hash, "The download was removed; try again later.")
        except requests.RequestException as error:
            failures.append(error)
        except ValueError as error:
            part.unlink(missing_ok=True)
            failures.append(error)
        else:
            part.replace(target)
            _version_file(part).unlink(missing_ok=True)
            return
    reasons = " | ".join(str(f) for f in failures)
    if not isinstance(failures[-1], requests.RequestException):
        raise ValueError(reasons) from failures[-1]
    msg = (
        f"Could not download {target.name!r}: {reasons}. Check the network and call again: what has arrived "
        f"is kept and resumed. Or place the file at {str(target)!r} yourself."
    )
    raise ConnectionError(msg) from failures[-1]


def _check(path: Path, expected: str, advice: str) -> None:
    algorithm, _, digest = expected.rpartition(":")
    found = pooch.file_hash(str(path), alg=algorithm)
    if found != digest:
        msg = f"{str(path)!r} has {algorithm} {found}, expected {digest}: damaged or changed. {advice}"
        raise ValueError(msg)


def _only_picture(listing: str) -> str:
    answer = requests.get(listing, timeout=TIMEOUT_S)
    answer.raise_for_status()
    pictures = [e["download_url"] for e in answer.json() if e["name"].lower().endswith((".jpg", ".jpeg", ".png"))]
    if len(pictures) != 1:
        msg = f"{listing} lists {len(pictures)} pictures instead of one"
        raise requests.RequestException(msg)
    return pictures[0]


def _transfer(url: str, part: Path) -> None:
    """Download to ``part``, going on where an earlier attempt or call stopped."""
    for attempt in range(ATTEMPTS):
        try:
            return _continue(url, part)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if attempt == ATTEMPTS - 1:
                raise


def _continue(url: str, part: Path) -> None:
    headers = {"Accept-Encoding": "identity"}  # so that lengths and ranges count the file's own bytes
    version = _version(url, part)
    have = part.stat().st_size if version and part.exists() else 0
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
            msg = f"{url}: the partial download was no beginning of the file"
            raise requests.ConnectionError(msg)
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0
            _remember_version(url, part, answer)
        _write(answer, part, have)


def _write(answer: requests.Response, part: Path, have: int) -> None:
    from tqdm.auto import tqdm

    length = answer.headers.get("Content-Length")
    total = have + int(length) if length else None
    name = part.name.removesuffix(".part")
    bar = tqdm(
        total=total,
        initial=have,
        unit="B",
        unit_scale=True,
        desc=name,
        disable=not settings.progress,
        leave=False,
    )
    with bar, part.open("ab" if have else "wb") as out:
        for chunk in answer.iter_content(CHUNK):
            out.write(chunk)
            bar.update(len(chunk))
    got = part.stat().st_size
    if total is not None and got != total:
        msg = f"{answer.url}: the connection broke after {got} of {total} bytes"
        raise requests.ConnectionError(msg)


def _version_file(part: Path) -> Path:
    """Where the server's version of a partial file is noted, so that two versions are never joined."""
    return part.with_name(part.name + ".json")


def _version(url: str, part: Path) -> str | None:
    if not _version_file(part).exists():
        return None
    try:
        known = json.loads(_version_file(part).read_text())
        return known["version"] if known["url"] == url else None
    except (ValueError, TypeError, KeyError):  # cut short; the download starts anew
        return None


def _remember_version(url: str, part: Path, answer: requests.Response) -> None:
    tag = answer.headers.get("ETag", "")
    # A weak tag does not promise equal bytes, so it cannot vouch for joining two parts.
    version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")
    if version:
        _version_file(part).write_text(json.dumps({"url": url, "version": version}))
    else:
        _version_file(part).unlink(missing_ok=True)
