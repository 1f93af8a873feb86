"""A stage's folder: `config.yaml` written first, `done.json` last, and between them whatever its verb writes.

A folder whose `done.json` bears the stage's fingerprint is finished; one whose `config.yaml` bears it was cut off and
its verb resumes it; one with another fingerprint holds another experiment.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import rlrc
from rlrc import verbs
from rlrc.config import Config
from rlrc.errors import UserError
from rlrc.files import sha256_file, sha256_tree, write_json, write_text
from rlrc.reading import read_json, read_yaml


@dataclass(frozen=True)
class Stage:
    """One verb with its config and the folder it writes to."""

    verb: str
    config: Config
    folder: Path
    sources: Mapping[str, str]
    """For each path in the config, what identifies its contents: an earlier stage's fingerprint or a hash."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal work: the config with every path replaced by the identity of what lies there."""
        values = _replace_strings(self.config.model_dump(mode="json"), self.sources)
        text = json.dumps([self.verb, values, rlrc.__version__], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def artifact(self) -> Path:
        return self.folder / verbs.VERBS[self.verb].artifact

    def result(self) -> dict[str, Any] | None:
        """What the finished stage measured, or None if it is not finished (or is another experiment)."""
        path = self.folder / "done.json"
        if not (path.exists() and self.artifact.exists()):
            return None
        done = read_json(path)
        return done["result"] if done["fingerprint"] == self.fingerprint else None

    def run(self, restart: bool) -> dict[str, Any]:
        """Run the verb, or return at once what it measured when it ran before.

        Args:
            restart: whether a folder that holds another experiment is emptied or refused.

        Raises:
            UserError: the folder holds something else and `restart` is false, or the verb finds its input wrong.
        """
        if (result := self.result()) is not None:
            return result
        main_process = int(os.environ.get("RANK", "0")) == 0
        if main_process:
            self._prepare(restart)
        started = time.monotonic()
        with _logged(self.folder / "log.txt") if main_process else nullcontext():
            result = verbs.function(self.verb)(self.config, self.folder)
        if main_process:
            seconds = round(time.monotonic() - started, 1)
            done = {"fingerprint": self.fingerprint, "seconds": seconds, "result": result}
            write_json(self.folder / "done.json", done)
        return result

    def _prepare(self, restart: bool) -> None:
        """Leave the folder as the same stage left it when it was cut off, or make it new."""
        record = self.folder / "config.yaml"
        if record.exists() and read_yaml(record)["fingerprint"] == self.fingerprint:
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            if not restart:
                raise UserError(f"{self.folder} holds something else; choose another --out, or delete it first")
            shutil.rmtree(self.folder)
        values = {"verb": self.verb, "fingerprint": self.fingerprint, "config": self.config.model_dump(mode="json")}
        write_text(record, yaml.safe_dump(values, sort_keys=False))


@dataclass(frozen=True)
class Finished:
    """What a stage that ended left in its folder."""

    name: str
    folder: Path
    verb: str
    config: dict[str, Any]
    seconds: float
    result: dict[str, Any]


def read_finished(folder: Path) -> Finished | None:
    """The record of the stage in `folder`, or None if it has not ended."""
    if not (folder / "done.json").exists():
        return None
    done, record = read_json(folder / "done.json"), read_yaml(folder / "config.yaml")
    return Finished(folder.name, folder, record["verb"], record["config"], done["seconds"], done["result"])


def path_fields(config: Config) -> dict[str, list[Path]]:
    """The paths a config names, by field."""
    found: dict[str, list[Path]] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        paths = [path for path in (value if isinstance(value, list | tuple) else [value]) if isinstance(path, Path)]
        if paths:
            found[name] = paths
    return found


def content_hash(path: Path) -> str:
    """What lies at `path`, whatever it is called.

    Raises:
        UserError: nothing lies there.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def standalone(verb: str, config: Config, folder: Path) -> Stage:
    """A stage outside any recipe: all that it reads is identified by its contents.

    Raises:
        UserError: a path names nothing.
    """
    fields = path_fields(config).items()
    return Stage(
        verb, config, folder, {str(p): content_hash(contents_of(field, p)) for field, paths in fields for p in paths}
    )


def contents_of(field: str, path: Path) -> Path:
    """Where the contents of a config's `field` are: `path`, or the download of the policy with this hub id.

    Raises:
        UserError: the hub does not give it.
    """
    if path.exists() or field not in ("policy", "policies") or len(path.parts) != 2:
        return path
    from rlrc.models.checkpoint import on_disk  # a heavy import, rarely needed

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
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    except BaseException:
        root.exception("the stage was cut off")
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
