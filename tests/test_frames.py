"""Frames at a policy's size: the cache on the disk, what is done where there is no room for it, the verb `cache`."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_pictures import SEEN, SIZE, FakePictures, picture
from PIL import Image
from toy_demonstrations import FRAMES, toy_demonstrations

from rlrc.configs.cache import CacheConfig
from rlrc.data import cache, frame_files
from rlrc.data.frames import DecodedFrames, JpegFrames, RawFrames, open_frames, read_frames
from rlrc.errors import UserError

if TYPE_CHECKING:
    from rlrc.policies.contract import Policy

COUNT = 60
RAW_BYTES = SEEN[0] * SEEN[1] * 3


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of caches, with the default limit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(cache.LIMIT_VARIABLE, raising=False)
    return tmp_path / "rlrc" / "frames"


def allow(monkeypatch: pytest.MonkeyPatch, nbytes: float) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, str(nbytes / 1e9))


def seen(row: int) -> np.ndarray:
    """What Pillow makes of a picture, by itself."""
    return np.asarray(Image.fromarray(picture(row)).resize(SEEN[::-1], Image.Resampling.BICUBIC))


def only_folder(home: Path) -> Path:
    (lock,) = home.glob("*/lock")
    return lock.parent


def start(count: int, seconds: float) -> subprocess.Popen[str]:
    """Another process that opens frames."""
    program = Path(__file__).with_name("fake_pictures.py")
    command = [sys.executable, str(program), str(count), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[str, str, list[int], str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return *json.loads(out), err


def wait_for_index(home: Path, frames: int) -> None:
    """Until so many frames are done."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in home.glob("*/index.bin"):
            if np.count_nonzero(np.fromfile(path, "<i8").reshape(-1, 2)[:, 1]) >= frames:
                return
        time.sleep(0.02)
    raise AssertionError("the other process makes no frames")


def test_frames_are_what_pillow_makes_of_the_pictures_and_are_decoded_once(capsys: pytest.CaptureFixture[str]) -> None:
    pictures = FakePictures(COUNT)
    frames = open_frames(pictures, SEEN, "fake")
    assert isinstance(frames, RawFrames)
    assert len(frames) == COUNT
    assert frames.size == SEEN
    rows = np.array([3, 59, 0, 3])
    np.testing.assert_array_equal(frames[rows], np.stack([seen(row) for row in rows]))
    frames[rows][:] = 0  # a copy: the cache stays as it is
    again = open_frames(FakePictures(COUNT), SEEN, "fake")
    np.testing.assert_array_equal(again[np.arange(COUNT)], np.stack([seen(row) for row in range(COUNT)]))
    assert sorted(pictures.decoded) == list(range(COUNT))
    told = capsys.readouterr().err
    assert told.count("will take 0.1 MB in") == 1  # before it is made, once
    assert f"frames of fake: {COUNT}/{COUNT}" in told


def test_a_picture_of_the_policys_size_stays_as_it_is() -> None:
    frames = open_frames(FakePictures(COUNT), None, "fake")
    assert frames.size == SIZE
    np.testing.assert_array_equal(frames[np.array([7])][0], picture(7))


