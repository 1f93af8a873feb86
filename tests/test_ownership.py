"""rlrc deletes only what it can prove that it made. A tree of canaries beside what it does keeps all its hashes."""

import fcntl
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_verbs
import yaml

from rlrc import ownership, verbs
from rlrc.configs.make_random import MakeRandomConfig
from rlrc.configs.run import RunConfig
from rlrc.errors import UserError
from rlrc.files import atomic_path, write_text
from rlrc.lock import locked
from rlrc.ownership import CHECKPOINT, DATASET, remove_files, remove_stage
from rlrc.pipeline import run
from rlrc.process import Stopped
from rlrc.recipe import STAGE_VERBS
from rlrc.stage import Stage, standalone

SFT = {"verb": "sft", "policy": "base", "steps": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory: a base policy, photos, and a page; the toy verbs are installed."""
    for name, verb in toy_verbs.VERBS.items():
        monkeypatch.setitem(verbs.VERBS, name, verb)
        monkeypatch.setitem(ownership.WRITES, name, toy_verbs.WRITES[name])
    home = tmp_path / "home" / "user"
    for name, text in {
        "base/skill.txt": "0.5",
        "photos/2024/a.png": "a",
        "photos/2024/b.png": "b",
        "photos/config.yaml": "verb: sft\n",
        "README.md": "mine",
        "recipe.yaml": "# my own\nname: mine\nstages: []\n",
        "progress/diary.txt": "dear diary",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    monkeypatch.chdir(home)
    return home


def hashes(folder: Path) -> dict[str, str]:
    """Of everything below `folder` and where its links lead; links and folders themselves count too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        what = f"-> {path.readlink()}" if path.is_symlink() else ""
        if path.is_file():
            what += hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = what
    return found


def write_recipe(stages: list[dict], **header: object) -> None:
    Path("toy.yaml").write_text(yaml.safe_dump({"name": "toy", "base": "base", "stages": stages, **header}))


def run_toy(out: str = "runs/toy") -> dict:
    return run(RunConfig(recipe=Path("toy.yaml")), Path(out))


def refused(folder: Path, message: str, action: Callable[[], object]) -> None:
    """The action ends in one line, and nothing in the folder is touched."""
    before = hashes(folder.parent)
    with pytest.raises(UserError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert hashes(folder.parent) == before


# -- stages ------------------------------------------------------------------------------------------------------------


def test_a_stage_named_like_a_users_folder_does_not_empty_it(folder: Path) -> None:
    write_recipe([SFT | {"name": "photos"}], name="here")
    (folder / "recipe.yaml").unlink()
    refused(folder, "so rlrc cannot tell what photos holds", lambda: run_toy("."))
    (folder / "photos" / "config.yaml").unlink()
    refused(folder, "photos holds something else", lambda: run_toy("."))


def test_a_users_file_beside_what_a_stage_wrote_keeps_the_stage_from_being_emptied(folder: Path) -> None:
    write_recipe([SFT])
    run_toy()
    write_recipe([SFT | {"steps": 2}])
    for name in ("notes.txt", "checkpoint/notes.txt", "checkpoint/more/notes.txt", "photos"):
        mine = Path("runs/toy/sft", name)
        mine.parent.mkdir(exist_ok=True)
        mine.mkdir() if name == "photos" else mine.write_text("mine")
        refused(folder, "rlrc did not write this", run_toy)
        mine.rmdir() if name == "photos" else mine.unlink()
        if mine.parent.name == "more":
            mine.parent.rmdir()
    assert run_toy()["stages"]["sft"] == {"skill": pytest.approx(0.7)}


def test_a_stage_whose_folder_is_a_link_is_not_followed(folder: Path) -> None:
    write_recipe([SFT])
    run_toy()
    Path("runs/toy/sft").rename("elsewhere")
    Path("runs/toy/sft").symlink_to(folder / "elsewhere")
    assert run_toy()["stages"]["sft"]["skill"] == 0.9  # finished, and nothing is touched
    write_recipe([SFT | {"steps": 2}])
    refused(folder, "this is a link", run_toy)


@pytest.mark.parametrize("below", ["checkpoint", "checkpoint/skill.txt"])
def test_a_link_in_a_stages_folder_is_not_followed(folder: Path, below: str) -> None:
    write_recipe([SFT])
    run_toy()
    path = Path("runs/toy/sft", below)
    path.rename("elsewhere")
    path.symlink_to(folder / "elsewhere")
    write_recipe([SFT | {"steps": 2}])
    refused(folder, "rlrc did not write this", run_toy)


def test_a_run_whose_folder_is_a_link_is_refused(folder: Path) -> None:
    Path("runs").mkdir()
    Path("runs/toy").symlink_to(folder / "photos")
    write_recipe([SFT])
    refused(folder, "runs/toy: this is a link", run_toy)


def test_a_base_from_a_stage_of_the_same_run_is_not_deleted_before_it_is_read(folder: Path) -> None:
    write_recipe([SFT])
    run_toy()
    write_recipe([SFT], base="runs/toy/sft/checkpoint")
    refused(folder, "it lies in the folder of stage 'sft' of this run", run_toy)


@pytest.mark.parametrize("stages", [[SFT, SFT | {"name": "b", "policy": "LINK"}], [SFT | {"policy": "LINK"}]])
def test_an_input_behind_a_link_is_an_input(folder: Path, stages: list[dict]) -> None:
    """Of another stage too: `b` reads what a restart of `sft` would delete."""
    write_recipe([SFT])
    run_toy()
    Path("LINK").mkdir()
    Path("LINK/skill.txt").symlink_to(folder / "runs/toy/sft/checkpoint/skill.txt")
    write_recipe(stages)
    refused(folder, "LINK is read, and it lies in the folder of stage 'sft'", run_toy)


def test_an_input_that_contains_the_run_is_refused(folder: Path) -> None:
    write_recipe([SFT | {"policy": "."}])
    refused(folder, "the folder of stage 'sft' of this run lies in it", run_toy)


def test_a_single_verb_writes_neither_into_its_input_nor_around_it(folder: Path) -> None:
    config = toy_verbs.SftConfig(policy=Path("base"))
    refused(folder, "lies in it", lambda: standalone("sft", config, Path("base/out")))
    refused(folder, "copy it elsewhere", lambda: standalone("sft", config, folder))
    refused(folder, "holds something else", lambda: standalone("sft", config, Path("photos/2024")).run(restart=False))


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "/tmp/x", "a/b", "a\\b", "a b", ".x", "x" * 101, "x\n", 3, None]
)
def test_names_of_recipes_and_stages_are_plain(folder: Path, name: object) -> None:
    write_recipe([SFT], name=name)
    refused(folder, "no plain name", run_toy)
    write_recipe([SFT | {"name": name}])
    refused(folder, "a name is made of", run_toy)


