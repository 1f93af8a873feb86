"""The downloader, against a server of this process: resume, cut connections, wrong and missing files."""

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rlrc import assets, cli
from rlrc.assets import download, fetch
from rlrc.envs.putonplate import files
from rlrc.envs.putonplate.publishers import Archive, PublishedFile, archives, published_files
from rlrc.errors import UserError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `contents` by path; sends at most `cut_after` bytes a connection, and ranges if `ranges`."""

    def __init__(self) -> None:
        self.contents = {"/whole.bin": CONTENT}
        self.cut_after = len(CONTENT)
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                outer.requests.append((self.path, asked))
                if self.path not in outer.contents:
                    self.send_error(404)
                    return
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and outer.ranges else 0
                content = outer.contents[self.path]
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : start + outer.cut_after])

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(assets, "_PAUSE", 0.0)
    server = Server()
    yield server
    server.close()


def test_a_file_comes_whole_and_once(server: Server, tmp_path: Path) -> None:
    wanted = [PublishedFile(f"{server.address}/whole.bin", "some/where.bin", SHA256)]
    assert fetch(wanted, tmp_path) == (1, 0)
    assert (tmp_path / "some" / "where.bin").read_bytes() == CONTENT
    assert fetch(wanted, tmp_path) == (0, 1) and len(server.requests) == 1
    (tmp_path / "some" / "where.bin").write_bytes(b"something else")
    assert fetch(wanted, tmp_path) == (1, 0)
    assert (tmp_path / "some" / "where.bin").read_bytes() == CONTENT


def test_a_cut_connection_is_continued_from_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cut_after = 300_000
    download(f"{server.address}/whole.bin", tmp_path / "whole.bin", SHA256)
    assert (tmp_path / "whole.bin").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, *(f"bytes={n * 300_000}-" for n in (1, 2, 3))]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_what_an_earlier_run_left_is_continued(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    (tmp_path / "whole.bin.part").write_bytes(CONTENT[:1000])
    download(f"{server.address}/whole.bin", tmp_path / "whole.bin", SHA256)
    assert (tmp_path / "whole.bin").read_bytes() == CONTENT and not (tmp_path / "whole.bin.part").exists()
    assert server.requests == [("/whole.bin", "bytes=1000-")]


def test_a_run_killed_before_the_rename_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "whole.bin.part").write_bytes(CONTENT)
    download(f"{server.address}/whole.bin", tmp_path / "whole.bin", SHA256)
    assert (tmp_path / "whole.bin").read_bytes() == CONTENT


def test_another_file_than_the_known_one_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.contents["/whole.bin"] = CONTENT[:-1] + b"?"
    with pytest.raises(UserError, match="not the file that is known"):
        download(f"{server.address}/whole.bin", tmp_path / "whole.bin", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stops_answering_leaves_what_came(server: Server, tmp_path: Path) -> None:
    server.cut_after = 0
    (tmp_path / "whole.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(UserError, match="continues from here"):
        download(f"{server.address}/whole.bin", tmp_path / "whole.bin", SHA256)
    assert (tmp_path / "whole.bin.part").read_bytes() == CONTENT[:1000]


def test_a_file_that_is_not_there_is_said_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="404"):
        download(f"{server.address}/nothing.bin", tmp_path / "nothing.bin", None)
    assert len(server.requests) == 1


def test_the_verb_fetches_files_and_unpacks_the_one_that_is_needed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/stages/table.glb", "a table")
        archive.writestr("data/other.txt", "unneeded")
    server.contents["/data.zip"] = (tmp_path / "data.zip").read_bytes()
    known = hashlib.sha256(server.contents["/data.zip"]).hexdigest()
    stage = Archive(f"{server.address}/data.zip", known, "stages/table.glb", files.STAGE)
    monkeypatch.setenv("RLRC_ASSETS", str(tmp_path))
    monkeypatch.setattr(
        assets, "published_files", lambda: [PublishedFile(f"{server.address}/whole.bin", "a.bin", SHA256)]
    )
    monkeypatch.setattr(assets, "archives", lambda: [stage])
    monkeypatch.setattr(sys, "argv", ["rlrc", "assets", "maniskill"])
    cli.main()
    folder = tmp_path / "maniskill"
    assert (folder / files.STAGE).read_text() == "a table"
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a.bin", "bridge_table_1_v1.glb"]
    count = len(server.requests)
    cli.main()
    assert len(server.requests) == count


def test_a_missing_file_is_one_line_that_names_it_and_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLRC_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match="rlrc assets maniskill") as caught:
        files.require()
    assert "001_carrot_simpler" in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_file_has_a_publisher_and_the_known_ones_are_those_we_saw(shared: Path) -> None:
    seen = shared / "assets" / "maniskill"
    if not seen.is_dir():
        pytest.skip(f"simulator files not found: {seen} does not exist")
    published = {file.path: file for file in published_files()}
    assert all(file.url.startswith("https://") and " " not in file.url for file in published.values())
    unknown = [path for path, file in published.items() if file.sha256 is None]
    assert len(published) == 165 and len(unknown) == 3 and len(archives()) == 1
    for path, file in published.items():
        if file.sha256 is not None:
            assert hashlib.sha256((seen / path).read_bytes()).hexdigest() == file.sha256, path
