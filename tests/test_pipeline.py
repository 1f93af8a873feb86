"""Recipes: validated before anything runs, finished stages skipped, cut-off ones resumed, changed ones run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import toy_verbs
import yaml

from rlrc import ownership, verbs
from rlrc.errors import UserError
from rlrc.pipeline import RunConfig, run, schedule
from rlrc.recipe import read_recipe
from rlrc.resolve import resolve
from rlrc.stage import Stage

STAGES = [
    {"verb": "collect", "name": "demos", "episodes": 5},
    {"verb": "evaluate", "name": "base-eval", "policy": "base"},
    {"verb": "sft", "policy": "base", "dataset": "demos", "steps": 4},
    {"verb": "evaluate", "name": "sft-eval", "policy": "sft"},
    {"verb": "bench", "policies": ["base", "sft"]},
]
BASE_SFT = {"verb": "sft", "policy": "base"}
BASE_PRUNE = {"verb": "prune", "policy": "base", "ratio": 0.5}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a base policy and a recipe, where the toy verbs are installed."""
    for name, verb in toy_verbs.VERBS.items():
        monkeypatch.setitem(verbs.VERBS, name, verb)
        monkeypatch.setitem(ownership.WRITES, name, toy_verbs.WRITES[name])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "skill.txt").write_text("0.5")
    write_recipe(STAGES)
    return tmp_path


def write_recipe(stages: list[dict], **header: object) -> None:
    Path("toy.yaml").write_text(yaml.safe_dump({"base": "base", "stages": stages, **header}))


def run_toy() -> dict:
    return run(RunConfig(recipe=Path("toy.yaml")), Path("runs/toy"))


def traces(stage: str = "sft") -> list[str]:
    return Path("runs/toy", stage, "trace.txt").read_text().splitlines()


def test_runs_every_stage_and_compares_with_the_first_policy(folder: Path) -> None:
    base, sft = run_toy()["summary"]
    assert (base["policy"], sft["policy"]) == ("base", "sft")
    assert base["rates"]["ind"]["rate"] == 0.5 and sft["rates"]["ood"]["rate"] == 0.9
    assert sft["comparisons"]["ind"]["difference"] == pytest.approx(0.4)
    assert sft["comparisons"]["ind"]["p"] == pytest.approx(2 * 0.5**8)  # eight discordant pairs, all one way
    assert not base["comparisons"] and sft["cost"]["parameters"]["total"] == 100


def test_what_ended_says_on_which_processor(folder: Path) -> None:
    run_toy()
    told = json.loads(Path("runs/toy/sft/done.json").read_text())["machine"]
    name, cores = re.fullmatch(r"(.+), (\d+) cores?", told).groups()
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.sub(r" \(family \d+, model \d+\)$", "", name)  # which x86 has
    assert model in cpuinfo or "model name" not in cpuinfo  # which ARM and macOS lack
    assert 1 <= int(cores) <= os.cpu_count()


def test_a_second_run_does_nothing(folder: Path) -> None:
    first = run_toy()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != "recipe.yaml"}
    assert run_toy() == first
    after = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != "recipe.yaml"}
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {Path("runs/toy")}  # the folder that holds recipe.yaml


def test_a_changed_stage_runs_again_with_all_that_follow_from_it(folder: Path) -> None:
    run_toy()
    demos = Path("runs/toy/demos/done.json").stat().st_mtime_ns
    write_recipe([stage | {"steps": 2} if stage["verb"] == "sft" else stage for stage in STAGES])
    assert run_toy()["summary"][1]["rates"]["ind"]["rate"] == 0.7
    assert traces() == ["from 0"]  # begun anew, not resumed from the other config's state
    assert Path("runs/toy/demos/done.json").stat().st_mtime_ns == demos


def test_a_changed_base_policy_runs_everything_that_uses_it_again(folder: Path) -> None:
    run_toy()
    (folder / "base" / "skill.txt").write_text("0.2")
    assert [row["rates"]["ind"]["rate"] for row in run_toy()["summary"]] == [0.2, 0.6]


@pytest.mark.parametrize("step", [0, 1, 3])
def test_killed_and_started_again_it_ends_with_the_same_table(folder: Path, step: int) -> None:
    command = [sys.executable, toy_verbs.__file__, "run", "toy.yaml", "--json"]

    def start(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)

    first = start()
    assert first.returncode == 0, first.stderr
    whole = json.loads(first.stdout)
    Path("runs").rename("whole")
    assert start(DIE_AT=str(step)).returncode == -9
    assert not Path("runs/toy/sft/done.json").exists()
    resumed = json.loads(start().stdout)
    assert resumed["summary"] == whole["summary"]
    assert traces() == ["from 0", f"from {step}"]


