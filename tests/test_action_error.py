"""The action error on demonstrations: against a formula, on a policy whose actions are known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command import rlrc
from dataset_files import CASES, copy_case
from toy_demonstrations import toy_demonstrations

from rlrc.act import action_error as module
from rlrc.act.action_error import LABEL, action_error, asked_at
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.data import Demonstrations
from rlrc.errors import UserError
from rlrc.pipeline import RunConfig, run
from rlrc.policies.dim import Dim
from rlrc.policies.values import Observation, PolicySpec, Sample, Sampler
from rlrc.recipe import Recipe
from rlrc.report.summary import summarise_run
from rlrc.resolve import resolve
from rlrc.stats import ClusterMean, cluster_mean

LENGTHS = (7, 9)
HORIZON, EXECUTE = 4, 3


class Known:
    """Gives chunks that it is told, counted by the frames it is asked at; normalised actions are ten times larger."""

    spec = PolicySpec("known", ("front",), (), (Dim("x", "m"), Dim("grip")), horizon=HORIZON, execute=EXECUTE)
    device = torch.device("cpu")
    frame_size = None
    default_temperature = 0.0

    def __init__(self, chunks: np.ndarray) -> None:
        self.chunks = chunks
        self.asked: list[str] = []

    def prepare(self, observation: Observation) -> Observation:
        return observation

    def sample(self, observation: Observation, sampler: Sampler, generator: object) -> Sample:
        first = len(self.asked)
        self.asked += observation.instruction
        return Sample(torch.from_numpy(10 * self.chunks[first : first + len(observation)]), {})

    def to_physical(self, actions: np.ndarray) -> np.ndarray:
        return (actions / 10).astype(np.float32)

    def to_normalised(self, actions: np.ndarray) -> np.ndarray:
        return (10 * actions).astype(np.float32)

    def action_statistics(self) -> dict:
        return {}

    def require_readable(self, instructions: list[str]) -> None:
        pass


def demonstrations() -> Demonstrations:
    """Episodes 3 and 5; what is asked at a frame is the frame's number, which is its instruction."""
    count = sum(LENGTHS)
    actions = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    toy = toy_demonstrations()
    return replace(
        toy,
        pictures={"front": toy.pictures["front"].take(np.arange(count))},
        actions=actions,
        tasks=[str(number) for number in range(count)],
        task_index=np.arange(count),
        episode_index=np.repeat([3, 5], LENGTHS),
        state=None,
    )


@pytest.mark.parametrize("execute", [1, EXECUTE, HORIZON])
def test_each_frame_is_compared_once_where_the_policy_would_be_asked(
    execute: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = demonstrations()
    asked = [*range(0, 7, execute), *range(7, 16, execute)]
    assert asked_at(recorded, execute).tolist() == asked
    errors = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)
    chunks = np.full((len(asked), HORIZON, 2), np.nan, np.float32)  # what is not compared may be anything
    for row, start in enumerate(asked):
        end = 7 if start < 7 else 16
        for step in range(min(execute, end - start)):
            chunks[row, step] = recorded.actions[start + step] + errors[start + step]
    policy = Known(chunks)
    monkeypatch.setattr(module, "load", lambda *_, **__: policy)
    monkeypatch.setattr(Demonstrations, "of", lambda config: recorded)
    config = EvaluateConfig(policy=tmp_path, dataset=tmp_path, execute=execute, num_envs=2)
    result = action_error(config, tmp_path)
    assert [int(number) for number in policy.asked] == asked
    assert result == json.loads((tmp_path / "eval.json").read_text())
    assert (result["measure"], result["frames"], result["episodes"]) == (LABEL, 16, 2)
    assert "not a success rate" in LABEL and result["execute"] == execute
    size = np.abs(errors)
    for dimension, name, unit in ((0, "x", "m"), (1, "grip", "")):
        told = result["dimensions"][dimension]
        assert (told["name"], told["unit"]) == (name, unit)
        means = size[:7, dimension].mean(), size[7:, dimension].mean()
        for kind, scale in (("physical", 1), ("normalised", 10)):
            assert told[kind]["mean"] == pytest.approx(scale * size[:, dimension].mean(), rel=1e-4)
            # Of two episodes, one draw in four has the first twice, and one in four the second.
            ends = pytest.approx([scale * min(means), scale * max(means)], rel=1e-4)
            assert [told[kind]["low"], told[kind]["high"]] == ends
    assert result["normalised"]["mean"] == pytest.approx(10 * size.mean(), rel=1e-4)


