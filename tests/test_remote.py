"""A served policy evaluated in a world: rlrc's own server, and one that speaks openpi's websocket and says nothing."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import toy_world
from serving import served
from toy_world import ToyWorld
from websockets.sync.server import ServerConnection, serve

from rlrc.act.evaluate import evaluate
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.episodes import read_episodes
from rlrc.errors import UserError
from rlrc.policies.contract import Policy
from rlrc.served import address_of
from rlrc.stage import standalone
from rlrc.wire import pack, unpack


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the toy world in the place of every world."""
    monkeypatch.setattr("rlrc.envs.make", lambda world, num_envs, *rest, **named: ToyWorld(num_envs))
    monkeypatch.setattr("rlrc.envs.spec", lambda world: toy_world.SPEC)


class Theirs:
    """A server of openpi's protocol: its metadata says nothing, and every hand moves along x, four steps a chunk."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.actions = np.zeros((4, 7), np.float32)
        self.actions[:, 0] = 0.01

    def __call__(self, connection: ServerConnection) -> None:
        connection.send(msgpack.packb({}))
        for message in connection:
            self.seen.append(unpack(message))
            connection.send(pack({"actions": self.actions, "server_timing": {"infer_ms": 1.0}}))


@pytest.fixture
def theirs() -> Iterator[tuple[Theirs, str]]:
    one = Theirs()
    with serve(one, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield one, f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def config(policy: Path | str, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(policy=policy, episodes=5, num_envs=3, num_workers=0, videos=0, **options)


def test_addresses_survive_being_paths() -> None:
    assert address_of(Path("ws://host:8000")) == address_of("ws://host:8000") == "ws://host:8000"
    assert address_of(Path("wss://host/x/y")) == "wss://host/x/y"
    assert address_of(Path("checkpoints/ws")) is None and address_of("org/model") is None


def test_a_served_policy_ends_episodes_as_the_same_one_here(
    tiny_policy: Policy, tiny_checkpoint: Path, worlds: None, tmp_path: Path
) -> None:
    evaluate(config(tiny_checkpoint), tmp_path / "here")
    with served(tiny_policy) as server:
        standalone("evaluate", config(server.address), tmp_path / "there").run(restart=False)
        answered = server.service.metrics.counts()["openpi"]
    here, there = (read_episodes(tmp_path / name / "episodes.parquet") for name in ("here", "there"))
    assert len(here) == 10 and answered == 4 * 3 * toy_world.STEPS
    for one, other in zip(here, there, strict=True):
        assert (one.episode_id, one.success_at_end, one.steps) == (other.episode_id, other.success_at_end, other.steps)
        assert one.path_length == pytest.approx(other.path_length, abs=1e-5)


def test_the_noise_of_a_served_policy_is_that_of_the_seed_and_the_episode(
    tiny_policy: Policy, worlds: None, tmp_path: Path
) -> None:
    """Twice on one server, which counts its requests, and once with another seed."""
    with served(tiny_policy, temperature=1.0) as server:
        for name, seed in (("one", 0), ("again", 0), ("other", 1)):
            evaluate(config(f"ws://:a-secret@{server.address.removeprefix('ws://')}", seed=seed), tmp_path / name)
    one, again, other = (
        [episode.path_length for episode in read_episodes(tmp_path / name / "episodes.parquet")]
        for name in ("one", "again", "other")
    )
    assert one == again and one != other
    assert "a-secret" not in (tmp_path / "one" / "eval.json").read_text()


def test_other_contents_of_a_file_of_names_make_another_stage(tmp_path: Path) -> None:
    names, found = tmp_path / "names.yaml", []
    for gripper in ("-1 opens, 1 closes", "1 opens, 0 closes"):
        names.write_text(f"cameras: {{front: image}}\ngripper: {gripper}\n")
        found.append(standalone("evaluate", config("ws://host:1", names=str(names)), tmp_path / "out").fingerprint)
    assert found[0] != found[1]


GRIPPERS = "1 opens, 0 closes", "-1 opens, 1 closes"


def with_gripper(spec: Any, convention: str) -> Any:
    *arm, gripper = spec.action
    return replace(spec, action=(*arm, replace(gripper, convention=convention)))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, worlds: None) -> list[np.ndarray]:
    """The commands that the toy world gets; its gripper opens at -1 and closes at 1."""
    got: list[np.ndarray] = []
    spec = with_gripper(toy_world.SPEC, GRIPPERS[1])
    monkeypatch.setattr("rlrc.envs.spec", lambda world: spec)
    monkeypatch.setattr(ToyWorld, "world_spec", spec)
    step = ToyWorld.step
    monkeypatch.setattr(ToyWorld, "step", lambda world, actions: (got.append(actions), step(world, actions))[1])
    return got


def test_a_served_policys_gripper_is_converted_as_that_of_a_local_one(
    tiny_policy: Policy, commands: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rlrc.act.evaluate.load", lambda *given, **named: tiny_policy)

    def played(policy: str) -> np.ndarray:
        commands.clear()
        shared = {"splits": ("ind",), "num_workers": 0, "videos": 0}
        evaluate(EvaluateConfig(policy=policy, episodes=2, num_envs=2, **shared), tmp_path / str(len(folders)))
        folders.append(policy)
        return np.stack(commands)

    folders: list[str] = []
    as_given = played("here")
    monkeypatch.setattr(tiny_policy, "spec", with_gripper(tiny_policy.spec, GRIPPERS[0]))
    here = played("here")
    with served(tiny_policy) as server:
        there = played(server.address)
    np.testing.assert_allclose(there, here, atol=1e-5)
    np.testing.assert_allclose(here[..., 6], 1 - 2 * as_given[..., 6], atol=1e-5)


def test_a_gripper_without_a_rule_is_refused_in_one_line_and_the_server_left(
    tiny_policy: Policy, commands: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tiny_policy, "spec", with_gripper(tiny_policy.spec, "width of the opening"))
    before = set(threading.enumerate())
    with served(tiny_policy) as server:
        with pytest.raises(
            UserError, match="convention is 'width of the opening' in the policy and '-1 opens, 1 closes'"
        ):
            evaluate(config(server.address), tmp_path)
        assert not any(thread.name.startswith("ask") for thread in set(threading.enumerate()) - before)
    assert not commands


def test_somebody_elses_gripper_is_what_the_names_say(
    theirs: tuple[Theirs, str],
    commands: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, address = theirs
    one.actions[:, 6] = -1
    names = tmp_path / "names.yaml"
    names.write_text("{cameras: {front: image}, gripper: '0 opens, -1 closes'}")
    for asked, wanted in (("libero", -1), ("bridge", -1), (str(names), 1)):
        evaluate(config(address, names=asked, splits=("ind",)), tmp_path / Path(asked).stem)
        assert {float(value) for value in np.stack(commands)[..., 6].ravel()} == {wanted}
        commands.clear()
    monkeypatch.setattr("rlrc.envs.spec", lambda world: with_gripper(toy_world.SPEC, GRIPPERS[0]))
    monkeypatch.setattr(ToyWorld, "world_spec", with_gripper(toy_world.SPEC, GRIPPERS[0]))
    evaluate(config(address, names="libero", splits=("ind",)), tmp_path / "opens at 1")
    assert (np.stack(commands)[..., 6] == 1).all()
    assert "taken as the world's, but for the gripper (-1 opens, 1 closes)" in capsys.readouterr().err


def test_somebody_elses_policy_is_played_with_names_that_are_given(
    theirs: tuple[Theirs, str], worlds: None, tmp_path: Path
) -> None:
    one, address = theirs
    with pytest.raises(UserError, match="give --names"):
        evaluate(config(address), tmp_path / "without")
    evaluate(config(address, names="libero", splits=("ind",)), tmp_path / "with")
    episodes = read_episodes(tmp_path / "with" / "episodes.parquet")
    assert all(episode.path_length == pytest.approx(0.01 * toy_world.STEPS, rel=1e-4) for episode in episodes)
    probe, *asked = one.seen
    assert probe["observation/image"].shape == (224, 224, 3) and not probe["observation/image"].any()
    assert len(asked) == 2 * 3 * toy_world.STEPS // 4, "a chunk is played to its end"
    assert {tuple(sorted(message)) for message in asked} == {("observation/image", "prompt")}
    one.seen.clear()
    evaluate(config(address, names="libero", splits=("ind",), execute=2), tmp_path / "execute")
    assert len(one.seen) - 1 == 2 * 3 * toy_world.STEPS // 2
    one.actions = one.actions[:, :6]
    with pytest.raises(UserError, match="its actions have 6 numbers, and those of the world 7"):
        evaluate(config(address, names="libero"), tmp_path / "six")


def test_pictures_of_aloha_lie_in_a_mapping(theirs: tuple[Theirs, str], worlds: None, tmp_path: Path) -> None:
    one, address = theirs
    evaluate(config(address, names="aloha", splits=("ind",)), tmp_path)
    assert one.seen[-1]["images"]["cam_high"].dtype == np.uint8


def test_a_server_that_is_not_there_or_leaves(worlds: None, tmp_path: Path, theirs: tuple[Theirs, str]) -> None:
    with pytest.raises(UserError, match="nobody answers"):
        evaluate(config("ws://127.0.0.1:1"), tmp_path / "a")
    one, address = theirs
    one.actions = np.zeros((0, 7), np.float32)
    with pytest.raises(UserError, match="the served policy gave no actions"):
        evaluate(config(address, names="libero"), tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": 1.0}, "temperature is for the server"),
        ({"center_crop": True}, "center_crop is for the server"),
        ({"unnorm_key": "x"}, "unnorm_key is for the server"),
        ({"vla_cache": {}}, "vla_cache is for the server"),
        ({"dataset": "d"}, "acts in a world"),
    ],
)
def test_options_that_are_the_servers(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        EvaluateConfig(policy="ws://127.0.0.1:1", **options)


def test_names_are_for_servers() -> None:
    with pytest.raises(ValueError, match="names is for a policy that a server holds"):
        EvaluateConfig(policy="checkpoints/tabletop-base", names="libero")