@pytest.mark.parametrize(
    ("stages", "header", "message"),
    [
        ([{"verb": "pruen"}], {}, "stage 1: unknown verb 'pruen'"),
        ([{"verb": "run"}], {}, "unknown verb 'run'"),
        (
            [*STAGES, {"verb": "sft", "name": "x", "policy": "base", "stesp": 3}],
            {},
            r"stage 6 \(x\): unknown key 'stesp'",
        ),
        ([BASE_SFT | {"steps": "many"}], {}, "'steps'"),
        ([{"verb": "sft"}], {}, "missing key 'policy'"),
        (
            [BASE_SFT | {"policy": "later"}, BASE_SFT | {"name": "later"}],
            {},
            "'later' is neither",
        ),
        ([STAGES[0], {"verb": "sft", "policy": "demos"}], {}, "stage 'demos' makes no checkpoint"),
        (
            [BASE_PRUNE | {"method": {"kind": "depth", "rnak": "gates"}}],
            {},
            r"unknown key 'method\.depth\.rnak' \(known: kind, keep, rank",
        ),
        (
            STAGES,
            {"study": {"policies": {"dense": "base"}, "sedes": []}},
            r"unknown key 'study\.sedes' \(known: name, policies, seeds",
        ),
        (
            [BASE_PRUNE | {"dry_run": True, "method": {"kind": "random"}}, {"verb": "sft", "policy": "prune"}],
            {},
            "policy: stage 'prune' is a dry run, which makes no checkpoint",
        ),
        ([BASE_SFT, BASE_SFT], {}, "the name is taken"),
        ([BASE_SFT | {"name": "../x"}], {}, "a name is made of"),
        (STAGES, {"base": "nowhere"}, "'nowhere' is neither an earlier stage"),
        (STAGES, {"wrold": "tabletop"}, "unknown key 'wrold'"),
        ("sft", {}, "'stages': Input should be a valid list"),
        ([], {}, "'stages': List should have at least 1 item"),
        ([*STAGES, "sft"], {}, "stage 6: a mapping is needed"),
        ([None], {}, "stage 1: a mapping is needed"),
        ([{3: "sft"}], {}, "stage 1: a mapping is needed"),
        ([BASE_SFT] * 10_000, {}, "10,000 stages are listed, and a recipe has at most 200"),
        ([{"verb": ["sft"]}], {}, "stage 1: unknown verb"),
        ([BASE_SFT | {"name": None}], {}, r"stage 1 \(None\): a name is made of"),
        ([BASE_SFT | {"policy": "a\0b"}], {}, "it has a zero byte"),
        ([BASE_SFT | {"policy": "x" * 5000}], {}, "policy: 'x.* cannot be looked at"),
        ([BASE_SFT | {"policy": 3}], {}, r"stage 1 \(sft\): 'policy'"),
        ([BASE_SFT | {"policy": "/dev/zero"}], {}, "this is no regular file"),
        ([BASE_SFT, {"verb": "report"}], {}, "there is nothing to report"),
        (STAGES, {"study": 3}, "'study'"),
        (STAGES, {"study": {"policies": ["base"]}}, "'study.policies'"),
        (STAGES, {"study": {"name": "../x", "policies": {"dense": "base"}}}, "'study.name'"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(
    folder: Path, stages: list[dict], header: dict, message: str
) -> None:
    write_recipe(stages, **header)
    with pytest.raises(UserError, match=message) as caught:
        run_toy()
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists()


def test_a_stage_that_finds_its_input_wrong_is_named(folder: Path) -> None:
    write_recipe([*STAGES[:2], STAGES[2] | {"fail": True}])
    with pytest.raises(UserError, match="stage 'sft': the input is wrong"):
        run_toy()
    assert not Path("runs/toy/sft/done.json").exists() and Path("runs/toy/base-eval/done.json").exists()
    assert not Path("runs/toy/sft").exists()


def test_a_recipe_that_measures_nothing_ends_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(STAGES[:1])
    assert run_toy()["summary"] == []
    assert "there is no table, since none of them evaluates" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_finished_run_may_lie_where_nothing_can_be_written(folder: Path) -> None:
    first = run_toy()
    for path in [Path("runs"), *Path("runs").rglob("*")]:
        path.chmod(path.stat().st_mode & 0o555)
    assert run_toy() == first


def test_recipes_that_ship_are_valid_yaml_with_known_verbs() -> None:
    for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml"):
        recipe = read_recipe(path)
        assert recipe.name == path.stem
        assert all(stage["verb"] in verbs.VERBS for stage in recipe.stages)


def test_moving_the_folder_keeps_finished_stages(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run_toy()
    recipe = read_recipe(Path("toy.yaml"))
    here = {name: stage.fingerprint for name, stage in resolve(recipe, Path("runs/toy")).items()}
    there = {name: stage.fingerprint for name, stage in resolve(recipe, Path("elsewhere")).items()}
    assert here == there


def test_stages_that_need_not_wait_run_at_once(folder: Path) -> None:
    """Two at a time, in the recipe's order, after what they need, and the benchmark alone."""
    write_recipe([*STAGES[:4], *STAGES[4:], BASE_SFT | {"name": "again"}])
    stages = resolve(read_recipe(Path("toy.yaml")), Path("runs/toy"))
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    running: set[str] = set()
    together: list[set[str]] = []

    def work(name: str, stage: Stage, out: Path) -> dict:
        running.add(name)
        together.append(set(running))
        began[name] = time.monotonic()
        time.sleep(0.05)
        ended[name] = time.monotonic()
        running.remove(name)
        return {"name": name}

    with ThreadPoolExecutor(4) as pool:
        results = schedule(stages, Path("runs/toy"), 2, pool, work)
    assert list(results) == list(stages) and results["sft"] == {"name": "sft"}
    assert began["base-eval"] < ended["demos"] < began["sft"] < ended["sft"] < began["sft-eval"]
    assert max(len(names) for names in together) == 2
    assert [names for names in together if "bench" in names] == [{"bench"}]


def test_two_jobs_end_with_the_same_as_one(folder: Path) -> None:
    """Each in a process of its own (these know the true verbs only, so everything was done before)."""
    alone = run_toy()
    assert run(RunConfig(recipe=Path("toy.yaml"), jobs=2), Path("runs/toy")) == alone


def test_a_mistake_in_a_job_is_told(folder: Path) -> None:
    write_recipe([BASE_SFT | {"name": "a", "fail": True}])
    stages = resolve(read_recipe(Path("toy.yaml")), Path("runs/toy"))
    with ThreadPoolExecutor(2) as pool, pytest.raises(UserError, match="stage 'a': the input is wrong"):
        schedule(stages, Path("runs/toy"), 2, pool, lambda name, stage, out: stage.run(restart=True))


def test_a_study_may_name_another_way_of_acting_by_its_evaluation(folder: Path) -> None:
    ways = [{"verb": "evaluate", "name": "cold", "policy": "base"}]
    write_recipe(ways, study={"policies": {"dense": "base", "0.5": "cold"}})
    assert list(resolve(read_recipe(Path("toy.yaml")), Path("runs/toy"))) == ["cold"]
    write_recipe(ways, study={"policies": {"dense": "base"}, "seeds": ["cold"]})
    with pytest.raises(UserError, match="study: 'cold' is no stage that makes a policy"):
        resolve(read_recipe(Path("toy.yaml")), Path("runs/toy"))


def test_a_study_or_a_budget_that_names_no_policy_is_refused(folder: Path) -> None:
    write_recipe(STAGES, study={"policies": {"dense": "base", "sft": "demos"}})
    with pytest.raises(UserError, match="study: 'demos' is no stage that makes a policy"):
        run_toy()
    dry = BASE_PRUNE | {"name": "plan", "dry_run": True, "method": {"kind": "random"}}
    write_recipe([dry], study={"policies": {"dense": "base", "pruned": "plan"}})
    with pytest.raises(UserError, match="study: 'plan' is no stage that makes a policy"):
        run_toy()
    write_recipe([dry], budget={"policy": "plan", "max_latency": "9ms", "predicted_ms": 1, "predicted_bytes": 1})
    with pytest.raises(UserError, match="budget: 'plan' is no stage that makes a policy"):
        run_toy()


CHILD = """
import os, time
from rlrc.jobs import in_fresh_process

def work():
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    in_fresh_process(work)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_does_not_outlive_the_run(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "child.py")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.send_signal(number)
    parent.wait()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the job goes on"
        time.sleep(0.1)
