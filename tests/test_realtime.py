"""A world that does not wait: what is carried out when, from which picture, and how far the world goes meanwhile."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlrc import envs
from rlrc.act.actor import Chunked, Command
from rlrc.act.evaluate import evaluate
from rlrc.act.realtime import Asynchronous, Latency, actor
from rlrc.act.rollouts import Conditions, rollout
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.envs.tabletop.scene import TIMESTEP
from rlrc.envs.tabletop.world import CONTROL_HZ, ENVIRONMENT_STATE, SUBSTEPS
from rlrc.episodes import read_episodes
from rlrc.errors import UserError
from rlrc.policies.values import Observation, PolicySpec

TABLETOP = envs.spec("tabletop")
OBJECT_Y = ENVIRONMENT_STATE.index("object_y")


class Clockwork:
    """A policy that says when it looked: its chunks hold 100 times the step that it saw, plus the action's number."""

    device = torch.device("cpu")

    def __init__(self, horizon: int) -> None:
        self.spec = PolicySpec("clockwork", ("front",), (), TABLETOP.action, horizon, execute=max(1, horizon // 2))

    def reset(self) -> None:
        """It remembers nothing."""

    def act(self, observation: Observation, *_: Any) -> np.ndarray:
        assert observation.state is not None
        seen = 100 * observation.state[:, 0]
        return np.tile((seen[:, None] + np.arange(self.spec.horizon))[..., None], (1, 1, 7)).astype(np.float32)


def look(step: int, rows: int = 2) -> Observation:
    return Observation({"front": np.zeros((rows, 16, 16, 3), np.uint8)}, ["go"] * rows, np.full((rows, 1), step))


def played(asynchronous: Asynchronous, steps: int) -> list[float | None]:
    """The actions of one row by step; None where it is not commanded."""
    commands = [asynchronous.act(look(step)) for step in range(steps)]
    assert all((command.actions[0] == command.actions[1]).all() and not command.waits.any() for command in commands)
    return [float(c.actions[0, 0]) if c.commanded[0] else None for c in commands]


def test_without_delay_the_newest_picture_is_acted_on_at_every_step() -> None:
    assert played(Asynchronous(Clockwork(4), 0), 4) == [0, 100, 200, 300]


def test_what_is_late_in_a_chunk_is_left_out_and_the_old_chunk_goes_on_meanwhile() -> None:
    """Delay 2, chunks of 5: the picture of step 0 gives its actions from step 2 on, that of step 2 from step 4."""
    assert played(Asynchronous(Clockwork(5), 2), 8) == [None, None, 2, 3, 202, 203, 402, 403]


def test_a_chunk_that_runs_out_leaves_the_last_command_in_force() -> None:
    """Delay 3, chunks of 4: one action of each is in time, and then nothing is left for two steps."""
    assert played(Asynchronous(Clockwork(4), 3), 10) == [*[None] * 3, 3, None, None, 303, None, None, 603]


def test_chunks_of_one_action_are_carried_out_however_late() -> None:
    assert played(Asynchronous(Clockwork(1), 2), 7) == [None, None, 0, None, 200, None, 400]
    assert played(Asynchronous(Clockwork(1), 1), 4) == [None, 0, 100, 200]


def test_new_episodes_get_nothing_of_what_was_on_its_way() -> None:
    asynchronous = Asynchronous(Clockwork(4), 1)
    played(asynchronous, 3)
    asynchronous.reset()
    assert played(asynchronous, 2) == [None, 1]


def test_a_synchronous_robot_waits_only_when_it_asks() -> None:
    waiting = Chunked(Clockwork(4), latency=30)
    commands = [waiting.act(look(step)) for step in range(4)]
    assert [command.waits.tolist() for command in commands] == [[30, 30], [0, 0], [30, 30], [0, 0]]
    assert [float(command.actions[0, 0]) for command in commands] == [0, 1, 200, 201]
    assert all(command.commanded.all() for command in commands)


@pytest.mark.parametrize(
    ("milliseconds", "ticks", "steps"), [(0, 0, 0), (1, 1, 1), (8, 1, 1), (40, 5, 1), (200, 25, 1), (208, 26, 2)]
)
def test_an_answer_comes_at_the_first_tick_or_step_after_it(milliseconds: float, ticks: int, steps: int) -> None:
    late = Latency(latency_ms=milliseconds)
    synchronous = actor(Clockwork(4), "synchronous", late, TABLETOP, execute=3)
    assert isinstance(synchronous, Chunked) and (synchronous.latency, synchronous.execute) == (ticks, 3)
    asynchronous = actor(Clockwork(4), "asynchronous", late, TABLETOP, execute=None)
    assert isinstance(asynchronous, Asynchronous) and asynchronous._delay == steps


def test_a_tick_is_what_the_physics_makes_of_it() -> None:
    assert TABLETOP.ticks == SUBSTEPS and pytest.approx(1 / CONTROL_HZ) == SUBSTEPS * TIMESTEP


class Script:
    """An actor that commands no move, or nothing at all, after so many ticks of waiting."""

    spec = PolicySpec("script", ("front",), (), TABLETOP.action, 1, 1)
    device = torch.device("cpu")

    def __init__(self, waits: int, commanded: bool) -> None:
        self.waits, self.commanded, self.calls = waits, commanded, 0

    def reset(self) -> None:
        """It remembers nothing."""

    def act(self, observation: Observation, *_: Any) -> Command:
        self.calls += 1
        rows = len(observation)
        still = np.tile(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), (rows, 1))
        return Command(still, np.full(rows, self.waits), np.full(rows, self.commanded))


@pytest.mark.parametrize(
    ("waits", "commanded", "calls"),
    [(0, True, 40), (25, True, 20), (75, True, 10), (400, True, 3), (10**6, True, 1), (0, False, 40)],
)
def test_the_clock_counts_what_passes_while_the_policy_thinks(waits: int, commanded: bool, calls: int) -> None:
    """An episode lasts 8 seconds, and a belt of 2 cm/s goes 16 cm in them, however few actions there were."""
    script = Script(waits, commanded)
    with closing(envs.make("conveyor:2", 1, image_size=16)) as env:
        (episode,) = rollout(script, env, [0], Conditions("ind"))
        gone = float(env.reset(options={"episode_ids": np.array([0])})[1]["environment_state"][0, OBJECT_Y])
        script.calls = 0
        rollout(script, env, [0], Conditions("ind"))
        readings = [reading for reading in env._readings if reading is not None]
    assert script.calls == calls
    assert readings[0].environment_state[OBJECT_Y] - gone == pytest.approx(0.16, abs=2e-3)
    assert (episode.jerk is None) == bool(waits)


def test_waiting_and_stepping_without_a_move_are_the_same_to_the_world() -> None:
    """Holding still for two seconds by ten idle actions, or by 250 ticks of waiting."""
    states = []
    for waits in (0, 25):
        with closing(envs.make("conveyor:4", 2, image_size=16)) as env:
            env.reset(options={"episode_ids": np.array([3, 4])})
            still = np.tile(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), (2, 1))
            for _ in range(10 if waits == 0 else 5):
                env.step_async(still, np.full(2, waits))
                _, _, _, truncated, info = env.step_wait()
            assert not truncated.any()
            states.append(info["environment_state"])
    np.testing.assert_allclose(*states, atol=2e-3)


