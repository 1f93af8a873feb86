"""What a run leaves in its log, also when it was killed, and what it prints where there is no terminal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlrc import progress
from rlrc.progress import MetricsLog, bar, track


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_flat_json_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.log(1, loss=torch.tensor(0.5), rate=np.float32(0.25), phase="warm-up", explained_variance=float("nan"))
        assert rows(tmp_path) == [
            {"step": 1, "loss": 0.5, "rate": 0.25, "phase": "warm-up", "explained_variance": None}
        ]


def test_an_exact_resume_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in range(1, 6):
            log.log(step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with MetricsLog(tmp_path) as log:
        log.truncate_after(3)
        log.log(4, loss=40.0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_a_reopened_log_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        with MetricsLog(tmp_path) as log:
            log.log(step, loss=1.0)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_plain_lines_are_rare_and_tell_the_eta(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress._console, "get_time", lambda: clock[0])
    with bar("training", total=1000, start=900) as this:
        for step in range(100):
            clock[0] += 1.0
            this.advance(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6, "one every 20 s of the 100 and one at the end"
    assert lines[1] == "training: 940/1000, ETA 1:00, loss 39"
    assert lines[-1] == "training: 1000/1000, took 1:40, loss 99"


def test_track_passes_everything_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([3, 1, 2], "reading")) == [3, 1, 2]
    assert capsys.readouterr().err.startswith("reading: 3/3, took")
