"""Names on the wire: presets, YAML files, and pictures in the forms that robots send."""

from pathlib import Path

import numpy as np
import pytest

from rlrc.errors import UserError
from rlrc.policies.dim import dims
from rlrc.policies.values import PolicySpec
from rlrc.serve.names import PRESETS, Reader, as_picture, read_names

TWO = PolicySpec("any", ("front", "wrist"), dims("a b c d e f g h"), dims("x y"), 8, 8)
ONE = PolicySpec("any", ("top",), (), dims("x y"), 1, 1)
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
STATE = np.arange(8, dtype=np.float64)


def test_libero_as_openpi_vla_eval_and_oft_send_it() -> None:
    read = Reader.of(read_names("libero", TWO.cameras), TWO)
    for message in (
        {
            "observation/image": PICTURE,
            "observation/wrist_image": 255 - PICTURE,
            "observation/state": STATE,
            "prompt": "go",
        },
        {"images": {"agentview": PICTURE, "wrist": 255 - PICTURE}, "states": STATE, "task_description": "go"},
        {"full_image": PICTURE, "wrist_image": 255 - PICTURE, "state": STATE.tolist(), "instruction": "go"},
    ):
        seen = read(message)
        np.testing.assert_array_equal(seen.images["front"], PICTURE[None])
        np.testing.assert_array_equal(seen.images["wrist"], 255 - PICTURE[None])
        np.testing.assert_array_equal(seen.state, STATE[None].astype(np.float32))
        assert list(seen.instruction) == ["go"]


def test_aloha_droid_and_so101() -> None:
    spec = PolicySpec("any", ("front", "left_wrist"), dims("a b"), dims("x"), 2, 2)
    message = {
        "images": {"cam_high": PICTURE.transpose(2, 0, 1), "cam_left_wrist": PICTURE},
        "state": [1, 2],
        "prompt": "",
    }
    seen = Reader.of(read_names("aloha", spec.cameras), spec)(message)
    np.testing.assert_array_equal(seen.images["front"][0], PICTURE)
    spec = PolicySpec("any", ("front",), dims("a b c"), dims("x"), 2, 2)
    message = {
        "observation/exterior_image_1_left": PICTURE,
        "observation/joint_position": np.array([1.0, 2.0]),
        "observation/gripper_position": np.array(3.0),
        "prompt": "go",
    }
    np.testing.assert_array_equal(Reader.of(read_names("droid", spec.cameras), spec)(message).state, [[1, 2, 3]])
    message = {"observation.images.front": PICTURE, "observation.state": np.zeros((1, 3), np.float32), "task": "go"}
    assert Reader.of(read_names("so101", spec.cameras), spec)(message).state.shape == (1, 3)


def test_a_policy_with_one_camera_takes_the_robots_main_one() -> None:
    message = {"observation/image": PICTURE, "prompt": "go"}
    assert list(Reader.of(read_names("libero", ONE.cameras), ONE)(message).images) == ["top"]


def test_the_policys_own_names() -> None:
    read = Reader.of(read_names("rlrc", TWO.cameras), TWO)
    assert read.announced()["cameras"]["wrist"][0] == "images/wrist"
    assert read({"images": {"front": PICTURE, "wrist": PICTURE}, "state": STATE, "prompt": "go"}).state.shape == (1, 8)


@pytest.mark.parametrize("spec", [ONE, TWO])
@pytest.mark.parametrize("front", ["image", "full_image"])
def test_the_scripts_of_openvla_and_oft_need_no_other_names(spec: PolicySpec, front: str) -> None:
    message = {front: PICTURE, "wrist_image": 255 - PICTURE, "state": STATE, "instruction": "go"}
    seen = Reader.of(read_names("rlrc", spec.cameras), spec)(message)
    for camera, picture in zip(spec.cameras, (PICTURE, 255 - PICTURE), strict=False):
        np.testing.assert_array_equal(seen.images[camera], picture[None])


def test_a_file_gives_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("cameras: {front: cam0, wrist: [hand, robot/hand]}\nstate: arm + gripper\ninstruction: say\n")
    read = Reader.of(read_names(str(file), TWO.cameras), TWO)
    seen = read({"cam0": PICTURE, "robot": {"hand": PICTURE}, "arm": STATE[:7], "gripper": [7.0], "say": "go"})
    np.testing.assert_array_equal(seen.state, STATE[None].astype(np.float32))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "valid dictionary"),
        ("cameras: {}", "cameras"),
        ("cameras: {front: a}\nother: 1", "unknown key 'other'"),
        ("cameras: {front: 7}", "cameras.front"),
        ("cameras: [front]", "cameras"),
        ("cameras: {front: ''}", "cameras.front"),
        ("cameras: {front: []}", "cameras.front"),
        ("cameras: {front: a}\ninstruction: []", "instruction"),
        ("cameras: {front: a", "not valid YAML"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=reason) as refusal:
        read_names(str(file), ())
    assert "\n" not in str(refusal.value)


def test_names_that_do_not_fit_the_policy() -> None:
    with pytest.raises(UserError, match="give a preset"):
        read_names("libera", ())
    with pytest.raises(UserError, match="no such file"):
        read_names("/nowhere/mine.yaml", ())
    three = PolicySpec("any", ("front", "left"), (), dims("x"), 1, 1)
    with pytest.raises(UserError, match="camera 'left' has no name on the wire"):
        Reader.of(read_names("libero", three.cameras), three)
    assert all(read_names(name, ("front",)).cameras for name in (*PRESETS, "rlrc"))


def test_pictures_in_all_forms() -> None:
    for form in (
        PICTURE,
        PICTURE[None],
        PICTURE.transpose(2, 0, 1),
        (PICTURE / 255).astype(np.float32) + np.float32(1e-6) * (PICTURE < 255),
        (PICTURE[..., ::-1])[..., ::-1],
    ):
        got = as_picture(form, "x")
        np.testing.assert_array_equal(got, PICTURE)
        assert got.flags.c_contiguous and got.flags.writeable
    np.testing.assert_array_equal(as_picture(PICTURE[..., 0], "x"), np.repeat(PICTURE[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        PICTURE.tolist(),
        PICTURE.astype(np.int32),
        PICTURE.astype(np.uint16),
        PICTURE.astype(np.float32),
        np.full((4, 4, 3), np.nan),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(3, np.uint8),
        np.zeros((9000, 1, 3), np.uint8),
    ],
    ids=lambda value: str(getattr(value, "shape", type(value).__name__)),
)
def test_what_is_no_picture_is_refused(value: object) -> None:
    with pytest.raises(UserError) as refusal:
        as_picture(value, "observation/image")
    assert "observation/image" in str(refusal.value) and "\n" not in str(refusal.value)


def test_states_that_do_not_fit() -> None:
    read = Reader.of(read_names("rlrc", TWO.cameras), TWO)
    good = {"images": {"front": PICTURE, "wrist": PICTURE}, "prompt": "go"}
    for state in (STATE[:7], np.full(8, np.inf), ["a"] * 8, None, {}, [[1, 2], [3]], [10**400] * 8):
        with pytest.raises(UserError) as refusal:
            read(good | {"state": state})
        assert "state" in str(refusal.value) and "\n" not in str(refusal.value)
    for text in (None, 7, ["go"], "x" * 10_001):
        with pytest.raises(UserError, match="instruction"):
            read(good | {"state": STATE, "prompt": text})
