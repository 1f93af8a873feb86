"""Evaluation: what is recorded of an episode, that episodes can be paired, and that a cut-off evaluation continues."""

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import bandit_world
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import toy_world
from mortal_world import mortal
from toy_world import FPS, STEPS, ToyWorld

from rlrc import envs
from rlrc.act.actor import Chunked, Command, Plain
from rlrc.act.evaluate import _actors, check, conditions, episode_ids, evaluate
from rlrc.act.rollouts import Camera, Conditions, motion, rollout, rollout_in_turns
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.envs.vector import WorkerVectorEnv
from rlrc.episodes import Episode, by_task, compare, read_episodes, success_rate, video_path, write_episodes
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.policies.dim import Dim
from rlrc.policies.prismatic.processor import ImageProcessor
from rlrc.policies.values import Observation, PolicySpec
from rlrc.stats import wilson
from rlrc.video import read_video, write_video


class Straight:
    """Stands in for an actor: moves every hand by `velocity` (m a step) along x."""

    spec = PolicySpec("straight", ("front",), (), toy_world.SPEC.action, horizon=1, execute=1)
    device = torch.device("cpu")

    def __init__(self, velocity: float) -> None:
        self.velocity = velocity

    def reset(self) -> None:
        """It keeps nothing."""

    def act(self, observation: Observation, temperature: float, noise: object) -> Command:
        assert list(observation.images) == ["front"] and len(observation.images["front"]) == len(observation)
        actions = np.zeros((len(observation), 7), np.float32)
        actions[:, 0] = self.velocity
        return Command(actions, np.zeros(len(actions), int), np.ones(len(actions), bool))


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[ToyWorld]:
    """Puts the toy world in the place of every world; the list holds those that were made."""
    made: list[ToyWorld] = []

    def make(world: str, num_envs: int, num_workers: int, image_size: int, cameras: tuple[str, ...]) -> ToyWorld:
        assert cameras == ("front",)
        made.append(ToyWorld(num_envs))
        return made[-1]

    monkeypatch.setattr("rlrc.envs.make", make)
    return made


def test_an_episode_that_passes_through_the_target_succeeds_once_but_not_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toy_world.target", lambda split, id_: np.array([0.01 * id_ + 0.005, 0, 0]))
    early, late, never = rollout(Straight(0.01), ToyWorld(2), [5, STEPS, 50], Conditions("ind"))
    assert (early.success_once, early.success_at_end, early.grasped) == (True, False, True)
    assert early.steps == 4  # 0.04 m is the first stop within 0.02 m of 0.055 m, and 0.07 m the last
    assert (late.success_once, late.success_at_end) == (True, True)
    assert (never.success_once, never.grasped, never.steps) == (False, False, None)
    assert early.path_length == pytest.approx(0.01 * STEPS, rel=1e-4)
    assert early.jerk == pytest.approx(0.0, abs=1e-4)
    assert early.sum_reward == 4 and early.max_reward == 1 and never.sum_reward == 0