@pytest.mark.parametrize("name", ["base", "recipe.yaml", "progress"])
def test_names_that_a_run_needs_itself_are_taken(folder: Path, name: str) -> None:
    write_recipe([SFT | {"name": name}])
    refused(folder, "the name is taken", run_toy)


def test_a_users_recipe_is_not_replaced(folder: Path) -> None:
    write_recipe([SFT])
    refused(folder, "recipe.yaml: a run keeps its recipe here", lambda: run_toy("."))
    Path("recipe.yaml").write_text(Path("toy.yaml").read_text() + "# mine\n")
    run(RunConfig(recipe=Path("recipe.yaml")), Path())  # it says the same
    assert Path("recipe.yaml").read_text().endswith("# mine\n")
    assert Path("progress/diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("file", ["done.json", "config.yaml"])
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"fingerprint": 3}', b"\0", b"[" * 9999, b"\xe9"])
def test_a_damaged_record_is_one_line(folder: Path, file: str, text: bytes) -> None:
    write_recipe([SFT])
    run_toy()
    write_recipe([SFT | {"steps": 2}])
    path = Path("runs/toy/sft", file)
    path.write_bytes(text)
    refused(folder, rf"stage 'sft': runs/toy/sft/{file}: .*(delete this file|move it away)", run_toy)


