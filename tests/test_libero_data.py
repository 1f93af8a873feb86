"""LIBERO's published demonstrations, converted; and the paper's recipes on LIBERO, at a tiny size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlrc.data import Demonstrations
from rlrc.data import format as fmt
from rlrc.data.lerobot import write_dataset
from rlrc.data.libero import ConvertLiberoConfig, convert_libero
from rlrc.envs.libero import SUITES, check_assets
from rlrc.envs.libero.tasks import Suite
from rlrc.errors import UserError
from rlrc.pipeline import RunConfig, run
from rlrc.recipe import read_recipe
from rlrc.resolve import resolve
from rlrc.study import write_evidence
from rlrc.study.evidence import gather

ROOT = Path(__file__).parents[1]
TASK = "LIVING_ROOM_SCENE5_put_the_red_mug_on_the_left_plate"
OPENS, CLOSES = -1.0, 1.0


def actions() -> np.ndarray:
    """Eight steps: at rest, moving, at rest, closing, at rest, moving, opening, at rest."""
    actions = np.zeros((8, 7))
    actions[:, 6] = [OPENS, OPENS, OPENS, CLOSES, CLOSES, CLOSES, OPENS, OPENS]
    actions[[1, 5], 0] = [0.5, -0.25]
    return actions


KEPT = [1, 3, 5, 6]


def write_hdf5(folder: Path, name: str = TASK, episodes: int = 2) -> None:
    """A file as LIBERO publishes it; pictures are brighter from step to step, their first row (the lowest) is black."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (the extra libero)")
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / f"{name}_demo.hdf5", "w") as file:
        for episode in range(episodes):
            demo = file.create_group(f"data/demo_{episode}")
            pictures = np.broadcast_to(
                20 * np.arange(1, 9, dtype=np.uint8)[:, None, None, None], (8, 128, 128, 3)
            ).copy()
            pictures[:, :32] = 0
            demo["actions"] = actions()
            demo["obs/agentview_rgb"] = pictures
            demo["obs/eye_in_hand_rgb"] = 255 - pictures
            demo["obs/ee_pos"] = np.full((8, 3), 0.1 + episode)
            demo["obs/ee_ori"] = np.full((8, 3), 0.2)
            demo["obs/gripper_states"] = np.full((8, 2), 0.03)


def convert(source: Path, out: Path, **options: Any) -> tuple[dict[str, Any], Demonstrations]:
    result = convert_libero(ConvertLiberoConfig(source=source, **options), out)
    return result, Demonstrations.load(out / "dataset")


def test_hdf5_becomes_openvlas_conventions(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "source")
    result, demonstrations = convert(tmp_path / "source", tmp_path / "out", image_size=64)
    assert result == {"episodes": 2, "frames": 8, "no_ops_dropped": 8}
    assert demonstrations.tasks == ["put the red mug on the left plate"]
    assert demonstrations.fps == 20
    first = demonstrations.select([0])
    np.testing.assert_allclose(first.actions[:, 0], actions()[KEPT, 0])
    np.testing.assert_array_equal(first.actions[:, 6], [1, 0, 0, 1])
    np.testing.assert_allclose(first.state[0], [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.03, 0.03], atol=1e-6)
    # Upright: the row that OpenGL keeps first is the lowest one.
    assert first.images.shape == (4, 64, 64, 3)
    np.testing.assert_allclose(first.images[:, 8].mean((1, 2)), 20 * (np.array(KEPT) + 1), atol=2)
    assert first.images[:, -8].max() < 5


def test_the_wrist_camera_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "source", episodes=1)
    _, both = convert(tmp_path / "source", tmp_path / "out", image_size=64, cameras=("front", "wrist"))
    assert list(both.pictures) == [f"{fmt.IMAGES}front", f"{fmt.IMAGES}wrist"]
    front, wrist = (dict(pictures.decode(range(len(both)))) for pictures in both.pictures.values())
    for row, step in enumerate(KEPT):
        np.testing.assert_allclose(front[row][8].mean(), 20 * (step + 1), atol=2)
        np.testing.assert_allclose(wrist[row][8].mean(), 255 - 20 * (step + 1), atol=2)


def test_a_single_file_and_episodes_beyond_ten_are_read_in_order(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "source", episodes=12)
    _, demonstrations = convert(tmp_path / "source" / f"{TASK}_demo.hdf5", tmp_path / "out", image_size=16)
    starts = demonstrations.state[:: len(KEPT), 0]
    np.testing.assert_allclose(starts, 0.1 + np.arange(12), atol=1e-5)