def test_actions_reach_the_world_in_its_own_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that thinks in centimetres, in a world of metres."""
    spec = toy_world.SPEC
    monkeypatch.setattr(ToyWorld, "world_spec", replace(spec, action=(Dim("x", "m"), *spec.action[1:])))
    straight = Straight(1.0)
    straight.spec = replace(Straight.spec, action=(Dim("x", "cm"), *spec.action[1:]))
    (episode,) = rollout(straight, ToyWorld(1), [5], Conditions("ind"))
    assert episode.path_length == pytest.approx(0.01 * STEPS, rel=1e-4)
    straight.spec = replace(straight.spec, action=(Dim("x", "rad"), *spec.action[1:]))
    with pytest.raises(UserError, match="its unit is 'rad' in the policy and 'm' in the world 'toy'"):
        rollout(straight, ToyWorld(1), [5], Conditions("ind"))


def test_motion_of_known_curves() -> None:
    t = np.arange(20) / FPS
    cubic = np.stack([t**3, np.zeros_like(t), np.zeros_like(t)], axis=-1)
    circle = np.stack([np.cos(t), np.sin(t), t * 0], axis=-1)
    length, jerk = motion(np.stack([cubic, circle], axis=1), FPS)
    assert length[0] == pytest.approx(t[-1] ** 3) and jerk[0] == pytest.approx(6.0)
    assert length[1] == pytest.approx(t[-1], rel=2e-3) and jerk[1] == pytest.approx(1.0, rel=2e-2)
    assert motion(cubic[:3, None], FPS)[1] == 0


def chunked(policy: Policy) -> Chunked:
    return Chunked(Plain(policy))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_episode_goes_the_same_way_whatever_runs_beside_it(tiny_policy: Policy, temperature: float) -> None:
    together = rollout(chunked(tiny_policy), ToyWorld(4), [0, 1, 2, 3, 4], Conditions("ood", temperature=temperature))
    apart = rollout(chunked(tiny_policy), ToyWorld(2), [4, 2, 0], Conditions("ood", temperature=temperature))
    for episode in apart:
        twin = together[episode.episode_id]
        assert episode.path_length == pytest.approx(twin.path_length, rel=1e-5)
        assert episode.success_at_end == twin.success_at_end
    if temperature > 0:
        other = rollout(chunked(tiny_policy), ToyWorld(2), [0], Conditions("ood", temperature=temperature, seed=1))
        assert len({episode.jerk for episode in (*together, *other)}) == 6  # all noise differs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_environments_that_take_turns_give_the_same_episodes(
    tiny_policy: Policy, tmp_path: Path, temperature: float
) -> None:
    """Also where one of them loses a worker while the other's step is under way."""
    spec, ids = mortal(tmp_path / "lost"), range(9)
    (tmp_path / "lost").touch()
    with closing(WorkerVectorEnv(spec, 5, num_workers=0)) as env:
        camera_alone = Camera([2, 6])
        alone = rollout(chunked(tiny_policy), env, ids, Conditions("ind", temperature=temperature, camera=camera_alone))
    (tmp_path / "lost").unlink()
    with closing(WorkerVectorEnv(spec, 3, num_workers=1)) as a, closing(WorkerVectorEnv(spec, 2, num_workers=1)) as b:
        camera = Camera([2, 6])
        actors = [(chunked(tiny_policy), a), (chunked(tiny_policy), b)]
        in_turns = rollout_in_turns(actors, ids, Conditions("ind", temperature=temperature, camera=camera))
    assert (tmp_path / "lost").exists()
    assert in_turns == alone and [episode.episode_id for episode in alone] == list(ids)
    assert len({episode.sum_reward for episode in alone}) > 1
    for id_ in (2, 6):
        np.testing.assert_array_equal(camera.frames[id_], camera_alone.frames[id_])