def test_a_stage_that_is_restarted_leaves_nothing_of_the_one_before(folder: Path) -> None:
    write_recipe([SFT])
    run_toy()
    left = Path("runs/toy/sft/.checkpoint.999999999.tmp")
    left.mkdir()
    (left / "skill.txt").write_text("half")
    write_recipe([{"verb": "evaluate", "name": "sft", "policy": "base"}])
    run_toy()
    assert {path.name for path in Path("runs/toy/sft").iterdir()} == {"config.yaml", "done.json", "episodes.parquet"}


def test_every_verb_says_what_it_writes() -> None:
    assert set(ownership.WRITES) == set(STAGE_VERBS)
    for verb in STAGE_VERBS:
        artifact = verbs.VERBS[verb].artifact
        assert not artifact or any(pattern.startswith(f"{artifact}/") for pattern in ownership.WRITES[verb])


# -- refused runs, locks -----------------------------------------------------------------------------------------------


def test_a_refused_stage_leaves_nothing_and_the_corrected_one_runs(folder: Path) -> None:
    before = hashes(folder)
    wrong = standalone("sft", toy_verbs.SftConfig(policy=Path("base"), fail=True), Path("runs/new/sft"))
    with pytest.raises(UserError, match="the input is wrong"):
        wrong.run(restart=False)
    assert hashes(folder) == before
    right = standalone("sft", toy_verbs.SftConfig(policy=Path("base")), Path("runs/new/sft"))
    assert right.run(restart=False)["skill"] == pytest.approx(0.8)


def test_a_run_whose_first_stage_is_refused_leaves_nothing(folder: Path) -> None:
    write_recipe([SFT | {"fail": True}])
    refused(folder, "stage 'sft': the input is wrong", run_toy)


