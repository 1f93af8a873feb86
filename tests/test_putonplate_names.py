"""PutOnPlate's worlds where no simulator is needed: their names, and what is said without files."""

from pathlib import Path

import pytest

from rlrc import envs
from rlrc.errors import UserError


@pytest.mark.parametrize("num_workers", [0, 1])
def test_without_files_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int) -> None:
    monkeypatch.setenv("RLRC_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match="rlrc assets maniskill"):
        envs.make("putonplate", num_envs=1, num_workers=num_workers).reset()


@pytest.mark.parametrize("mode", [":fast", ":gpu:official", ":officialgpu", ":"])
def test_another_name_is_refused(mode: str) -> None:
    with pytest.raises(UserError, match="putonplate:official"):
        envs.spec(f"putonplate{mode}")


def test_on_a_gpu_all_are_in_one_simulation() -> None:
    names = [f"putonplate{picture}{device}" for picture in ("", ":official") for device in ("", ":gpu")]
    specs = [envs.spec(name) for name in names]
    assert [spec.name for spec in specs] == names
    assert [spec.simulation is not None for spec in specs] == [False, True, False, True]