def write_lerobot(path: Path) -> None:
    """A LeRobotDataset of LIBERO as they are published: two cameras of 256 px, pictures upright, LIBERO's gripper."""
    front, wrist = np.full((8, 256, 256, 3), 50, np.uint8), np.full((8, 256, 256, 3), 200, np.uint8)
    front[:, :64] = 0
    with write_dataset(path, 10, "panda") as dataset:
        for _ in range(2):
            dataset.append(
                "put the red mug on the left plate",
                {
                    "observation.images.image": front,
                    "observation.images.wrist_image": wrist,
                    fmt.STATE: np.zeros((8, 8), np.float32),
                    fmt.ACTION: actions().astype(np.float32),
                },
            )


def test_a_lerobot_dataset_of_libero_can_be_read_and_converted(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source")
    with pytest.raises(
        UserError, match=r"policy sees 1 camera \(front\), and 'front' may be any of .*image.*wrist_image"
    ):
        Demonstrations.load(tmp_path / "source").seen_by(["front"])
    wrist = Demonstrations.load(tmp_path / "source", cameras=("wrist_image",))
    assert wrist.images.shape == (16, 256, 256, 3)
    assert (wrist.images == 200).all()
    result, demonstrations = convert(tmp_path / "source", tmp_path / "out")
    assert result == {"episodes": 2, "frames": 8, "no_ops_dropped": 8}
    np.testing.assert_array_equal(demonstrations.select([1]).actions[:, 6], [1, 0, 0, 1])
    assert demonstrations.images.shape == (8, 224, 224, 3)
    assert demonstrations.images[:, :40].max() == 0
    assert (demonstrations.images[:, 100:] == 50).all()
    _, both = convert(tmp_path / "source", tmp_path / "both", cameras=("wrist", "front"))
    wrist, front = (next(pictures.decode([3]))[1] for pictures in both.seen_by(("wrist", "front")).values())
    assert (wrist == 200).all() and np.array_equal(front, demonstrations.images[3])


def test_what_is_no_source_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (the extra libero)")
    with pytest.raises(UserError, match="neither HDF5 files"):
        convert(tmp_path / "nothing", tmp_path / "out")
    with h5py.File(tmp_path / "wrong.hdf5", "w") as file:
        file["data/demo_0/actions"] = actions()
    with pytest.raises(UserError, match="not a file of LIBERO demonstrations"):
        convert(tmp_path / "wrong.hdf5", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset").exists()


def tiny(recipe: Path, keep: set[str]) -> dict[str, Any]:
    """A paper recipe with the shipped small policy, the fast world and next to no work; only the stages to keep."""
    values = yaml.safe_load(recipe.read_text())
    small = {"steps": 2, "batch_size": 2, "episodes": 1, "num_envs": 1, "num_workers": 0, "image_size": 96}
    stages = []
    for stage in values["stages"]:
        if stage.get("name") in keep:
            samples = {"samples": 4} if stage["verb"] == "prune" else {}
            stages.append(stage | {key: value for key, value in small.items() if key in stage} | samples)
    study = values["study"]
    study["policies"] = {label: stage for label, stage in study["policies"].items() if f"{stage}-eval" in keep}
    small_base = {"base": str(ROOT / "checkpoints" / "tabletop-base"), "world": "libero_spatial:fast"}
    return values | {"stages": stages} | small_base


@pytest.mark.parametrize("name", ["paper-libero-spatial", "paper-libero-long"])
def test_the_papers_recipes_are_valid_as_a_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(ROOT / "recipes" / f"{name}.yaml")
    recipe = recipe.model_copy(update={"base": ROOT / "checkpoints" / "tabletop-base"})
    source = Path(recipe.stages[0]["source"])
    with pytest.raises(UserError, match=str(source)):
        resolve(recipe, Path("runs"))
    write_hdf5(source.parent)
    source.mkdir()
    assert len(resolve(recipe, Path("runs"))) == len(recipe.stages)


@pytest.mark.skipif(bool(check_assets()), reason=f"LIBERO is not installed: {check_assets()[:1]}")
def test_the_papers_recipe_runs_on_a_small_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Demonstrations, pruning, fine-tuning, 4 bits and a few steps of an episode, by the paper's stages."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_hdf5(Path("data/libero_spatial"))
    kept = {"demos", "taylor90", "taylor90-sft", "taylor90-int4", "taylor90-int4-eval"}
    recipe = tiny(ROOT / "recipes" / "paper-libero-spatial.yaml", kept)
    assert len(recipe["stages"]) == len(kept)
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setitem(SUITES, "libero_spatial", Suite(tasks=10, max_episode_steps=8))
    run(RunConfig(recipe=Path("tiny.yaml")), Path("runs/tiny"))
    summary = write_evidence(gather(Path("runs/tiny")), Path("results"))
    assert [(row["policy"], row["split"], row["n"]) for row in summary["rows"]] == [("rlrc-90+sft 4-bit", "ind", 1)]
    evaluated = yaml.safe_load(Path("runs/tiny/taylor90-int4-eval/eval.json").read_text())
    assert evaluated["world"] == "libero_spatial:fast"
    assert [condition["n"] for condition in evaluated["conditions"].values()] == [1]