def test_the_interval_is_that_of_independent_episodes() -> None:
    """Many equal episodes: the mean of their means, give or take 1.96 standard errors; the frames within say nothing
    more."""
    generator = np.random.default_rng(0)
    means = generator.normal(5, 2, 400)
    values, clusters = np.repeat(means, 25), np.repeat(np.arange(400), 25)
    found = cluster_mean(values, clusters)
    half = 1.96 * means.std() / 20
    assert found.mean == pytest.approx(means.mean())
    assert found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert (found.low + found.high) / 2 == pytest.approx(means.mean(), abs=0.1 * half)
    assert cluster_mean([1.0, 3.0], [7, 7]) == ClusterMean(2.0, None, None), "one episode tells nothing of others"
    lengths = cluster_mean([1.0] * 9 + [11.0], [0] * 9 + [1])
    assert lengths.mean == 2.0 and (lengths.low, lengths.high) == (1.0, 11.0), "every frame counts the same"
    with pytest.raises(UserError, match="at least one"):
        cluster_mean([], [])


def test_the_command_compares_a_checkpoint_with_a_dataset(tiny_checkpoint: Path, tmp_path: Path) -> None:
    common = "--policy", tiny_checkpoint, "--dataset", CASES / "plain", "--num-envs", 4
    said = rlrc("evaluate", *common, "--dataset-episodes", "1", "--temperature", 1, "--out", tmp_path / "one")
    assert LABEL in " ".join(said.split())
    result = json.loads((tmp_path / "one" / "eval.json").read_text())
    assert (result["frames"], result["episodes"]) == (8, 1) and result["normalised"]["low"] is None
    config = EvaluateConfig(policy=tiny_checkpoint, dataset=CASES / "plain", num_envs=4)
    result = action_error(config, tmp_path / "out")
    assert (result["frames"], result["episodes"], len(result["dimensions"])) == (14, 2, 7)


def test_sampled_actions_do_not_depend_on_what_is_asked_beside(tiny_checkpoint: Path, tmp_path: Path) -> None:
    results = [
        action_error(
            EvaluateConfig(policy=tiny_checkpoint, dataset=CASES / "plain", temperature=2.0, num_envs=n, seed=seed),
            tmp_path,
        )["normalised"]["mean"]
        for n, seed in ((3, 0), (14, 0), (3, 1))
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-6) and results[0] != pytest.approx(results[2], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world": "tabletop"}, "world and dataset are both given"),
        ({"videos": 1}, "videos is for a world, and a dataset is given"),
        ({"dataset": None, "cameras": ["front"]}, "cameras is for a dataset, and none is given"),
        ({"splits": ("ind",)}, "splits is for a world"),
        ({"vla_cache": {}}, "vla_cache is for a world"),
    ],
)
def test_options_of_a_world_do_not_go_with_a_dataset(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluateConfig.parse({"policy": "x", "dataset": "y", **options}, "here")


def test_a_config_is_the_same_after_it_was_written() -> None:
    for given in ({"policy": "x"}, {"policy": "x", "world": "putonplate"}, {"policy": "x", "dataset": "y"}):
        config = EvaluateConfig.parse(given, "here")
        assert EvaluateConfig.parse(config.model_dump(mode="json"), "there") == config
        assert config.world == (given.get("world") or (None if "dataset" in given else "tabletop"))


def test_what_does_not_fit_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for case, options, message in (
        ("a14", {}, "actions have 14 dimensions, and the policy's have 7"),
        ("two", {}, "name them with cameras"),
        ("plain", {"execute": 2}, "execute 2: the policy gives 1 actions a call"),
        ("plain", {"dataset_episodes": "7"}, "no episode 7"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            action_error(EvaluateConfig(policy=tiny_checkpoint, dataset=CASES / case, **options), tmp_path)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_run_has_no_table_of_action_errors(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"verb": "evaluate", "name": "error", "policy": "base", "dataset": str(CASES / "plain")}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"base": str(tiny_checkpoint), "stages": [error]}))
    result = run(RunConfig(recipe=recipe), tmp_path / "run")
    assert result["summary"] == [] and result["stages"]["error"]["measure"] == LABEL
    assert "there is no table" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing to show"):
        summarise_run(tmp_path / "run")
    assert "action errors are no success rates" in capsys.readouterr().err


def test_a_recipes_world_is_not_that_of_a_dataset(tiny_checkpoint: Path, tmp_path: Path) -> None:
    dataset = copy_case("plain", tmp_path)
    recipe = Recipe.parse(
        {
            "name": "r",
            "base": str(tiny_checkpoint),
            "world": "tabletop",
            "stages": [
                {"verb": "evaluate", "name": "error", "policy": "base", "dataset": str(dataset)},
                {"verb": "collect", "name": "demos"},
                {"verb": "evaluate", "name": "later", "policy": "base", "dataset": "demos"},
                {"verb": "evaluate", "policy": "base"},
            ],
        },
        "here",
    )
    stages = resolve(recipe, tmp_path / "run")
    worlds = {name: getattr(stage.config, "world", None) for name, stage in stages.items()}
    assert worlds == {"error": None, "demos": "tabletop", "later": None, "evaluate": "tabletop"}
