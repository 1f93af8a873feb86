"""The tabletop world: physics, success, the expert, and what an episode id fixes."""

import mujoco
import numpy as np
import pytest

from rlrc.envs.tabletop import SPEC, Expert, Tabletop
from rlrc.envs.tabletop.arm import rotation_matrix, rotation_vector
from rlrc.envs.tabletop.tables import TABLES, TEST_TABLES, TRAIN_TABLES, texture
from rlrc.envs.tabletop.things import TEST_OBJECTS, TRAIN_OBJECTS
from rlrc.envs.tabletop.variants import PLATE_GAP, TEST_POSITIONS, TRAIN_POSITIONS, draw_episode
from rlrc.envs.tabletop.world import CAMERAS, ENVIRONMENT_STATE, STATE
from rlrc.envs.world import Reading
from rlrc.errors import UserError

CHALLENGES = [name for name in SPEC.variants if name != "main"]
STILL = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
Z = ENVIRONMENT_STATE.index("z")
OBJECT_Z = ENVIRONMENT_STATE.index("object_z")


def solve(world: Tabletop, reading: Reading, steps: int = 40) -> Reading:
    """Let the expert act for a whole episode."""
    expert = Expert(1)
    for _ in range(steps):
        reading = world.step(expert.act(reading.environment_state[None])[0])
    return reading


def test_there_are_thirteen_challenges_in_three_classes() -> None:
    classes = list(SPEC.variants.values())
    assert [classes.count(c) for c in ("main", "vision", "semantics", "execution")] == [1, 5, 5, 3]


@pytest.mark.parametrize(("split", "variant"), [("ind", "main"), ("ood", "main"), *(("ood", c) for c in CHALLENGES)])
def test_the_expert_solves_every_variant(split: str, variant: str) -> None:
    world = Tabletop(16)
    results = [solve(world, world.reset(split, variant, i)) for i in range(4)]
    assert sum(r.success for r in results) >= 3
    assert all(r.grasped and r.consecutive_grasp for r in results if r.success)


def test_without_friction_nothing_is_lifted() -> None:
    """With flat sides, that is: what is round can be wedged up."""
    world = Tabletop(16)
    flat = ("toy brick", "green cube", "sponge", "milk carton")
    for episode_id in [i for i in range(40) if draw_episode("ind", "main", i).objects[0].name in flat]:
        reading = world.reset("ind", "main", episode_id)
        friction = world.model.geom_friction.copy()
        world.model.geom_friction[:] = 1e-4
        expert, highest = Expert(1), 0.0
        for _ in range(25):
            reading = world.step(expert.act(reading.environment_state[None])[0])
            highest = max(highest, float(reading.environment_state[OBJECT_Z]))
        world.model.geom_friction[:] = friction  # Models are shared between worlds.
        assert not reading.success
        assert highest < 0.02


def test_a_lifted_object_falls_when_the_fingers_open() -> None:
    world, expert = Tabletop(16), Expert(1)
    reading = world.reset("ind", "main", 0)
    while reading.environment_state[OBJECT_Z] < 0.04:
        reading = world.step(expert.act(reading.environment_state[None])[0])
    for _ in range(3):
        reading = world.step(STILL)
    assert reading.environment_state[OBJECT_Z] < 0.02


def test_success_is_resting_on_the_plate_released() -> None:
    world = Tabletop(16)
    reading = solve(world, world.reset("ind", "main", 0), steps=25)
    assert reading.success
    plate = world.data.body("plate0").xpos.copy()
    radius = world.episode.receptacles[0].radius
    for aside, height, expected in ((0.0, 0.0085, True), (radius + 0.04, 0.0005, False), (0.0, 0.15, False)):
        world.data.joint("object0").qpos[:3] = [plate[0] - aside, plate[1], height]
        world.data.joint("object0").qvel[:] = 0.0
        world.data.ctrl[6] = 0.045
        mujoco.mj_step(world.model, world.data, nstep=8)
        assert world._read().success is expected, (aside, height)


def test_an_object_held_over_the_plate_is_no_success() -> None:
    world, expert = Tabletop(16), Expert(1)
    reading = world.reset("ind", "main", 1)
    while not reading.success:
        before = reading
        reading = world.step(expert.act(reading.environment_state[None])[0])
    assert before.grasped and not before.success
    assert before.environment_state[ENVIRONMENT_STATE.index("held")] == 1