def test_a_policy_sees_the_same_as_if_it_had_resized_the_pictures_itself(
    tiny_policy: "Policy", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from rlrc.configs.learner import LearnerConfig
    from rlrc.policies.values import Observation
    from rlrc.recover.loop import Learner
    from rlrc.recover.sft import Frames

    learner = Learner(tiny_policy, LearnerConfig(), tmp_path / "out")
    demonstrations = replace(toy_demonstrations(), pictures={"front": FakePictures(FRAMES)})
    batches = Frames(tiny_policy, demonstrations, 5, learner)
    batch = batches.next()
    rows = batch.numbers.tolist()
    pictures = {"front": np.stack([picture(row) for row in rows])}
    expected = tiny_policy.prepare(Observation(pictures, [demonstrations.instruction(row) for row in rows]))
    assert torch.equal(batch.inputs.pixel_values, expected.pixel_values)
    assert batches.facts == {}
    height, width = tiny_policy.processor.images.one_size or (0, 0)
    allow(monkeypatch, FRAMES * height * width * 3 - 1)
    assert Frames(tiny_policy, demonstrations, 5, learner).facts == {"frames": "JPEG, quality 95"}


def test_frames_of_several_cameras_are_varied_each_by_itself(tiny_policy: "Policy", tmp_path: Path) -> None:
    """One camera keeps the bits that it has alone; the state comes with the pictures of the same rows."""
    import torch

    from rlrc.configs.augmentation import Augmentation
    from rlrc.configs.learner import LearnerConfig
    from rlrc.data.batches import vary
    from rlrc.policies.dim import Dim
    from rlrc.policies.values import Observation
    from rlrc.recover.loop import Learner
    from rlrc.recover.sft import Frames

    seen: list[Observation] = []
    processor = tiny_policy.processor

    def note(observation: Observation) -> Any:
        seen.append(observation)
        return processor(observation, ["front"])

    learner, augment = Learner(tiny_policy, LearnerConfig(), tmp_path / "out"), Augmentation()
    spec, toy = tiny_policy.spec, toy_demonstrations()
    pictures = {"front": FakePictures(FRAMES), "wrist": FakePictures(FRAMES, name="other")}
    state = np.arange(FRAMES * 2, dtype=np.float32).reshape(FRAMES, 2)
    demonstrations = replace(toy, pictures=pictures, state=state)
    single = Frames(tiny_policy, replace(toy, pictures={"front": pictures["front"]}), 5, learner, augment)
    alone = single.next()
    single.seek(1)  # waits for the thread
    tiny_policy.spec = replace(spec, cameras=("front", "wrist"), state=(Dim("a"), Dim("b")))
    tiny_policy.prepare = note  # type: ignore[method-assign]
    frames = Frames(tiny_policy, demonstrations, 5, learner, augment)
    batch = frames.next()
    frames.seek(1)
    assert torch.equal(batch.inputs.pixel_values, alone.inputs.pixel_values)
    rows = batch.numbers.numpy()
    np.testing.assert_array_equal(seen[0].state, state[rows])
    generator = learner.generator("augment", 0, device="cpu")
    whole = torch.from_numpy(read_frames(pictures["front"], rows, tiny_policy.frame_size))
    for camera in ("front", "wrist"):  # the same pictures, one after the other from one generator
        np.testing.assert_array_equal(seen[0].images[camera], vary(whole, augment, generator).numpy())
    assert not np.array_equal(seen[0].images["front"], seen[0].images["wrist"])


def test_a_few_rows_are_decoded_directly(home: Path) -> None:
    pictures = FakePictures(COUNT)
    frames = read_frames(pictures, np.array([5, 2, 5]), SEEN)
    np.testing.assert_array_equal(frames, np.stack([seen(5), seen(2), seen(5)]))
    assert sorted(pictures.decoded) == [2, 5]
    assert not home.exists()


def test_other_pictures_and_other_sizes_are_other_caches(home: Path) -> None:
    open_frames(FakePictures(COUNT), SEEN, "fake")
    open_frames(FakePictures(COUNT), None, "fake")
    open_frames(FakePictures(COUNT, name="changed"), SEEN, "fake")
    assert len(list(home.glob("*/frames.bin"))) == 3


def test_a_killed_maker_is_continued(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_files, "FLUSH_SECONDS", 0.0)
    code = "from rlrc.data import frame_files; frame_files.FLUSH_SECONDS = 0.0; import runpy, sys; "
    program = str(Path(__file__).with_name("fake_pictures.py"))
    code += f"sys.argv = ['p', '{COUNT}', '0.05']; runpy.run_path({program!r}, run_name='__main__')"
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_index(home, 5)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = np.fromfile(only_folder(home) / "index.bin", "<i8").reshape(-1, 2)[:, 1] > 0
    assert 5 <= done.sum() < COUNT
    pictures = FakePictures(COUNT)
    frames = open_frames(pictures, SEEN, "fake")
    assert sorted(pictures.decoded) == np.flatnonzero(~done).tolist()
    np.testing.assert_array_equal(frames[np.arange(COUNT)], np.stack([seen(row) for row in range(COUNT)]))


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_an_interrupted_maker_keeps_what_it_has(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "jpeg":
        allow(monkeypatch, 0.95 * COUNT * RAW_BYTES)

    class Interrupted(FakePictures):
        def decode(self, rows):  # type: ignore[no-untyped-def]
            for number, item in enumerate(super().decode(rows)):
                if len(rows) > 1 and number == len(rows) // 2:
                    raise KeyboardInterrupt
                yield item

    if kind == "jpeg":
        monkeypatch.setattr("rlrc.data.frames.SAMPLES", 1)
    with pytest.raises(KeyboardInterrupt):
        open_frames(Interrupted(COUNT), SEEN, "fake")
    pictures = FakePictures(COUNT)
    frames = open_frames(pictures, SEEN, "fake")
    assert frames.kind == kind
    assert 0 < len(pictures.decoded) < COUNT
    expected = DecodedFrames(FakePictures(COUNT), SEEN, frames.kind)[np.arange(COUNT)]
    np.testing.assert_array_equal(frames[np.arange(COUNT)], expected)


def test_two_processes_make_one_cache(home: Path) -> None:
    spec = frame_files.Spec(FakePictures(COUNT).identity(), COUNT, *SEEN, "raw")
    held = frame_files.lock(home / spec.key, shared=False, waiting=None)
    assert held is not None
    processes = [start(COUNT, 0.01), start(COUNT, 0.01)]
    note = "fake: another process prepares its frames; waiting for it\n"
    for process in processes:
        assert process.stderr is not None
        assert process.stderr.readline() == note
    os.close(held)  # now both want to make it
    expected = hashlib.sha256(np.stack([seen(row) for row in range(COUNT)]).tobytes()).hexdigest()
    results = [finish(process) for process in processes]
    assert {result[:2] for result in results} == {(expected, "raw")}
    assert sorted(results, key=lambda result: len(result[2]))[0][2] == []
    assert sorted(results[0][2] + results[1][2]) == list(range(COUNT))
    assert "waiting" not in results[0][3] + results[1][3]  # it was said once


def test_beyond_the_limit_frames_are_kept_as_jpeg(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    allow(monkeypatch, 0.95 * COUNT * RAW_BYTES)
    frames = open_frames(FakePictures(COUNT), SEEN, "fake")
    assert isinstance(frames, JpegFrames)
    rows = np.array([8, 1, 8])
    assert np.abs(frames[rows].astype(int) - np.stack([seen(row) for row in rows])).mean() < 4
    pictures = FakePictures(COUNT)
    again = open_frames(pictures, SEEN, "fake")
    np.testing.assert_array_equal(again[rows], frames[rows])
    assert pictures.decoded == []
    decoded = DecodedFrames(FakePictures(COUNT), SEEN, "jpeg")  # where there is no room: the same bits
    np.testing.assert_array_equal(decoded[rows], frames[rows])
    data = only_folder(home) / "frames.bin"
    with data.open("r+b") as file:
        file.write(bytes(data.stat().st_size))
    with pytest.raises(UserError, match="is damaged; run `rlrc cache --clear`"):
        frames[rows]


@pytest.mark.parametrize("nbytes", [0, 5000])
def test_beyond_that_frames_are_decoded_as_they_are_needed(
    nbytes: int, monkeypatch: pytest.MonkeyPatch, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allow(monkeypatch, nbytes)
    pictures = FakePictures(COUNT)
    frames = open_frames(pictures, SEEN, "fake")
    assert isinstance(frames, DecodedFrames)
    pictures.decoded.clear()
    np.testing.assert_array_equal(frames[np.array([9, 4, 9])], np.stack([seen(9), seen(4), seen(9)]))
    assert sorted(pictures.decoded) == [4, 9]
    assert not home.exists()
    assert "decoded as they are needed" in capsys.readouterr().err


def test_a_missing_picture_is_told(home: Path) -> None:
    class Gaps(FakePictures):
        def decode(self, rows):  # type: ignore[no-untyped-def]
            return (item for item in super().decode(rows) if item[0] != 4)

    with pytest.raises(UserError, match="row 4 is missing"):
        open_frames(Gaps(COUNT), SEEN, "fake")
    with pytest.raises(UserError, match="row 4 is missing"):
        read_frames(Gaps(COUNT), np.array([3, 4]), SEEN)
    assert not frame_files.FrameFiles(home, frame_files.Spec(Gaps(COUNT).identity(), COUNT, *SEEN, "raw")).is_complete()


def test_what_was_used_longest_ago_makes_room_and_never_what_is_in_use(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allow(monkeypatch, 2.5 * COUNT * RAW_BYTES)
    in_use = open_frames(FakePictures(COUNT, name="in use"), SEEN, "in use")
    old = only_folder(home)
    os.utime(old / "lock", (1, 1))  # the oldest of all, but open
    open_frames(FakePictures(COUNT, name="middle"), SEEN, "middle")
    (home / "notes.txt").write_text("the user's")
    (home / ("0" * 32)).mkdir()
    (home / ("0" * 32) / "frames.bin").write_text("not a cache: no lock")
    newest = open_frames(FakePictures(COUNT, name="newest"), SEEN, "newest")
    assert [one.header.dataset for one in cache.kept() if one.header] == ["in use", "newest"]
    assert "removed the frames of middle" in capsys.readouterr().err
    third = open_frames(FakePictures(COUNT, name="third"), SEEN, "third")  # both others are in use
    assert isinstance(third, DecodedFrames)
    assert "no room" in capsys.readouterr().err
    np.testing.assert_array_equal(in_use[np.array([1])], third[np.array([1])])
    assert [one.header.dataset for one in cache.kept() if one.header] == ["in use", "newest"]
    assert (home / "notes.txt").read_text() == "the user's"
    assert (home / ("0" * 32) / "frames.bin").exists()
    assert len(newest) == COUNT


def damage(folder: Path, how: str) -> None:
    header, index, data = (folder / name for name in ("header.json", "index.bin", "frames.bin"))
    if how == "truncated frames":
        os.truncate(data, data.stat().st_size - 1)
    elif how == "longer frames":
        os.truncate(data, data.stat().st_size + 1)
    elif how == "no frames":
        data.unlink()
    elif how == "truncated index":
        os.truncate(index, index.stat().st_size - 8)
    elif how == "wrong index":
        np.full((COUNT, 2), -5).tofile(index)
    elif how == "shifted index":
        np.roll(np.fromfile(index, "<i8").reshape(-1, 2), 1, axis=0).tofile(index)
    elif how == "no json":
        header.write_bytes(b"\xff{")
    elif how == "other header":
        header.write_text(header.read_text().replace(f'"frames":{COUNT}', '"frames":7'))
    elif how == "a link":
        data.rename(folder.parent / "elsewhere")
        data.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize(
    "how",
    [
        "truncated frames",
        "longer frames",
        "no frames",
        "truncated index",
        "wrong index",
        "shifted index",
        "no json",
        "other header",
        "a link",
    ],
)
def test_a_damaged_cache_is_made_anew(how: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_frames(FakePictures(COUNT), SEEN, "fake")
    damage(only_folder(home), how)
    frames = open_frames(FakePictures(COUNT), SEEN, "fake")
    np.testing.assert_array_equal(frames[np.arange(COUNT)], np.stack([seen(row) for row in range(COUNT)]))
    assert "is damaged" in capsys.readouterr().err
    pictures = FakePictures(COUNT)
    open_frames(pictures, SEEN, "fake")
    assert pictures.decoded == []


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_full_disk_is_one_line_and_frames_are_decoded(
    when: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if when == "at once":
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    else:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    frames = open_frames(FakePictures(COUNT), SEEN, "fake")
    np.testing.assert_array_equal(frames[np.array([9, 4])], np.stack([seen(9), seen(4)]))
    told = [line for line in capsys.readouterr().err.splitlines() if "decoded as they are needed" in line]
    assert len(told) == 1
    assert ("no room" if when == "at once" else "No space left") in told[0]
    assert [path.name for path in home.iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_used_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.parent.mkdir()
    home.write_text("a file of this name")
    frames = open_frames(FakePictures(COUNT), SEEN, "fake")
    np.testing.assert_array_equal(frames[np.array([9])][0], seen(9))
    assert "cannot be kept" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT_VARIABLE, text)
    with pytest.raises(UserError, match=cache.LIMIT_VARIABLE):
        open_frames(FakePictures(COUNT), SEEN, "fake")


def test_the_verb_tells_and_clears(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache.cache(CacheConfig(), tmp_path)["caches"] == []
    assert not home.exists()
    used = open_frames(FakePictures(COUNT, name="used"), SEEN, "used")
    open_frames(FakePictures(COUNT), SEEN, "fake")
    (home / "notes.txt").write_text("the user's")
    told = cache.cache(CacheConfig(), tmp_path)
    assert (told["limit_bytes"], told["removed"]) == (20 * 10**9, 0)
    assert [one["frames_of"] for one in told["caches"]] == [
        "used: 60 of 24 x 32 px, raw",
        "fake: 60 of 24 x 32 px, raw",
    ]
    assert sum(one["bytes"] for one in told["caches"]) == 2 * COUNT * (RAW_BYTES + 16) + sum(
        path.stat().st_size for path in home.glob("*/header.json")
    )
    assert "fake: 60 of 24 x 32 px, raw" in capsys.readouterr().err
    told = cache.cache(CacheConfig(clear=True), tmp_path)
    assert (told["removed"], len(told["caches"])) == (1, 1)
    np.testing.assert_array_equal(used[np.array([2])][0], seen(2))
    del used
    assert cache.cache(CacheConfig(clear=True), tmp_path)["removed"] == 1
    assert sorted(path.name for path in home.iterdir()) == ["lock", "notes.txt"]
