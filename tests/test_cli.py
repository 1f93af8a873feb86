"""The command line: quick help, JSON on stdout and nothing else there, one line for bad input."""

import errno
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import toy_verbs

from rlrc import cli, ownership, verbs
from rlrc.command_line import commands


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, verb in toy_verbs.VERBS.items():
        monkeypatch.setitem(verbs.VERBS, name, verb)
        monkeypatch.setitem(ownership.WRITES, name, toy_verbs.WRITES[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "handle_signals", lambda: None)  # of pytest's own process
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "skill.txt").write_text("0.5")


def rlrc(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run the command in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["rlrc", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("rlrc: ")
    return printed.err


def test_help_names_every_verb_without_importing_anything_heavy() -> None:
    code = (
        "import sys; sys.argv = ['rlrc', '--help']\nfrom rlrc.cli import main\nmain()\n"
        "heavy = {'torch', 'transformers', 'mujoco', 'matplotlib', 'av', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {verb} " in done.stdout for verb in commands())


@pytest.mark.parametrize("verb", commands())
def test_a_verbs_options_import_nothing_heavy(verb: str) -> None:
    code = (
        f"import sys; sys.argv = ['rlrc', '{verb}', '--help']\nfrom rlrc.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'mujoco', 'gymnasium', 'matplotlib', 'av', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage: rlrc" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prune --foo 3", "there is no option --foo"),
        ("quantize --polcy x", "there is no option --polcy (did you mean --policy?)"),
        ("quantize", "missing: --policy"),
        ("train --dataset x --steps abc", "--steps: abc is not a whole number"),
        ("train --dataset x --learning-rate abc", "--learning-rate: abc is not a number"),
        ("train --dataset x --learning-rate inf", "--learning-rate: Input should be a finite number"),
        ("train --dataset x --batch-size 1000000000", "--batch-size: Input should be less than or equal to 4096"),
        ("train --dataset x --shape.hidden-size 7", "--shape: 10 heads do not divide a width of 7"),
        ("train --dataset x --steps", "--steps needs a value"),
        ("quantize --policy x --bits 5", "--bits: 5 is not one of 2, 3, 4, 8"),
        ("prune --policy x method:foo", "there is no method:foo (there are method:llm-pruner, "),
        ("assets moon", "simulator: moon is not one of maniskill, libero"),
    ],
)
def test_wrong_words_are_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlrc(monkeypatch, *arguments.split()) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize("verb", ["collect", "sft", "run", "inspect", "report"])
def test_a_verbs_help_lists_its_options(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlrc(monkeypatch, verb, "--help") == 0
    printed = capsys.readouterr().out
    cls = commands()[verb].config_class()
    for name, field in cls.model_fields.items():
        assert name.replace("_", "-") in printed.lower() or "PATH" in printed
        assert field.description, f"{cls.__name__}.{name} has no line of documentation"
    assert "--out" in printed and "--json" in printed


def test_json_is_all_there_is_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert rlrc(monkeypatch, "sft", "--policy", "base", "--steps", "2", "--out", "x", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"skill": 0.7}
    assert Path("x/checkpoint/skill.txt").exists() and Path("x/done.json").exists()


def test_the_same_command_again_returns_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("sft", "--policy", "base", "--json")
    assert rlrc(monkeypatch, *command) == 0
    first = capsys.readouterr().out
    assert rlrc(monkeypatch, *command) == 0
    again = capsys.readouterr()
    assert again.out == first and "has finished here before" in again.err
    assert Path("runs/sft/trace.txt").read_text() == "from 0\n"


def test_another_experiments_folder_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlrc(monkeypatch, "sft", "--policy", "base") == 0
    capsys.readouterr()
    assert rlrc(monkeypatch, "sft", "--policy", "base", "--steps", "5") == 2
    assert "holds something else" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pruen"], "unknown verb 'pruen'"),
        (["sft", "--policy", "nowhere"], "nowhere: no such file or folder"),
        (["sft", "--policy", "base", "--fail"], "the input is wrong"),
        (["run", "missing.yaml"], "missing.yaml: no such file"),
        (["run", "broken.yaml"], "not valid YAML"),
        (["run", "list.yaml"], "a recipe is a mapping"),
        (["run", "twice.yaml"], "key 'stages' stands twice in the mapping at line 1"),
        (["report", "base"], "not a run's folder"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.yaml").write_text("stages: [\n  {verb: sft\n")
    Path("list.yaml").write_text("- sft\n")
    Path("twice.yaml").write_text("stages: []\nstages: []\n")
    assert rlrc(monkeypatch, *arguments) == 2
    assert message in one_line(capsys)
    assert not list(Path().glob("runs/*/done.json"))


def test_unknown_options_and_values_out_of_range_exit_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlrc(monkeypatch, "sft", "--policy", "base", "--stesp", "3") == 2
    assert "--stesp" in capsys.readouterr().err
    assert rlrc(monkeypatch, "sft", "--policy", "base", "--steps", "many") == 2
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "x: Permission denied"),
    ],
)
def test_what_the_system_refuses_is_told_in_one_line(
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(config: object, out: Path) -> dict:
        raise error

    monkeypatch.setattr(toy_verbs, "sft", refuse)
    assert rlrc(monkeypatch, "sft", "--policy", "base") == status
    assert message in one_line(capsys)


def test_a_dry_run_leaves_no_folder_in_the_way_of_the_real_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    arguments = ["prune", "--policy", str(tiny_checkpoint), "--ratio", "0.5", "--out", "pruned"]
    method = ["method:llm-pruner", "--method.importance", "magnitude_l2"]
    assert rlrc(monkeypatch, *arguments, "--dry-run", *method) == 0
    assert "attention heads 10 -> 5" in capsys.readouterr().err
    assert not Path("pruned").exists()
    assert rlrc(monkeypatch, *arguments, *method) == 0
    assert (Path("pruned") / "checkpoint" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError(), 2, "out of memory: ask for less at once"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (
            ValueError("odd"),
            1,
            "a bug in rlrc, please report it; the traceback is in runs/sft/log.txt (ValueError: odd)",
        ),
        (KeyError("\x1b[31m" + "x" * 5000), 1, "bug in rlrc"),
    ],
)
def test_no_failure_is_more_than_one_line_of_bounded_length(
    error: Exception, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object, out: Path) -> dict:
        raise error

    monkeypatch.setattr(toy_verbs, "sft", fail)
    assert rlrc(monkeypatch, "sft", "--policy", "base") == status
    line = one_line(capsys)
    assert message in line and len(line) <= 601 and "\x1b" not in line
    assert Path("runs/sft/log.txt").exists() == (status == 1)
    if status == 1:
        assert "Traceback" in Path("runs/sft/log.txt").read_text()


def test_the_log_of_a_bug_is_not_in_the_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object, out: Path) -> dict:
        raise ValueError

    with monkeypatch.context() as patch:
        patch.setattr(toy_verbs, "sft", fail)
        assert rlrc(patch, "sft", "--policy", "base") == 1
    assert rlrc(monkeypatch, "sft", "--policy", "base", "--steps", "2") == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "abc", "RANK is 'abc'"),
        ("RANK", "-1", "RANK is '-1'"),
        ("RANK", "1", "RANK is 1 and WORLD_SIZE is 1"),
        ("WORLD_SIZE", "abc", "WORLD_SIZE is 'abc'"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0'"),
        ("LOCAL_RANK", "1.5", "LOCAL_RANK is '1.5'"),
        ("MASTER_PORT", "x", "MASTER_PORT is 'x'"),
        ("MUJOCO_GL", "bogus", "MUJOCO_GL is 'bogus'"),
    ],
)
def test_environment_variables_that_cannot_be_are_told(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert rlrc(monkeypatch, "sft", "--policy", "base") == 2
    assert message in one_line(capsys)
    assert not Path("runs").exists()


def test_a_verb_that_cannot_share_its_work_runs_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert rlrc(monkeypatch, "evaluate", "--policy", "base", "--world", "x") == 2
        assert "evaluate runs in one process, and WORLD_SIZE is 2" in one_line(capsys)
    assert not Path("runs").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_log_without_room_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def chatter(config: object, out: Path) -> dict:
        (out / "log.txt").symlink_to("/dev/full")
        logging.getLogger("x").warning("a line")
        return {}

    monkeypatch.setattr(toy_verbs, "sft", chatter)
    assert rlrc(monkeypatch, "sft", "--policy", "base") == 2
    assert "the disk is full" in one_line(capsys)
