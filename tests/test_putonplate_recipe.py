"""The paper's recipe on ManiSkill, whole but tiny: every stage runs, on the mini policy and a handful of steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from simulators import need_putonplate

from rlrc.data import Demonstrations
from rlrc.pipeline import RunConfig, run

REPOSITORY = Path(__file__).parents[1]
TINY = {
    "collect": {"episodes": 2, "image_size": 96, "num_workers": 1},
    "prune": {"samples": 2},
    "sft": {"steps": 2, "batch_size": 2, "gradient_accumulation": 1},
    "rl": {"iterations": 1, "num_envs": 1, "num_workers": 0, "eval_every": 0, "critic_warmup_iterations": 0},
    "evaluate": {"episodes": 1, "num_envs": 1, "num_workers": 0, "videos": 0, "variants": ["main", "multi-plate"]},
    "bench": {},
    "quantize": {},
    "report": {},
}
DROPPED = ("prune-eval", "sft-eval", "quantize-eval")
"""Evaluations differ by nothing but the policy: two of the five are run."""


def test_the_papers_recipe_runs_in_small(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_putonplate(shared)
    recipe = yaml.safe_load((REPOSITORY / "recipes" / "paper-maniskill.yaml").read_text())
    stages = [stage | TINY[stage["verb"]] for stage in recipe["stages"] if stage.get("name") not in DROPPED]
    recipe |= {"base": str(REPOSITORY / "checkpoints" / "tabletop-base"), "world": "putonplate", "stages": stages}
    monkeypatch.chdir(tmp_path)
    Path("paper-maniskill.yaml").write_text(yaml.safe_dump(recipe))
    run(RunConfig(recipe=Path("paper-maniskill.yaml")), Path("runs"))

    demonstrations = Demonstrations.load(Path("runs/demos/dataset"))
    assert demonstrations.num_episodes == 2 and demonstrations.actions.shape[1] == 7
    assert set(np.unique(demonstrations.actions[:, 6])) == {0.0, 1.0}, "the gripper closes and opens"
    for stage in ("base-eval", "rl-eval"):
        conditions = json.loads(Path("runs", stage, "eval.json").read_text())["conditions"]
        assert len(conditions) == 3, "main in and out of distribution, and one challenge"
    assert Path("runs/report/report.html").exists() or Path("runs/report.html").exists()


def test_a_random_policy_is_evaluated_on_official_pictures(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_putonplate(shared)
    from rlrc.episodes import read_episodes
    from rlrc.evaluate import EvaluateConfig, evaluate
    from rlrc.models.random import MakeRandomConfig, make_random

    make_random(MakeRandomConfig(preset="openvla-tiny"), tmp_path / "policy")
    config = EvaluateConfig(
        policy=tmp_path / "policy",
        world="putonplate:official",
        splits=("ood",),
        episodes=1,
        num_envs=1,
        num_workers=0,
        temperature=0.6,
    )
    evaluate(config, tmp_path / "out")
    (episode,) = read_episodes(tmp_path / "out" / "episodes.parquet")
    assert (episode.world, episode.split, episode.episode_id) == ("putonplate:official", "ood", 0)
    assert episode.path_length > 0 and not episode.success_at_end