@pytest.mark.parametrize("axis", range(6))
def test_a_delta_moves_the_hand_by_itself_and_a_zero_action_holds_it(axis: int) -> None:
    world = Tabletop(16)
    start = world.reset("ind", "main", 3).state
    delta = np.array([0.03, 0.03, -0.03, 0.2, 0.2, 0.2])[axis] * np.eye(6)[axis]
    world.step(np.append(delta, 1.0).astype(np.float32))
    for _ in range(3):
        end = world.step(STILL).state
    turned = rotation_vector(rotation_matrix(end[3:6]) @ rotation_matrix(start[3:6]).T)
    np.testing.assert_allclose(end[:3] - start[:3], delta[:3], atol=0.003)
    np.testing.assert_allclose(turned, delta[3:], atol=0.02)
    np.testing.assert_allclose(world.step(STILL).state, end, atol=1e-3)


def test_actions_are_clipped_and_the_fingertips_stop_at_the_table() -> None:
    world = Tabletop(16)
    reading = world.reset("ind", "main", 3)
    before = reading.state[2]
    reading = world.step(np.array([0, 0, -9, 0, 0, 0, 1], np.float32))
    assert before - reading.state[2] < 0.06
    for _ in range(8):
        reading = world.step(np.array([0, 0, -9, 0, 0, 0, 1], np.float32))
    assert 0.01 < reading.state[2] < 0.06


def test_an_episode_is_the_same_whatever_came_before_it() -> None:
    fresh, used = Tabletop(32), Tabletop(32)
    solve(used, used.reset("ood", "multi-carrot", 7), steps=10)
    for variant in ("vision-image", "vision-texture-05", "position-change-to"):
        solve(used, used.reset("ood", "main", 1), steps=4)
        a, b = fresh.reset("ood", variant, 11), used.reset("ood", variant, 11)
        for _ in range(8):
            np.testing.assert_array_equal(a.environment_state, b.environment_state)
            np.testing.assert_array_equal(fresh.draw("front"), used.draw("front"))
            action = Expert(1).act(a.environment_state[None])[0]
            a, b = fresh.step(action), used.step(action)


def test_the_splits_share_no_object_table_or_position() -> None:
    ind = [draw_episode("ind", "main", i) for i in range(300)]
    ood = [draw_episode("ood", "main", i) for i in range(300)]
    assert {e.objects[0].name for e in ind} == {o.name for o in TRAIN_OBJECTS}
    assert {e.objects[0].name for e in ood} == {o.name for o in TEST_OBJECTS}
    assert {e.table for e in ind} == set(TRAIN_TABLES)
    assert {e.table for e in ood} == set(TEST_TABLES)
    assert len({texture(i).tobytes() for i in range(len(TABLES))}) == 21
    gaps = np.linalg.norm(TRAIN_POSITIONS[:, None] - TEST_POSITIONS[None], axis=-1)
    assert gaps.min() > 0.028


@pytest.mark.parametrize("variant", CHALLENGES)
def test_episodes_keep_things_apart(variant: str) -> None:
    for i in range(50):
        episode = draw_episode("ood", variant, i)
        apart = np.linalg.norm(episode.object_positions[:, None] - episode.receptacle_positions[None], axis=-1)
        assert apart.min() >= PLATE_GAP - 1e-6
        assert episode.objects[0].name in episode.instruction
        assert episode.receptacles[0].name in episode.instruction


def test_a_challenge_changes_only_its_own_factor() -> None:
    """What stays fixed must come from the training sets; what varies must be new."""
    train = {o.name for o in TRAIN_OBJECTS}
    for variant in CHALLENGES:
        episodes = [draw_episode("ood", variant, i) for i in range(30)]
        assert all(e.table in TRAIN_TABLES for e in episodes)
        assert ({e.objects[0].name for e in episodes} <= train) == (variant != "carrot")
        assert all(e.receptacles[0].name == "plate" for e in episodes) == (variant != "plate")
        assert all(e.instruction.startswith("put ") for e in episodes) == (variant != "instruct")
        assert (max(len(e.objects) for e in episodes) == 2) == (variant == "multi-carrot")
        assert (max(len(e.receptacles) for e in episodes) == 2) == (variant == "multi-plate")
        assert any(e.start_offset.any() for e in episodes) == (variant == "ee-pose")
        assert any(e.moved_to is not None for e in episodes) == (variant == "position-change-to")
        assert any(e.blend != "none" for e in episodes) == variant.startswith("vision")