def test_a_signal_while_a_stage_begins_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the record is written and the log is not yet open."""

    def interrupted(path: Path) -> None:
        assert (Path("runs/sft") / "config.yaml").exists()
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("rlrc.stage._logged", interrupted)
    with pytest.raises(Stopped):
        standalone("sft", toy_verbs.SftConfig(policy=Path("base")), Path("runs/sft")).run(restart=False)
    assert not Path("runs").exists()


def test_what_was_killed_before_it_did_anything_is_not_in_the_way(folder: Path) -> None:
    out = Path("runs/sft")
    killed = standalone("sft", toy_verbs.SftConfig(policy=Path("base"), steps=9), out)
    out.mkdir(parents=True)
    killed._prepare()
    (out / "log.txt").write_text("a line")
    (out / ".lock").write_text("process 1")
    assert standalone("sft", toy_verbs.SftConfig(policy=Path("base")), out).run(restart=False)


def test_a_second_writer_is_told_who_holds_the_folder(folder: Path) -> None:
    stage = standalone("sft", toy_verbs.SftConfig(policy=Path("base")), Path("runs/toy/sft"))
    Path("runs/toy/sft").mkdir(parents=True)
    with locked(Path("runs/toy/sft")):
        with pytest.raises(UserError, match=rf"runs/toy/sft is being written by process {os.getpid()} on "):
            stage.run(restart=False)
        write_recipe([SFT])
        with pytest.raises(UserError, match="stage 'sft': runs/toy/sft is being written"):
            run_toy()
    with locked(Path("runs/toy")), pytest.raises(UserError, match="runs/toy is being written by process"):
        run_toy()
    assert not list(Path("runs").rglob(".lock"))
    assert run_toy()["stages"]["sft"]


def test_a_lock_whose_process_is_dead_does_not_hold(folder: Path) -> None:
    (folder / ".lock").write_text("process 999999999 on nowhere: rlrc run")
    with locked(folder):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    assert not (folder / ".lock").exists()


def test_a_file_system_without_locks_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(folder):
        pass
    assert "this file system has no locks" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to_is_told(folder: Path) -> None:
    Path("runs").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written to"), locked(Path("runs")):
        pass


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [None, CHECKPOINT, DATASET])
def test_a_users_folder_is_never_replaced(folder: Path, owned: ownership.Owned | None) -> None:
    def write() -> None:
        with atomic_path(Path("photos/2024"), owned) as aside:
            aside.mkdir()

    refused(folder, "this is a folder|so rlrc cannot tell what photos holds", write)


def test_a_checkpoint_beside_which_something_lies_is_not_replaced(folder: Path) -> None:
    def write() -> None:
        with atomic_path(Path("ours"), CHECKPOINT) as aside:
            aside.mkdir()
            (aside / "compression.json").write_text("{}")

    write()
    write()
    Path("ours/thesis.tex").write_text("mine")
    refused(folder, "thesis.tex: rlrc did not write this", write)


def test_a_link_is_never_written_through(folder: Path) -> None:
    Path("link").symlink_to(folder / "README.md")
    refused(folder, "link: this is a link", lambda: write_text(Path("link"), "x"))


@pytest.mark.parametrize("name", [".x.999999999.tmp", ".x.notes.tmp", ".xy.999999999.tmp", ".[x].999999999.tmp"])
def test_only_leftovers_of_the_same_name_go(folder: Path, name: str) -> None:
    Path(name).mkdir()
    Path(name, "mine.txt").write_text("mine")
    before = hashes(folder)
    write_text(Path("x"), "x")
    with atomic_path(Path("[x]"), CHECKPOINT) as aside:
        aside.mkdir()
    after = hashes(folder)
    assert {path: after[path] for path in before} == before


def test_files_are_removed_one_by_one_and_what_is_not_ours_stays(folder: Path) -> None:
    Path("played").mkdir()
    for name in ("500.npz", "501.npz", "mine.txt"):
        Path("played", name).write_text(name)
    remove_files(Path("played"), ("*.npz",))
    assert [path.name for path in Path("played").iterdir()] == ["mine.txt"]
    Path("played/mine.txt").unlink()
    remove_files(Path("played"), ("*.npz",))
    assert not Path("played").exists()
    Path("link").symlink_to(folder / "photos")
    refused(folder, "link: this is a link", lambda: remove_stage(Path("link")))
    refused(folder, "photos/2024 holds something else", lambda: remove_stage(Path("photos/2024")))


def test_make_random_replaces_nothing_but_its_own(folder: Path) -> None:
    from rlrc.policies.make_random import make_random

    def write(out: str) -> None:
        make_random(MakeRandomConfig(preset="openvla-tiny"), Path(out))

    refused(folder, "photos holds something else", lambda: write("photos"))
    Path("photos/compression.json").write_text(json.dumps({"stages": [{"verb": "make-random"}]}))
    refused(folder, "rlrc did not write this", lambda: write("photos"))
    Path("photos/compression.json").write_text("[]")
    refused(folder, "compression.json: a JSON object is needed", lambda: write("photos"))
    Path("link").symlink_to(folder / "photos")
    refused(folder, "link: this is a link", lambda: write("link"))


def test_a_stage_in_memory_of_another_version_is_another_experiment(folder: Path) -> None:
    stage = standalone("sft", toy_verbs.SftConfig(policy=Path("base")), Path("runs/sft"))
    stage.run(restart=False)
    other = Stage("sft", stage.config.model_copy(update={"steps": 9}), stage.folder, stage.sources)
    refused(folder, "holds something else", lambda: other.run(restart=False))
