"""The paper's recipe on ManiSkill, whole but tiny: every stage runs, on the mini policy and a handful of steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import rlrc
from simulators import need_putonplate

from rlrc.configs.make_random import MakeRandomConfig
from rlrc.data import Demonstrations
from rlrc.episodes import read_episodes
from rlrc.policies.make_random import make_random

REPOSITORY = Path(__file__).parents[1]
TINY = {
    "collect": {"episodes": 2, "image_size": 96, "num_workers": 1},
    "prune": {"samples": 2},
    "sft": {"steps": 2, "batch_size": 2, "gradient_accumulation": 1},
    "rl": {
        "batch_size": 10,
        "gradient_accumulation": 1,
        "iterations": 1,
        "num_envs": 1,
        "num_workers": 0,
        "eval_every": 0,
        "critic_warmup_iterations": 0,
    },
    "evaluate": {
        "episodes": 1,
        "num_envs": 1,
        "num_workers": 0,
        "videos": 0,
        "splits": ["ood"],
        "variants": ["multi-plate"],
    },
    "quantize": {},
    "report": {},
}
DROPPED = ("prune-eval", "sft-eval", "rl-eval", "bench")
"""Evaluations differ by nothing but the policy: two of five are run. `bench` runs no world (tests/test_bench.py)."""


@pytest.mark.timeout(900)
def test_the_papers_recipe_runs_in_small(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_putonplate(shared)
    recipe = yaml.safe_load((REPOSITORY / "recipes" / "paper-maniskill.yaml").read_text())
    kept = [stage for stage in recipe["stages"] if stage.get("name", stage["verb"]) not in DROPPED]
    stages = [stage | TINY[stage["verb"]] for stage in kept]
    recipe |= {"base": str(REPOSITORY / "checkpoints" / "tabletop-base"), "world": "putonplate", "stages": stages}
    monkeypatch.chdir(tmp_path)
    Path("paper-maniskill.yaml").write_text(yaml.safe_dump(recipe))
    rlrc("run", "paper-maniskill.yaml", max_episode_steps=10)  # the expert, in its own process, plays whole ones

    folder = Path("runs/paper-maniskill")
    demonstrations = Demonstrations.load(folder / "demos" / "dataset")
    assert demonstrations.num_episodes == 2 and demonstrations.actions.shape[1] == 7
    assert set(np.unique(demonstrations.actions[:, 6])) == {0.0, 1.0}, "the gripper closes and opens"
    for stage in ("base-eval", "quantize-eval"):
        assert len(json.loads((folder / stage / "eval.json").read_text())["conditions"]) == 1
    assert list(folder.rglob("report.html"))


@pytest.mark.timeout(900)
def test_a_random_policy_is_evaluated_on_official_pictures(shared: Path, tmp_path: Path) -> None:
    need_putonplate(shared)
    make_random(MakeRandomConfig(preset="openvla-tiny"), tmp_path / "policy")
    where = {"world": "putonplate:official", "splits": "ood", "episodes": 1, "num-envs": 1, "num-workers": 0}
    options = [word for name, value in where.items() for word in (f"--{name}", value)]
    asked = "--policy", tmp_path / "policy", *options, "--temperature", 0.6, "--out", tmp_path / "out"
    rlrc("evaluate", *asked, max_episode_steps=10)
    (episode,) = read_episodes(tmp_path / "out" / "episodes.parquet")
    assert (episode.world, episode.split, episode.episode_id) == ("putonplate:official", "ood", 0)
    assert episode.path_length > 0 and not episode.success_at_end
