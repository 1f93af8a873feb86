"""ManiSkill's own tasks as worlds, and what is said where ManiSkill cannot run."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
from simulators import need_maniskill

from rlrc import envs
from rlrc.envs.maniskill.world import instruction
from rlrc.errors import UserError


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("PickCube-v1", "pick cube"),
        ("StackCube-v1", "stack cube"),
        ("PegInsertionSide-v1", "peg insertion side"),
        ("PlaceSphere-v1", "place sphere"),
        ("PickSingleYCB-v1", "pick single ycb"),
        ("PullCubeTool-v1", "pull cube tool"),
        ("TwoRobotPickCube-v1", "two robot pick cube"),
    ],
)
def test_instructions_are_the_tasks_names_in_words(task: str, words: str) -> None:
    assert instruction(task) == words


def test_a_task_runs_by_its_name_and_its_seed() -> None:
    need_maniskill()
    env = envs.make("maniskill:PickCube-v1", num_envs=1, image_size=64)
    assert env.max_episode_steps == 50

    def play(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        observation, _ = env.reset(options={"episode_ids": np.array([seed])})
        before = observation["state"][0, 2]
        down = np.array([[0, 0, -1, 0, 0, 0, 1]], np.float32)
        for _ in range(5):
            observation, _, _, _, info = env.step(down)
        assert observation["state"][0, 2] < before - 0.1, "the gripper goes down"
        assert not info["success"][0] and not info["grasped"][0]
        return observation["images"]["front"][0], info["environment_state"][0], observation["instruction"]

    first, other, again = play(3), play(4), play(3)
    assert first[2] == ("pick cube",)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    with pytest.raises(UserError, match="only the split ind and the variant main"):
        env.reset(options={"split": "ood", "episode_ids": np.array([0])})


def test_an_unknown_task_and_a_task_without_its_files_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    need_maniskill()
    with pytest.raises(UserError, match="no task 'PickCubes-v1'"):
        envs.spec("maniskill:PickCubes-v1")
    from mani_skill.utils import assets

    monkeypatch.setattr(assets, "is_data_source_downloaded", lambda source: False)
    with pytest.raises(UserError, match="download_asset"):
        envs.spec("maniskill:PickSingleYCB-v1")


def test_a_world_needs_a_task() -> None:
    with pytest.raises(UserError, match="needs a task"):
        envs.spec("maniskill")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlrc.envs.maniskill import simulator

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"pip install 'rlrc\[maniskill\]'") as caught:
        simulator.import_maniskill()
    assert "\n" not in str(caught.value)


def test_without_vulkan_one_line_names_the_packages() -> None:
    need_maniskill()
    code = (
        "from rlrc.envs.maniskill.simulator import start\nfrom rlrc.errors import UserError\n"
        "try:\n    start()\nexcept UserError as error:\n    print(error)"
    )
    nothing = {"VK_DRIVER_FILES": "/nowhere.json", "VK_ICD_FILENAMES": "/nowhere.json", "CUDA_VISIBLE_DEVICES": ""}
    environment = {"PATH": "/usr/bin", **nothing}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "apt-get install -y -t bookworm-backports mesa-vulkan-drivers libvulkan1" in done.stdout
