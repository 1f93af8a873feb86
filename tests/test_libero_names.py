"""LIBERO's worlds where LIBERO itself is not needed: names, limits, and what is said without its packages."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rlrc import envs
from rlrc.envs.libero import SUITES, check_assets
from rlrc.envs.libero.tasks import tasks
from rlrc.envs.libero.world import axis_angle
from rlrc.errors import UserError


def test_suites_and_their_limits_are_those_of_openvlas_evaluation() -> None:
    limits = {name: suite.max_episode_steps for name, suite in SUITES.items()}
    assert limits == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }
    for name in SUITES:
        assert envs.spec(name).splits == ("ind",)
        assert envs.spec(f"{name}:fast").num_tasks == SUITES[name].tasks


@pytest.mark.parametrize("name", ["libero_spatial:slow", "libero_spatial:", "libero_100"])
def test_an_unknown_world_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match="libero"):
        envs.spec(name)


def test_axis_angle_is_robosuites() -> None:
    """`quat2axisangle` (xyzw): xyz 2 acos(w) / sqrt(1 - w^2), which is not wrapped at pi."""
    for quat in (*Rotation.random(20, np.random.default_rng(0)).as_quat(), -np.array([0.6, 0.0, 0.0, 0.8])):
        for x, y, z, w in (quat, -quat):
            ours = axis_angle(np.array([w, x, y, z]))
            np.testing.assert_allclose(ours, np.array([x, y, z]) * 2 * math.acos(w) / math.sqrt(1 - w * w))
            assert abs((Rotation.from_rotvec(ours) * Rotation.from_quat([x, y, z, w]).inv()).magnitude()) < 1e-6
    assert np.linalg.norm(axis_angle(np.array([-0.8, 0.6, 0.0, 0.0]))) > math.pi
    np.testing.assert_array_equal(axis_angle(np.array([1.0, 0.0, 0.0, 0.0])), np.zeros(3))


def test_without_the_packages_the_world_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks.cache_clear()
    monkeypatch.setattr("rlrc.envs.libero.tasks.version", partial(_absent, "robosuite"))
    assert any("robosuite" in line for line in check_assets())
    with pytest.raises(UserError, match="make libero"):
        envs.make("libero_10", num_envs=1).reset()
    tasks.cache_clear()


def test_the_library_stays_light(tmp_path: Path) -> None:
    """A world's spec needs neither robosuite nor LIBERO."""
    code = (
        "import sys\nfrom rlrc import envs\nenvs.spec('libero_10')\n"
        "heavy = {'robosuite', 'libero', 'numba', 'h5py', 'torch'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def _absent(missing: str, name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    if name == missing:
        raise PackageNotFoundError(name)
    return "1"