def test_a_policy_on_a_device_of_its_own_acts_in_two_environments(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []

    def make(world: str, num_envs: int, num_workers: int, image_size: int, cameras: tuple[str, ...]) -> ToyWorld:
        assert cameras == ("front",)
        made.append((num_envs, num_workers))
        return ToyWorld(num_envs)

    monkeypatch.setattr("rlrc.envs.make", make)
    config = EvaluateConfig(policy=Path("x"), num_envs=5, num_workers=2)
    with _actors(tiny_policy, config, Path()) as (actors, _):
        assert made == [(5, 2)] and len(actors) == 1
    monkeypatch.setattr(Policy, "device", torch.device("meta"))
    made.clear()
    with _actors(tiny_policy, config, Path()) as (actors, _):
        assert made == [(2, 2), (3, 2)] and len(actors) == 2
    made.clear()
    with _actors(tiny_policy, config.model_copy(update={"num_workers": 0}), Path()):
        assert made == [(5, 0)]
    made.clear()
    with _actors(tiny_policy, config.model_copy(update={"world": "putonplate:gpu"}), Path()):
        assert made == [(5, 2)], "what is simulated at once has no workers that could wait"


def test_an_evaluation_outlives_its_workers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EvaluateConfig(policy=tiny_checkpoint, splits=("ind",), episodes=6, num_envs=4, temperature=1.0, videos=4)
    spec = mortal(tmp_path / "lost")
    monkeypatch.setattr("rlrc.envs.spec", lambda world: spec)
    (tmp_path / "lost").touch()  # the first time nothing dies
    evaluate(config, tmp_path / "whole")
    assert "replaced" not in capsys.readouterr().err
    (tmp_path / "lost").unlink()
    evaluate(config, tmp_path / "survived")
    assert (tmp_path / "lost").exists()
    assert capsys.readouterr().err.count("environments 2 to 3 died (SIGSEGV); it was replaced") == 1
    tables = [read_episodes(tmp_path / run / "episodes.parquet") for run in ("whole", "survived")]
    assert tables[0] == tables[1] and len(tables[0]) == 6
    assert len({episode.sum_reward for episode in tables[0]}) > 1
    for film in (tmp_path / "whole" / "videos").iterdir():
        twin = tmp_path / "survived" / "videos" / film.name
        np.testing.assert_array_equal(read_video(film)[0], read_video(twin)[0])


def test_writes_tables_rates_and_videos(tiny_checkpoint: Path, tmp_path: Path, worlds: list[ToyWorld]) -> None:
    config = EvaluateConfig(policy=tiny_checkpoint, episodes=5, first_episode_id=10, num_envs=4, videos=2)
    result = evaluate(config, tmp_path)
    assert worlds[0].closed_by_user
    episodes = read_episodes(tmp_path / "episodes.parquet")
    assert [(e.split, e.episode_id) for e in episodes] == [(s, i) for s in ("ind", "ood") for i in range(10, 15)]
    assert {(e.policy, e.world, e.variant, e.seed) for e in episodes} == {(str(tiny_checkpoint), "tabletop", "main", 0)}
    assert json.loads((tmp_path / "eval.json").read_text()) == result
    rate = result["conditions"]["ind"]["success_at_end"]
    assert rate["n"] == 5 and rate["successes"] == sum(e.success_at_end for e in episodes[:5])

    films = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert films == ["ind-00010.mp4", "ind-00011.mp4", "ood-00010.mp4", "ood-00011.mp4"]
    with av.open(tmp_path / "videos" / films[0]) as film:
        stream = film.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", FPS)
        assert stream.width == stream.height and stream.width >= 256 and stream.width % 2 == 0
    frames, fps = read_video(tmp_path / "videos" / films[0])
    assert fps == FPS
    assert len(frames) == STEPS + 1
    red = frames[:, 200, 100, 0].astype(int)
    assert np.abs(red - 20 * np.arange(STEPS + 1)).max() < 12  # the toy world's clock, as filmed


def test_eval_info_is_lerobots(tiny_checkpoint: Path, tmp_path: Path, worlds: list[ToyWorld]) -> None:
    evaluate(EvaluateConfig(policy=tiny_checkpoint, episodes=3, num_envs=3, videos=1), tmp_path)
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert set(info) == {"per_task", "per_group", "overall"}
    assert set(info["per_task"][0]) == {"task_group", "task_id", "metrics"}
    assert set(info["per_task"][0]["metrics"]) == {"sum_rewards", "max_rewards", "successes", "video_paths"}
    assert len(info["per_task"][1]["metrics"]["successes"]) == 3
    shared = {"avg_sum_reward", "avg_max_reward", "pc_success", "n_episodes", "video_paths"}
    assert set(info["per_group"]) == {"ind", "ood"} and set(info["per_group"]["ind"]) == shared
    assert set(info["overall"]) == shared | {"eval_s", "eval_ep_s"} and info["overall"]["n_episodes"] == 6


def test_tasks_are_told_one_by_one(
    tiny_checkpoint: Path,
    tmp_path: Path,
    worlds: list[ToyWorld],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("toy_world.instruction", lambda id_: f"put {'abc'[id_ % 3]} on plate")
    config = EvaluateConfig(policy=tiny_checkpoint, splits=("ind",), episodes=7, num_envs=4, videos=2)
    condition = evaluate(config, tmp_path)["conditions"]["ind"]
    episodes = read_episodes(tmp_path / "episodes.parquet")
    assert [episode.task[4] for episode in episodes] == list("abcabca")
    assert {task: rates["n"] for task, rates in condition["tasks"].items()} == {
        "put a on plate": 3,
        "put b on plate": 2,
        "put c on plate": 2,
    }
    rate = condition["tasks"]["put b on plate"]["success_at_end"]
    assert rate["successes"] == sum(episodes[i].success_at_end for i in (1, 4))
    assert (rate["low"], rate["high"]) == wilson(rate["successes"], 2)
    per_task = json.loads((tmp_path / "eval_info.json").read_text())["per_task"]
    assert [(row["task_group"], row["task_id"], len(row["metrics"]["successes"])) for row in per_task] == [
        ("ind", 0, 3),
        ("ind", 1, 2),
        ("ind", 2, 2),
    ]
    assert [len(row["metrics"]["video_paths"]) for row in per_task] == [1, 1, 0]
    assert "ind, task by task" in capsys.readouterr().err


def test_only_the_tasks_that_are_named_are_played(
    tiny_checkpoint: Path, tmp_path: Path, worlds: list[ToyWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = replace(envs.spec("tabletop"), num_tasks=4)
    monkeypatch.setattr("rlrc.envs.spec", lambda world: suite)
    config = EvaluateConfig(policy=tiny_checkpoint, splits=("ind",), tasks=(3, 0), episodes=2, num_envs=2, videos=2)
    evaluate(config, tmp_path)
    evaluate(config.model_copy(update={"episodes": 5}), tmp_path)  # goes on after the first two
    assert [episode.episode_id for episode in read_episodes(tmp_path / "episodes.parquet")] == [0, 3, 4, 7, 8]
    assert sorted(film.name for film in (tmp_path / "videos").iterdir()) == ["ind-00000.mp4", "ind-00003.mp4"]


def test_tasks_make_a_table_where_there_are_some_with_several_episodes() -> None:
    def of_tasks(*tasks: str) -> list[Episode]:
        return [replace(episode, task=task) for task, episode in zip(tasks, some_episodes([True] * 300), strict=False)]

    assert list(by_task(of_tasks("b", "a", "a", "b"))) == ["a", "b"]
    assert by_task(of_tasks("a", "a")) == {}
    assert by_task(of_tasks("b", "a", "a")) == {}
    assert by_task(of_tasks(*[f"{i % 100}" for i in range(300)])) == {}
    assert len(by_task(of_tasks(*[f"{i % 99}" for i in range(300)]))) == 99


def test_a_cut_off_evaluation_continues(
    tiny_checkpoint: Path, tmp_path: Path, worlds: list[ToyWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(policy=tiny_checkpoint, episodes=5, num_envs=2, videos=0)
    whole = evaluate(config, tmp_path / "whole")
    resets = []
    reset = ToyWorld.reset

    def cut_off(self: ToyWorld, **arguments: dict) -> tuple[dict, dict]:
        resets.append((arguments["options"]["split"], *arguments["options"]["episode_ids"]))
        if len(resets) == 5:
            raise KeyboardInterrupt
        return reset(self, **arguments)

    monkeypatch.setattr(ToyWorld, "reset", cut_off)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "cut")
    assert len(read_episodes(tmp_path / "cut" / "episodes.parquet")) == 7
    assert evaluate(config, tmp_path / "cut") == whole
    assert resets[5:] == [("ood", 2, 3), ("ood", 4, 4)]
    assert read_episodes(tmp_path / "cut" / "episodes.parquet") == read_episodes(
        tmp_path / "whole" / "episodes.parquet"
    )


def test_conditions_are_those_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**options: Any) -> EvaluateConfig:
        return EvaluateConfig(policy=Path("x"), **options)

    assert conditions(of(variants=("main", "vision-image"))) == [
        ("ind", "main"),
        ("ood", "main"),
        ("ood", "vision-image"),
    ]
    assert conditions(of(splits=("ood",))) == [("ood", "main")]
    for options, message in (
        ({"variants": ("fog",)}, r"unknown variant 'fog': the world 'tabletop' has main, vision-image"),
        ({"variants": ("plate",), "splits": ("ind",)}, "no condition is left: these variants have none of these"),
        ({"world": "moon"}, "unknown world 'moon'"),
    ):
        with pytest.raises(UserError, match=message):
            check(of(**options))
    one_split = replace(bandit_world.SPEC, splits=("ind",), variants={"main": "main"}, num_tasks=4)
    monkeypatch.setattr("rlrc.envs.spec", lambda world: one_split)
    assert conditions(of()) == [("ind", "main")]
    assert episode_ids(of(tasks=(3, 0), first_episode_id=5, episodes=4)) == [7, 8, 11, 12]
    for options, message in (
        ({"splits": ("ood",)}, r"unknown split 'ood': the world 'tabletop' has ind$"),
        ({"tasks": (1, 4)}, r"tasks \[1, 4\]: those of the world '.*' are numbered 0 to 3"),
        ({"tasks": ()}, r"tasks \[\]: those of"),
    ):
        with pytest.raises(UserError, match=message):
            check(of(**options))


def test_options_reach_the_policy(
    tiny_checkpoint: Path, tmp_path: Path, worlds: list[ToyWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    prepare = ImageProcessor.__call__

    def note(self: ImageProcessor, images: np.ndarray, device: torch.device) -> torch.Tensor:
        seen.append(self.center_crop)
        return prepare(self, images)

    monkeypatch.setattr(ImageProcessor, "__call__", note)
    small = {"episodes": 2, "num_envs": 2, "videos": 0, "splits": ("ind",)}
    evaluate(EvaluateConfig(policy=tiny_checkpoint, unnorm_key="tabletop", **small), tmp_path / "plain")
    evaluate(EvaluateConfig(policy=tiny_checkpoint, center_crop=True, **small), tmp_path / "cropped")
    loading = [False]  # acts once, to be warm
    assert seen == loading + [False] * STEPS + loading + [True] * STEPS
    with pytest.raises(UserError, match="bridge_orig"):
        evaluate(EvaluateConfig(policy=tiny_checkpoint, unnorm_key="bridge_orig", **small), tmp_path / "other")


def some_episodes(successes: list[bool], policy: str = "a") -> list[Episode]:
    example = Episode(policy, "w", "ind", "main", 0, 0, True, True, True, None, 0.0, 0.0, 0.0, 0.0)
    return [
        replace(example, episode_id=i, success_at_end=won, steps=i if won else None) for i, won in enumerate(successes)
    ]


def test_rates_carry_wilsons_interval() -> None:
    rate = success_rate(some_episodes([True] * 57 + [False] * 7))
    p, n, z = 57 / 64, 64, 1.959964
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (rate.low, rate.high) == pytest.approx(
        ((centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)), abs=1e-6
    )


def test_policies_are_compared_episode_by_episode() -> None:
    reference = some_episodes([True] * 6 + [False] * 4, "a")
    other = some_episodes([True] * 4 + [False] * 2 + [True] * 4, "b")
    comparison = compare(list(reversed(other)), reference)
    assert comparison.difference == pytest.approx(0.2)
    assert comparison.p == pytest.approx(2 * sum(math.comb(6, k) for k in range(3)) / 2**6)  # 2 against 4
    assert compare(other[5:], reference).n == 5  # those that both were run on
    with pytest.raises(UserError, match="same episodes"):
        compare(other[:5], reference[5:])


def test_the_table_survives_the_disk(tmp_path: Path) -> None:
    episodes = [replace(episode, task="put") for episode in some_episodes([False, True])]
    write_episodes(tmp_path / "x.parquet", episodes)
    assert read_episodes(tmp_path / "x.parquet") == episodes
    old = pq.read_table(tmp_path / "x.parquet").drop_columns("task")
    pq.write_table(old, tmp_path / "old.parquet")
    assert read_episodes(tmp_path / "old.parquet") == [replace(episode, task="") for episode in episodes]
    (tmp_path / "y.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match="not a parquet file that can be read"):
        read_episodes(tmp_path / "y.parquet")
    with pytest.raises(UserError, match="no such file"):
        read_episodes(tmp_path / "z.parquet")


def test_a_camera_films_only_its_episodes(tmp_path: Path) -> None:
    camera = Camera([3])
    rollout(Straight(0.0), ToyWorld(2), [2, 3, 4], Conditions("ind", camera=camera))
    camera.write(tmp_path, "ind/texture", FPS)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["ind-texture-00003.mp4"]
    assert len(read_video(video_path(tmp_path, "ind/texture", 3))[0]) == STEPS + 1


def test_odd_sizes_are_made_even(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", [np.zeros((301, 403, 3), np.uint8)], FPS)
    assert read_video(tmp_path / "x.mp4")[0].shape == (1, 300, 402, 3)