def test_blends_change_what_they_should() -> None:
    world = Tabletop(64)
    changed = {}
    for variant in ("vision-texture-05", "vision-whole-05", "vision-image"):
        world.reset("ood", variant, 2)
        blended = world.draw("front")
        object.__setattr__(world.episode, "blend", "none")
        changed[variant] = float((blended != world.draw("front")).any(axis=-1).mean())
    assert 0.05 < changed["vision-texture-05"] < 0.5 < 0.9 < changed["vision-whole-05"]
    assert changed["vision-image"] > 0.9


def test_the_wrist_camera_moves_with_the_hand_and_sees_its_fingers() -> None:
    world = Tabletop(64)
    world.reset("ind", "main", 0)

    def fingers(picture: np.ndarray) -> np.ndarray:
        """Where the picture is orange as the fingers are, in the half that is nearer to the hand."""
        red, green, blue = picture[32:].astype(int).transpose(2, 0, 1)
        return (red > 100) & (green > 0.4 * red) & (green < 0.75 * red) & (blue < 0.25 * red)

    before = {camera: world.draw(camera).astype(int) for camera in CAMERAS}
    assert fingers(before["wrist"]).mean() > 0.1
    world.step(np.array([0, 0.05, 0, 0, 0, 0, 1], np.float32))
    after = {camera: world.draw(camera) for camera in CAMERAS}
    changed = {camera: (np.abs(after[camera] - before[camera]).max(axis=-1) > 10).mean() for camera in CAMERAS}
    assert changed["wrist"] > 2 * changed["front"] > 0
    open_, still = fingers(after["wrist"]), fingers(before["wrist"])
    assert (open_ == still).mean() > 0.9, "the camera is fixed to the hand, so the fingers stay where they are"
    for _ in range(3):
        world.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
    middle = slice(24, 40)
    assert fingers(world.draw("wrist"))[:, middle].mean() > open_[:, middle].mean() + 0.1, "they close in its middle"


def test_the_wrist_camera_sees_what_the_hand_is_above() -> None:
    """Below the fingers lies the object, in the column in which they close."""
    world = Tabletop(64)
    reading = world.reset("ind", "main", 0)
    expert = Expert(1)
    while not reading.grasped:
        reading = world.step(expert.act(reading.environment_state[None])[0])
    colour = np.array(world.episode.objects[0].parts[0].rgb) * 255
    picture = world.draw("wrist")[:, 24:40].astype(float)
    direction = picture / np.maximum(np.linalg.norm(picture, axis=-1, keepdims=True), 1)
    assert (direction @ (colour / np.linalg.norm(colour)) > 0.99).mean() > 0.1


def test_noise_differs_between_cameras() -> None:
    world = Tabletop(32)
    world.reset("ood", "vision-image", 2)
    noise = {}
    for camera in CAMERAS:
        noisy = world.draw(camera).astype(float)
        blend = world.episode.blend
        object.__setattr__(world.episode, "blend", "none")
        noise[camera] = noisy - world.draw(camera)
        object.__setattr__(world.episode, "blend", blend)
    assert abs(np.corrcoef(noise["front"].ravel(), noise["wrist"].ravel())[0, 1]) < 0.1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="known: ind, ood"):
        draw_episode("train", "main", 0)
    with pytest.raises(UserError, match="multi-carrot"):
        draw_episode("ood", "nonsense", 0)
    with pytest.raises(UserError, match="out of distribution"):
        draw_episode("ind", "carrot", 0)
    with pytest.raises(UserError, match="negative"):
        draw_episode("ind", "main", -1)
    with pytest.raises(UserError, match="this expert takes"):
        Expert(2).act(np.zeros((3, len(ENVIRONMENT_STATE)), np.float32))


def test_the_state_is_the_start_of_the_privileged_state() -> None:
    reading = Tabletop(16).reset("ind", "main", 0)
    assert reading.state.shape == (len(STATE),) and reading.environment_state.shape == (len(ENVIRONMENT_STATE),)
    np.testing.assert_array_equal(reading.environment_state[: len(STATE)], reading.state)
