"""What passes between a policy and a world: conversions by hand and against scipy, and what is refused."""

import math
from dataclasses import replace

import bandit_world
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rlrc import envs
from rlrc.act.conventions import connect, conversion
from rlrc.errors import UserError
from rlrc.policies.dim import Dim, dims
from rlrc.policies.values import PolicySpec

WORLDS = ("tabletop", "putonplate", "libero_spatial")


def policy(action: tuple[Dim, ...], cameras: tuple[str, ...] = ("front",), state: tuple[Dim, ...] = ()) -> PolicySpec:
    return PolicySpec("some", cameras, state, action, horizon=1, execute=1)


def converted(given: tuple[Dim, ...], wanted: tuple[Dim, ...], values: list[float]) -> list[float]:
    result = conversion(given, wanted, "action", "w")(np.array([values, values], np.float32))
    np.testing.assert_array_equal(result[0], result[1])
    assert result.dtype == np.float32
    return result[0].tolist()


@pytest.mark.parametrize("world", WORLDS)
def test_a_policy_that_says_nothing_has_the_worlds_conventions(world: str) -> None:
    """Published OpenVLA folders say nothing: their actions pass as they are, to the bit."""
    spec = envs.spec(world)
    interface = connect(policy(dims("0 1 2 3 4 5 6")), spec)
    actions = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    assert interface.action(actions) is actions
    same = connect(policy(spec.action, spec.cameras, spec.state), spec)
    assert same.action(actions) is actions and same.state is not None and same.state.is_identity


@pytest.mark.parametrize(
    ("given", "wanted", "pairs"),
    [
        ("1 opens, 0 closes", "1 opens, -1 closes", [(1, 1), (0, -1), (0.5, 0), (0.75, 0.5)]),
        ("1 opens, -1 closes", "1 opens, 0 closes", [(1, 1), (-1, 0), (0, 0.5)]),
        ("-1 opens, 1 closes", "1 opens, 0 closes", [(-1, 1), (1, 0), (0, 0.5)]),
        ("1 opens, 0 closes", "-1 opens, 1 closes", [(1, -1), (0, 1), (0.25, 0.5)]),
        ("0 opens, 1 closes", "1 opens, -1 closes", [(0, 1), (1, -1)]),
    ],
)
def test_grippers_by_hand(given: str, wanted: str, pairs: list[tuple[float, float]]) -> None:
    for value, expected in pairs:
        assert converted(dims("g", "", given), dims("g", "", wanted), [value]) == [pytest.approx(expected, abs=1e-7)]


@pytest.mark.parametrize(
    ("given", "wanted", "value", "expected"),
    [
        ("m", "0.05 m", 0.02, 0.4),
        ("0.05 m", "m", 0.4, 0.02),
        ("cm", "m", 3.0, 0.03),
        ("mm", "cm", 3.0, 0.3),
        ("deg", "0.5 rad", 90.0, math.pi),
        ("", "m", 3.0, 3.0),
        ("m", "", 3.0, 3.0),
    ],
)
def test_units_by_hand(given: str, wanted: str, value: float, expected: float) -> None:
    assert converted(dims("x", given), dims("x", wanted), [value]) == [pytest.approx(expected)]


def of_scipy(form: str, numbers: np.ndarray) -> Rotation:
    return (
        Rotation.from_rotvec(numbers)
        if form in ("rotation vector", "axis-angle")
        else Rotation.from_euler(form[-3:], numbers)
    )


@pytest.mark.parametrize("given", ["rotation vector", "axis-angle", "Euler xyz", "Euler XYZ"])
@pytest.mark.parametrize("wanted", ["rotation vector", "axis-angle", "Euler xyz", "Euler XYZ"])
@pytest.mark.parametrize("units", [("rad", "rad"), ("deg", "0.5 rad"), ("0.5 rad", ""), ("", "deg")])
def test_rotations_are_scipys(given: str, wanted: str, units: tuple[str, str]) -> None:
    numbers = np.random.default_rng(0).uniform(-1.2, 1.2, (20, 3))
    in_radians = {"rad": 1.0, "deg": math.pi / 180, "0.5 rad": 0.5}
    scale = [in_radians[unit or other] for unit, other in (units, units[::-1])]
    before = (*dims("x", "m"), *dims("a b c", units[0], f"{given}, in the base"), *dims("g"))
    after = (*dims("x", "m"), *dims("a b c", units[1], f"{wanted}, in the base"), *dims("g"))
    values = np.column_stack([numbers[:, 0], numbers / scale[0], numbers[:, 2]]).astype(np.float32)
    result = conversion(before, after, "action", "w")(values)
    np.testing.assert_array_equal(result[:, [0, 4]], values[:, [0, 4]])
    turned = of_scipy(wanted, result[:, 1:4].astype(float) * scale[1])
    difference = (of_scipy(given, numbers) * turned.inv()).magnitude()
    assert difference.max() < 1e-5
    if {given, wanted} == {"Euler xyz", "Euler XYZ"}:
        assert np.abs(result[:, 1:4] * scale[1] - numbers).max() > 0.1, "the two orders differ"


def test_a_turn_by_hand() -> None:
    """A quarter about x and then one about the fixed y: R = Ry Rx, the cyclic permutation x -> -z, y -> x, z -> -y."""
    quarter = math.pi / 2
    given, wanted = dims("a b c", "rad", "Euler xyz"), dims("a b c", "rad", "rotation vector")
    vector = np.array(converted(given, wanted, [quarter, quarter * 0.999999, 0.0]))
    third = 2 * math.pi / 3 / math.sqrt(3)
    np.testing.assert_allclose(vector, [third, third, -third], atol=1e-4)


