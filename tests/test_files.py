"""A file is whole or absent, whatever happens while it is written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlrc.errors import UserError
from rlrc.files import atomic_path, require_space, sha256_tree, write_json, write_text
from rlrc.ownership import CHECKPOINT, Owned
from rlrc.reading import read_json

KILLED = """
import os, signal, sys
from pathlib import Path
from rlrc.files import atomic_path
from rlrc.ownership import CHECKPOINT
with atomic_path(Path(sys.argv[1]), CHECKPOINT) as aside:
    aside.mkdir()
    (aside / "config.json").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("one", "two"):
        with atomic_path(path, Owned(("one", "two"), proof="one")) as aside:
            aside.mkdir()
            (aside / text).write_text(text)
    assert [child.name for child in path.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    with atomic_path(path, CHECKPOINT) as aside:
        aside.mkdir()
    assert list(tmp_path.iterdir()) == [path]


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    other = tmp_path / f".file.{os.getppid()}.tmp"
    other.write_text("being written")
    with atomic_path(path) as aside:
        aside.write_text("x")
    assert other.exists()


def test_a_disk_too_small_is_told_before_writing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the disk is full"):
        require_space(tmp_path / "big", 2**62)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="disk is full"),
        atomic_path(tmp_path / "file"),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x" * 10_000)
    assert not list(tmp_path.iterdir())


def test_a_trees_hash_follows_links_and_ends(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "rows.bin").write_bytes(b"1")
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "data").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(dataset)
    before = sha256_tree(dataset)
    (tmp_path / "far" / "rows.bin").write_bytes(b"22")
    assert sha256_tree(dataset) != before


def test_what_looks_like_a_leftover_of_a_file_stays(tmp_path: Path) -> None:
    mine = [tmp_path / ".note.txt.999999999.old", tmp_path / f".note.txt.{10**25}.tmp"]
    for path in mine:
        path.write_text("mine")
    write_text(tmp_path / "note.txt", "new")
    assert [path.read_text() for path in mine] == ["mine", "mine"]


def test_a_folder_that_was_moved_off_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".checkpoint.999999999.old"
    aside.mkdir()
    (aside / "compression.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "checkpoint", CHECKPOINT):
        raise KeyboardInterrupt
    assert (tmp_path / "checkpoint" / "compression.json").read_text() == "{}"
