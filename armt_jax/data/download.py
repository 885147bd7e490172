"""Fetching a published archive, checked against its SHA-256; and the lock for what one process does for all."""

import fcntl
import hashlib
import http.client
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from absl import logging

from armt_jax.data.errors import DataError

_TIMEOUT_S = 60
_BLOCK = 1 << 20


def download_and_unzip(urls: Sequence[str], sha256: str, members: Sequence[str], folder: Path) -> None:
    """Puts the members of a zip file (paths inside it) into `folder`, by their file names; nothing if the checksum is wrong.

    Args:
        urls: mirrors, tried in order. sha256: of the zip file.

    Raises:
        DataError: no mirror can be reached or gives the right file; the message lists what each of them did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    # Not named by the process: in two containers that share a disk, two processes may have the same number.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        archive = Path(partial, "archive.zip")
        for url in urls:
            logging.info("downloading %s", url)
            try:
                got = _fetch(url, archive)
            except (OSError, http.client.HTTPException) as e:  # an address that cannot be reached, or an answer that breaks off
                failures.append(f"{url}: {e!r}")
                continue
            if got == sha256:
                return _unzip(archive, members, folder)
            failures.append(f"{url}: its SHA-256 is {got}, and {sha256} was expected")
    raise DataError("the download failed: " + "; ".join(failures))


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Processes of one machine prepare what is in `root` one after the other."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "preparing.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(url: str, target: Path) -> str:
    """Saves a file. Returns its SHA-256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source, target.open("wb") as out:
        while block := source.read(_BLOCK):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def _unzip(archive: Path, members: Sequence[str], folder: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        for member in members:
            # A file under its own name is a whole one.
            partial = archive.with_name(Path(member).name)
            with source.open(member) as inside, partial.open("wb") as out:
                shutil.copyfileobj(inside, out, _BLOCK)
            partial.replace(folder / partial.name)