def evaluated(policy: Path, out: Path, **options: Any) -> dict[str, Any]:
    shared = {"world": "conveyor:2", "episodes": 2, "num_envs": 2, "num_workers": 0, "splits": ("ind",), "videos": 1}
    return evaluate(EvaluateConfig.model_validate({"policy": policy, **shared, **options}), out)


def test_evaluate_with_a_given_latency(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = evaluated(tiny_checkpoint, tmp_path / "late", realtime="synchronous", latency_ms=1600)
    assert result["realtime"] == {"mode": "synchronous", "latency_ms": 1600, "calls_ms": ()}
    saved = json.loads((tmp_path / "late" / "eval.json").read_text())
    assert saved["realtime"]["latency_ms"] == 1600 and saved["conditions"]["ind"]["mean_jerk_m_s3"] is None
    assert all(episode.jerk is None for episode in read_episodes(tmp_path / "late" / "episodes.parquet"))
    none = evaluated(tiny_checkpoint, tmp_path / "none", realtime="synchronous", latency_ms=0)
    patient = evaluated(tiny_checkpoint, tmp_path / "patient")
    assert none["conditions"] == patient["conditions"] and "realtime" not in patient


def test_a_measured_latency_is_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = evaluated(tiny_checkpoint, tmp_path, realtime="asynchronous")["realtime"]
    assert len(first["calls_ms"]) == 20 and first["latency_ms"] == pytest.approx(np.median(first["calls_ms"]))
    assert first["latency_ms"] > 0.5
    again = evaluated(tiny_checkpoint, tmp_path, realtime="asynchronous", episodes=4)["realtime"]
    assert again == first
    (tmp_path / "latency.json").write_text('{"latency_ms": -1}')
    with pytest.raises(UserError, match=r"latency\.json: 'latency_ms'"):
        evaluated(tiny_checkpoint, tmp_path, realtime="asynchronous", episodes=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency_ms": 100}, "latency_ms is for realtime"),
        ({"realtime": "asynchronous", "execute": 1}, "execute is not for asynchronous"),
        ({"realtime": "synchronous", "vla_cache": {}}, "give --latency-ms"),
        ({"realtime": "synchronous", "latency_ms": -1}, "greater than or equal to 0"),
        ({"realtime": "synchronous", "world": None, "dataset": "d"}, "realtime is for a world"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig.model_validate({"policy": "p", **options})


def test_worlds_that_one_simulation_moves_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="move together and cannot wait one by one"):
        evaluated(tiny_checkpoint, tmp_path, world="putonplate:gpu", realtime="synchronous", latency_ms=1)
