"""Hashes of large files, remembered from one process to the next."""

import hashlib
import os
from pathlib import Path

import pytest

from rlrc import files
from rlrc.files import sha256_file, sha256_tree


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large and has not changed for a while."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "REMEMBERED_BYTES", 4)
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    path = tmp_path / "data" / "large"
    path.parent.mkdir()
    path.write_bytes(b"first contents")
    return path


def another_process() -> None:
    files._sha256.cache_clear()


def test_a_large_file_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashlib.sha256(b"first contents").hexdigest()
    assert sha256_file(file) == expected
    tree = sha256_tree(file.parent)
    another_process()
    monkeypatch.setattr(files, "_read_sha256", lambda path: pytest.fail("read again"))
    assert sha256_file(file) == expected
    assert sha256_tree(file.parent) == tree


def test_a_file_that_has_changed_is_read_again(file: Path) -> None:
    before = file.stat()
    sha256_file(file)
    file.write_bytes(b"other contents")  # of the same length
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # and, it claims, of the same time
    another_process()
    assert sha256_file(file) == hashlib.sha256(b"other contents").hexdigest()


@pytest.mark.parametrize("record", [b"", b"\xff", b"0" * 63, b"x" * 64])
def test_a_damaged_record_is_not_believed(file: Path, record: bytes) -> None:
    expected = sha256_file(file)
    (kept,) = files.hashes_folder().iterdir()
    kept.write_bytes(record)
    another_process()
    assert sha256_file(file) == expected
    assert kept.read_text() == expected


def test_small_files_and_fresh_ones_leave_no_record(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SETTLED_NS", 10**11)
    sha256_file(file)
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    small = file.with_name("small")
    small.write_bytes(b"abc")
    assert sha256_file(small) == hashlib.sha256(b"abc").hexdigest()
    assert not files.hashes_folder().exists()


def test_a_folder_that_cannot_be_written_does_no_harm(file: Path) -> None:
    files.cache_folder().parent.mkdir()
    files.cache_folder().write_text("a file of this name")
    assert sha256_file(file) == hashlib.sha256(b"first contents").hexdigest()
