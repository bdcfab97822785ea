"""Fetch archives of corpora: resumed where they broke off, checked, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from speech_adapters.errors import InputError
from speech_adapters.locks import locked

TIMEOUT = 8.0
"""Seconds without an answer after which the network counts as absent."""


def download_archive(url: str, target: Path, md5: str | None = None) -> Path:
    """Fetch a zip or tar archive, check it, unpack it as the folder ``target``; a folder that is there is left alone.

    An archive that already lies beside ``target`` is used instead of the network. It is removed once unpacked. Where
    it holds a single folder, ``target`` is that folder.

    Raises:
        InputError: no network, another checksum, or an archive that is cut short.
    """
    archive = target.parent / url.rsplit("/", 1)[1]
    if target.is_dir():
        return target
    with locked(archive):
        if not target.is_dir():  # unpacked by another process meanwhile
            _download(url, archive, target, md5)
    return target


def _download(url: str, archive: Path, target: Path, md5: str | None) -> None:
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        fetch(url, archive, mirror="url=")
    if md5 is not None:
        check_md5(archive, md5)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        content_folder = Path(folder) / "content"  # tempfile wants to remove the outer folder itself
        try:
            if archive.suffix == ".zip":
                with zipfile.ZipFile(archive) as content:
                    content.extractall(content_folder)  # checks each file's CRC
            else:
                with tarfile.open(archive) as content:
                    content.extractall(content_folder, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            reason = str(error).partition("\n")[0]  # tarfile lists every compression that it tried
            raise InputError(
                f"{archive}: cannot be unpacked ({reason}); remove the file and run this again"
            ) from error
        unpacked = [path for path in content_folder.iterdir() if path.name != "__MACOSX"]
        single = len(unpacked) == 1 and unpacked[0].is_dir()
        os.replace(unpacked[0] if single else content_folder, target)
    archive.unlink()


def fetch(url: str, archive: Path, mirror: str = "base_url=") -> None:
    """Fetch into ``<archive>.part``, going on from what is there, and rename it when it is whole.

    Raises:
        InputError: no network, or a broken connection; says how to go on, by hand or by the argument ``mirror``.
    """
    from tqdm import tqdm

    part = archive.with_name(archive.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    try:
        try:
            response = _request(url, done)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not done:
                raise
            response, done = _request(url, 0), 0  # asked for more than there is: the part is not of this file
        with response:
            if response.status != 206:  # the server sends all of it again
                done = 0
            total = done + int(response.headers.get("Content-Length", 0))
            with (
                part.open("ab" if done else "wb") as file,
                tqdm(desc=archive.name, total=total, initial=done, unit="B", unit_scale=True) as bar,
            ):
                while block := response.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        if part.stat().st_size < total:
            raise OSError(f"connection closed at {part.stat().st_size} of {total} bytes")
    except (OSError, HTTPException) as error:  # URLError and timeouts are among the OSErrors
        raise InputError(
            f"{url}: cannot be downloaded ({getattr(error, 'reason', None) or error}). Run this again when online: it "
            f"resumes; or fetch the file by hand and put it at {archive}; or name a mirror with {mirror}"
        ) from error
    os.replace(part, archive)


def check_md5(archive: Path, expected: str) -> None:
    """Raise :class:`InputError` where the file has another MD5."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise InputError(f"{archive}: MD5 {found}, expected {expected}; remove the file and run this again")


def _request(url: str, start: int) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(request, timeout=TIMEOUT)
