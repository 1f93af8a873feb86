"""A stage's folder: `config.yaml` written first, `done.json` last, and between them whatever its verb writes.

A folder whose `done.json` bears the stage's fingerprint is finished; one whose `config.yaml` bears it was cut off and
its verb resumes it; one with another fingerprint holds another experiment. While a stage runs, its folder is locked. A
stage that is refused before it has done any work leaves nothing.
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlrc import ownership
from rlrc.config import Config
from rlrc.errors import UserError, is_bug, shorten
from rlrc.files import require_space, sha256_file, sha256_tree, write_json, write_text
from rlrc.finished import read_done
from rlrc.lock import locked
from rlrc.native import processor
from rlrc.ownership import DONE, LOCK, LOG, RECORD, read_record
from rlrc.process import rank, world_size
from rlrc.reading import require_file
from rlrc.served import address_of, as_written
from rlrc.verbs import VERBS
from rlrc.version import __version__

ADAPTER_FILE = "adapter_config.json"
SMALLEST_SPACE = 2**22
"""Bytes that must be free before a stage starts."""


@dataclass(frozen=True)
class Stage:
    """One verb with its config and the folder it writes to."""

    verb: str
    config: Config
    folder: Path
    sources: Mapping[str, str]
    """Identity of the contents of each path in the config: an earlier stage's fingerprint or a hash."""

    @property
    def fingerprint(self) -> str:
        """Hash that is equal for equal work: of the config with every path replaced by the identity of what lies
        there."""
        values = _replace_strings(self.config.model_dump(mode="json"), self.sources)
        text = json.dumps([self.verb, values, __version__], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def artifact(self) -> Path:
        return self.folder / VERBS[self.verb].artifact

    def result(self) -> dict[str, Any] | None:
        """Return what the finished stage measured, or None if it is not finished (or is another experiment).

        Raises:
            UserError: what it left is damaged.
        """
        if not ((self.folder / DONE).exists() and self.artifact.exists()):
            return None
        done = read_done(self.folder)
        read_record(self.folder)  # a damaged one is told here and not when the run is shown
        return done.result if done.fingerprint == self.fingerprint else None

    def run(self, restart: bool) -> dict[str, Any]:
        """Run the verb, or return at once what it measured when it ran before.

        Args:
            restart: whether a folder that holds another experiment of rlrc's is emptied or refused.

        Raises:
            UserError: the folder holds something else, another process writes to it, the verb finds its input wrong, or
                it cannot share its work among several processes.
        """
        if (result := self.result()) is not None:
            return result
        verb = VERBS[self.verb]
        if world_size() > 1 and not verb.several_processes:
            raise UserError(
                f"{self.verb} runs in one process, and WORLD_SIZE is {world_size()}; start it without `accelerate "
                "launch`, or unset RANK and WORLD_SIZE"
            )
        work = verb.function()
        if rank() > 0:
            return work(self.config, self.folder)
        self.check(restart)
        with ownership.made(self.folder), locked(self.folder):
            if (result := self.result()) is not None:  # another process ended it meanwhile
                return result
            self.check(restart)
            require_space(self.folder, SMALLEST_SPACE)
            started = time.monotonic()
            with self._nothing_left_if_refused():
                self._prepare()
                with _logged(self.folder / LOG):
                    result = work(self.config, self.folder)
            seconds = round(time.monotonic() - started, 1)
            done = {"fingerprint": self.fingerprint, "seconds": seconds, "machine": processor.described()}
            write_json(self.folder / DONE, done | {"result": result})
        return result

    def check(self, restart: bool) -> None:
        """Check, and touch nothing, that the folder is this stage's own, is new, or may be emptied.

        Raises:
            UserError: it may not.
        """
        ownership.require_plain(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder}: this is a file, and a folder would be written here; choose another --out")
        if ownership.is_empty(self.folder):
            return
        record = read_record(self.folder)
        if record is None:
            raise UserError(f"{self.folder} holds something else; choose another --out, or delete it first")
        if record.fingerprint == self.fingerprint:
            return
        if not restart and ownership.has_work(self.folder):
            raise UserError(f"{self.folder} holds something else; choose another --out, or delete it first")
        ownership.require_own(self.folder, ownership.stage_files(record.verb))

    def _prepare(self) -> None:
        """Leave the checked folder as the same stage left it when it was cut off, or begin it anew."""
        record = read_record(self.folder)
        if record is not None and record.fingerprint == self.fingerprint:
            return
        if record is not None:
            ownership.remove_contents(self.folder, ownership.stage_files(record.verb))
        config = self.config.model_dump(mode="json")
        if config.get("policy") is not None:
            config["policy"] = as_written(config["policy"])  # without the key of a server
        values = {"verb": self.verb, "fingerprint": self.fingerprint, "config": config}
        write_text(self.folder / RECORD, yaml.safe_dump(values, sort_keys=False))

    @contextmanager
    def _nothing_left_if_refused(self) -> Iterator[None]:
        """Remove the record and the log of a stage that ends before it has done any work.

        The log of a bug stays; as no work lies beside it, the next command may replace it.
        """
        try:
            yield
        except BaseException as error:
            if is_bug(error):
                error.add_note(f"{self.folder / LOG}")
            elif not ownership.has_work(self.folder):
                ownership.remove_files(self.folder, [f for f in ownership.stage_files(self.verb) if f != LOCK])
            raise


def path_fields(config: Config) -> dict[str, list[Path]]:
    """The paths a config names, by field."""
    found: dict[str, list[Path]] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        paths = [path for path in (value if isinstance(value, list | tuple) else [value]) if isinstance(path, Path)]
        if paths:
            found[name] = paths
    return found


def named_files(config: Config) -> dict[str, str]:
    """Hashes of the files that a config names by a text: names on the wire (`serve/names.py`), where they are a file's.

    Raises:
        UserError: it cannot be read.
    """
    names = getattr(config, "names", None)
    if not isinstance(names, str) or not names.endswith((".yaml", ".yml")):
        return {}
    return {names: content_hash([Path(names)])}


def content_hash(places: Sequence[Path]) -> str:
    """Hash of the contents of one or several places, whatever they are called.

    Raises:
        UserError: nothing lies there, or a pipe or a device.
    """
    hashes = [_content_hash(place) for place in places]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _content_hash(path: Path) -> str:
    if address := address_of(path):
        return hashlib.sha256(address.encode()).hexdigest()  # what lies there, only the server knows
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        return sha256_tree(path)
    require_file(path)
    return sha256_file(path)


def standalone(verb: str, config: Config, folder: Path) -> Stage:
    """A stage outside any recipe: all that it reads is identified by its contents.

    Raises:
        UserError: a path names nothing, or lies in the folder that is written to.
    """
    VERBS[verb].check(config)
    fields = path_fields(config)
    sources = named_files(config)
    for field, paths in fields.items():
        for path in paths:
            ownership.require_apart(path, {folder: str(folder)})
            everything = all_that_is_read(contents_of(field, path))
            for place in everything:
                ownership.require_apart(place, {folder: str(folder)})
            sources[str(path)] = content_hash(everything)
    return Stage(verb, config, folder, sources)


def all_that_is_read(path: Path) -> list[Path]:
    """`path` itself, and where it is the folder of a LoRA adapter also the policy that the adapter changes.

    Raises:
        UserError: the adapter is damaged, or its base cannot be had.
    """
    if not (path / ADAPTER_FILE).is_file():
        return [path]
    from rlrc.policies.lora import Adapter  # a heavy import, rarely needed

    return [path, Adapter(path).base]


def contents_of(field: str, path: Path) -> Path:
    """Return where the contents of a config's `field` are: `path`, or the download of the policy with this hub id.

    Raises:
        UserError: the text is no path, or the hub does not give it.
    """
    if "\0" in str(path):
        raise UserError(f"{field}: '{shorten(str(path))}' is no path: it has a zero byte")
    try:
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{field}: '{shorten(str(path))}' cannot be looked at ({error.strerror})") from error
    if exists or field not in ("policy", "policies", "teacher") or len(path.parts) != 2 or address_of(path):
        return path
    from rlrc.policies.checkpoint import on_disk  # a heavy import, rarely needed

    return on_disk(path)


def _replace_strings(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace_strings(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_strings(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Keep log records, warnings and the traceback of a failure in a file, away from the console."""
    handler = _LogFile(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what cut the stage off is told, and not that the log has no room for it
            root.exception("the stage was cut off")
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """A log whose failure to be written ends the stage, in place of a traceback on the console for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exception(), OSError):
            raise
        super().handleError(record)