def test_worlds_take_each_others_actions() -> None:
    """The tabletop's five centimetres forward, a turn about z and an open hand, in LIBERO and in PutOnPlate."""
    tabletop, putonplate, libero = (envs.spec(world) for world in WORLDS)
    action = np.array([[0.05, 0, -0.025, 0, 0, 0.25, 1], [0, 0, 0, 0.1, 0.2, 0.3, -1]], np.float32)
    there = connect(policy(tabletop.action), libero).action(action)
    np.testing.assert_allclose(there, [[1, 0, -0.5, 0, 0, 0.5, 1], [0, 0, 0, 0.2, 0.4, 0.6, 0]], atol=1e-6)
    there = connect(policy(tabletop.action), putonplate).action(action)
    np.testing.assert_allclose(there[0], action[0], atol=1e-6)
    expected = Rotation.from_rotvec([0.1, 0.2, 0.3]).as_euler("XYZ")
    np.testing.assert_allclose(there[1], [0, 0, 0, *expected, 0], atol=1e-6)
    back = connect(policy(putonplate.action), tabletop).action(there)
    np.testing.assert_allclose(back, action, atol=1e-6)


def test_a_state_is_converted_to_the_policys_conventions() -> None:
    world = envs.spec("tabletop")
    state = (*dims("x y z", "cm"), *dims("rx ry rz", "deg", "Euler xyz"), Dim("opening", "mm"))
    interface = connect(policy(world.action, state=state), world)
    seen = interface.seen(
        {
            "images": {"front": np.zeros((1, 4, 4, 3), np.uint8)},
            "instruction": ("put",),
            "state": np.array([[0.1, 0.2, 0.3, 0, 0, math.pi / 4, 0.09]], np.float32),
        }
    )
    np.testing.assert_allclose(seen.state, [[10, 20, 30, 0, 0, 45, 90]], rtol=1e-5)


def test_only_what_the_policy_reads_is_handed_on() -> None:
    world = envs.spec("tabletop")
    images = {camera: np.full((2, 4, 4, 3), n, np.uint8) for n, camera in enumerate(world.cameras)}
    observation = {"images": images, "instruction": ("a", "b"), "state": np.zeros((2, 7), np.float32)}
    seen = connect(policy(world.action, ("wrist",)), world).seen(observation)
    assert list(seen.images) == ["wrist"] and seen.images["wrist"] is images["wrist"] and seen.state is None
    seen = connect(policy(world.action, ("wrist", "front"), world.state), world).seen(observation)
    assert list(seen.images) == ["wrist", "front"] and seen.state is observation["state"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cameras": ("front", "side")},
            "the policy sees the camera 'side', and the world 'tabletop' has front, wrist",
        ),
        ({"action": dims("a b c d e f")}, "the policy has 6 action dimensions, and the world 'tabletop' has 7"),
        ({"state": dims("a b")}, "the policy has 2 state dimensions, and the world 'tabletop' has 7"),
        (
            {6: Dim("g", "", "1 opens, 1 closes")},
            "action dimension 6 ('gripper'): its convention is '1 opens, 1 closes'",
        ),
        ({6: Dim("g", "", "width of the opening")}, "action dimension 6 ('gripper'): its convention is 'width of the"),
        ({2: Dim("z", "rad")}, "action dimension 2 ('z'): its unit is 'rad' in the policy and 'm' in the world"),
        ({2: Dim("z", "inch")}, "action dimension 2 ('z'): its unit is 'inch' in the policy and 'm' in the world"),
        ({2: Dim("z", "m", "place to go to")}, "convention is 'place to go to' in the policy and 'change along"),
        ({4: Dim("p", "rad", "Euler xyz")}, "action dimension 4: policy and world differ in the form of a rotation"),
        (
            {3: Dim("r", "rad", "quaternion x")},
            "its convention is 'quaternion x' in the policy and 'rot",
        ),
        (
            {3: Dim("r", "rad", "Euler xyz, in the hand's frame")},
            "its convention is 'Euler xyz, in the hand's frame' in",
        ),
    ],
)
def test_what_cannot_be_converted_is_one_line(changes: dict, message: str) -> None:
    world = envs.spec("tabletop")
    action = list(world.action)
    named = {key: value for key, value in changes.items() if isinstance(key, str)}
    for number, dim in changes.items():
        if isinstance(number, int):
            action[number] = dim
    with pytest.raises(UserError) as caught:
        connect(replace(policy(tuple(action)), **named), world)
    assert message in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_rl_and_evaluate_say_it_before_a_world_starts(tiny_policy, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlrc.act.evaluate import evaluate
    from rlrc.configs.evaluate import EvaluateConfig
    from rlrc.configs.rl import RlConfig
    from rlrc.recover.ppo import rl

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a world was made")

    blind = replace(bandit_world.SPEC, cameras=("side",))
    monkeypatch.setattr("rlrc.envs.spec", lambda world: blind)
    monkeypatch.setattr("rlrc.envs.make", forbidden)
    for module in ("act.evaluate", "recover.ppo"):
        monkeypatch.setattr(f"rlrc.{module}.load", lambda *_, **__: tiny_policy)
    for verb, config in ((evaluate, EvaluateConfig), (rl, RlConfig)):
        with pytest.raises(UserError, match="the policy sees the camera 'front', and the world 'bandit' has side"):
            verb(config(policy=tmp_path), tmp_path / "out")
