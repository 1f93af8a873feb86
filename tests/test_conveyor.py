"""The conveyor: the belt carries what lies on it, episodes are pairs at every speed, and the expert keeps up."""

import numpy as np
import pytest

from rlrc import envs
from rlrc.envs.tabletop import Expert, Tabletop
from rlrc.envs.tabletop.conveyor import SPEEDS, draw_conveyor_episode
from rlrc.envs.tabletop.scene import BELT_HALF_WIDTH, BELT_TOP
from rlrc.envs.tabletop.world import ENVIRONMENT_STATE
from rlrc.errors import UserError

OBJECT = [ENVIRONMENT_STATE.index(f"object_{axis}") for axis in "xyz"]
STILL = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


def conveyor(speed: str) -> Tabletop:
    world = envs.spec(f"conveyor:{speed}").factory(16)
    assert isinstance(world, Tabletop)
    return world


@pytest.mark.parametrize("speed", ["0", "1", "4", "6"])
def test_the_belt_carries_the_object_at_its_speed(speed: str) -> None:
    world = conveyor(speed)
    for episode_id in range(4):
        start = world.reset("ind", "main", episode_id).environment_state[OBJECT]
        for _ in range(5):
            end = world.step(STILL).environment_state[OBJECT]
        expected = [0.0, float(speed) / 100, 0.0]  # five steps are one second
        np.testing.assert_allclose(end - start, expected, atol=1.5e-3)
        assert end[2] == pytest.approx(BELT_TOP, abs=1e-3)


@pytest.mark.parametrize("speed", ["1", "4"])
def test_the_expert_solves_it(speed: str) -> None:
    world, solved = conveyor(speed), 0
    for episode_id in range(6):
        reading = world.reset("ood", "main", episode_id)
        for _ in range(40):
            reading = world.step(Expert(1).act(reading.environment_state[None])[0])
        solved += reading.success
    assert solved >= 5


def test_what_is_not_taken_in_time_is_gone() -> None:
    world = conveyor("6")
    world.reset("ind", "main", 0)
    for _ in range(30):
        gone = world.step(STILL)
    for _ in range(10):
        gone = world.step(Expert(1).act(gone.environment_state[None])[0])
    assert not gone.grasped and not gone.success


def test_an_episode_differs_between_speeds_in_nothing_but_the_speed() -> None:
    for episode_id in range(30):
        slow, fast, drawn = (draw_conveyor_episode("ind", "main", episode_id, speed) for speed in (0.01, 0.04, None))
        for other in (fast, drawn):
            assert (other.instruction, other.objects, other.table) == (slow.instruction, slow.objects, slow.table)
            np.testing.assert_array_equal(other.object_positions, slow.object_positions)
            np.testing.assert_array_equal(other.receptacle_positions, slow.receptacle_positions)
        assert slow.belt and fast.belt and drawn.belt
        assert (slow.belt.speed, fast.belt.speed) == (0.01, 0.04) and drawn.belt.speed in SPEEDS
        aside = abs(slow.belt.x - slow.receptacle_positions[0, 0])
        assert aside > BELT_HALF_WIDTH + slow.receptacles[0].radius


@pytest.mark.parametrize("name", ["conveyor:fast", "conveyor:-1", "conveyor:", "conveyor:21", "conveyor:nan"])
def test_no_speed_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"speed is given in cm/s, from 0 to 20"):
        envs.spec(name)


def test_there_is_no_other_variant() -> None:
    with pytest.raises(UserError, match="unknown variant 'carrot' of conveyor"):
        draw_conveyor_episode("ood", "carrot", 0, None)
