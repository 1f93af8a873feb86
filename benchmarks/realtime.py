"""Success against the time that a policy takes to think, in a world that does not wait for it.

    rlrc run recipes/conveyor.yaml         trains the policies: about two hours on two cores
    python benchmarks/realtime.py          about two hours more; run again, it goes on where it was

Each policy plays the same 256 episodes of the conveyor at every latency, speed and mode (see `act/realtime.py`; only a
policy that denoises has real-time chunking), and once more with its own latency, measured on this machine. Writes
results/realtime/summary.json, chart.png and README.md with tables. The chart marks the latencies of the shipped
policies, measured here in the same way, and those of OpenVLA-7B's shapes, from results/latency_7b/cpu.json. Nothing
else should run on the machine while it measures latencies, which it does first; the episodes do not depend on it.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rlrc
from rlrc.act.actor import Plain
from rlrc.act.evaluate import evaluate
from rlrc.act.realtime import measured_latency
from rlrc.bench import machine, noise_observation
from rlrc.configs.evaluate import EvaluateConfig, Realtime
from rlrc.episodes import Rate
from rlrc.files import write_json, write_text
from rlrc.png import save_png
from rlrc.reading import read_json
from rlrc.report.charts import COLOURS
from rlrc.study.figures import STYLE
from rlrc.tables import markdown_table

LATENCIES_MS = (0, 40, 100, 200, 400, 600, 800, 1600, 3200)
SPEEDS = (1, 4)
"""Speeds of the belt, cm/s: the slowest and the fastest of those that were trained on."""
MODES: tuple[Realtime, ...] = ("synchronous", "asynchronous")


@dataclass(frozen=True)
class Contender:
    """A policy that recipes/conveyor.yaml trains."""

    stage: str
    """The stage that makes it."""
    modes: tuple[Realtime, ...] = MODES
    temperature: float | None = None
    """Temperature at which it acts; None takes its own."""


CONTENDERS = {
    "OpenVLA": Contender("openvla"),
    "OpenVLA-OFT": Contender("oft"),
    "SmolVLA": Contender("smolvla", modes=(*MODES, "rtc"), temperature=0),
}
SHIPPED = ("tabletop-base", "tabletop-rlrc", "tabletop-oft-base", "tabletop-smolvla-base")
LARGE = {"dense": "7B dense", "rlrc": "7B RLRC", "rlrc-4bit": "7B RLRC, 4 bits"}
"""Rows of results/latency_7b/cpu.json, and what the chart calls them."""
NEAR = 1.4
"""Ratio of two latencies below which the chart has no room for two labels."""
LINES: dict[Realtime, str] = {"synchronous": "-", "asynchronous": "--", "rtc": ":"}
NAMES: dict[Realtime, str] = {
    "synchronous": "synchronous",
    "asynchronous": "asynchronous",
    "rtc": "real-time chunking",
}


@dataclass(frozen=True)
class Point:
    """This tells how often one policy succeeds at one latency."""

    policy: str
    mode: Realtime
    latency_ms: float
    measured: bool
    """True where the latency is the policy's own, measured on this machine."""
    speed: float
    """cm/s."""
    n: int
    successes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/conveyor"), help="folder of recipes/conveyor.yaml's run")
    parser.add_argument("--episodes", type=int, default=256, help="for each point")
    parser.add_argument("--out", type=Path, default=Path("results/realtime"))
    options = parser.parse_args()
    policies = {name: options.run / contender.stage / "checkpoint" for name, contender in CONTENDERS.items()}
    policies = {name: path for name, path in policies.items() if path.exists()}
    if not policies:
        parser.error(f"{options.run} has no policies: rlrc run recipes/conveyor.yaml")
    marks = list(all_marks(options.run / "latencies"))
    points: list[Point] = []
    for point in play_all(policies, options.run / "realtime", options.episodes):
        points.append(point)
        write_json(
            options.out / "summary.json",
            {"machine": machine(), "rows": [asdict(point) for point in points], "marks": marks},
        )
    write(points, marks, options.out)


def all_marks(out: Path) -> Iterator[dict[str, Any]]:
    """Latencies of the shipped policies, measured now unless `out` has them, and those of OpenVLA-7B's shapes."""
    for name in SHIPPED:
        folder = Path("checkpoints") / name
        if folder.exists():
            policy = rlrc.load(folder)
            (out / name).mkdir(parents=True, exist_ok=True)
            latency = measured_latency(Plain(policy), noise_observation(policy, 1), out / name)
            yield {"name": name, "latency_ms": latency.latency_ms, "actions_per_call": policy.spec.horizon}
    rows = read_json(Path("results/latency_7b/cpu.json"))["rows"]
    for row, name in LARGE.items():
        found = next(entry for entry in rows if entry["name"] == row and entry["backend"] != "transformers")
        yield {"name": name, "latency_ms": found["p50_ms"], "actions_per_call": 1}


def play_all(policies: dict[str, Path], out: Path, episodes: int) -> Iterator[Point]:
    """Every policy at every speed and in every mode: first with its own latency, then with the given ones."""
    for latency_ms in (None, *LATENCIES_MS):
        for name, path in policies.items():
            for speed in SPEEDS:
                for mode in CONTENDERS[name].modes:
                    yield play(name, path, speed, mode, latency_ms, out, episodes)


def play(name: str, path: Path, speed: int, mode: Realtime, latency_ms: float | None, out: Path, n: int) -> Point:
    folder = out / f"{path.parent.name}-{speed}-{mode}-{'own' if latency_ms is None else latency_ms}"
    folder.mkdir(parents=True, exist_ok=True)
    config = EvaluateConfig(
        policy=path,
        world=f"conveyor:{speed}",
        splits=("ind",),
        episodes=n,
        num_envs=64,
        num_workers=1,
        videos=0,
        temperature=CONTENDERS[name].temperature,
        realtime=mode,
        latency_ms=latency_ms,
    )
    done = folder / "eval.json"
    result = read_json(done) if done.exists() else evaluate(config, folder)
    rate = result["conditions"]["ind"]["success_at_end"]
    return Point(name, mode, result["realtime"]["latency_ms"], latency_ms is None, speed, rate["n"], rate["successes"])


def write(points: list[Point], marks: list[dict[str, Any]], out: Path) -> None:
    """The chart and the table."""
    with mpl.rc_context(STYLE):
        save_png(draw(points, marks), out / "chart.png", dpi=120)
    write_text(out / "README.md", page(points, marks))


def draw(points: list[Point], marks: list[dict[str, Any]]) -> Figure:
    names = list(dict.fromkeys(point.policy for point in points))
    figure = Figure((4.8 * len(names), 4.2), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        curves(axes, [point for point in points if point.policy == name and not point.measured])
        show_marks(axes, marks)
        axes.set_title(f"{name}, chunks of {1 if name == 'OpenVLA' else 8}", pad=62)
        axes.set_xscale("symlog", linthresh=40, linscale=0.4)
        axes.set_xticks(LATENCIES_MS, [str(value) for value in LATENCIES_MS], rotation=60)
        axes.set_xlim(0, 20_000)
        axes.set_ylim(0, 100)
        axes.set_xlabel("time from a picture to its actions, ms")
        axes.legend(loc="upper right", fontsize=7)
    figure.axes[0].set_ylabel("success at the end of the episode, %")
    return figure


def curves(axes: Axes, points: list[Point]) -> None:
    for colour, speed in zip(COLOURS, SPEEDS, strict=False):
        for mode in dict.fromkeys(point.mode for point in points):
            mine = sorted((p.latency_ms, p) for p in points if p.speed == speed and p.mode == mode)
            rates = [Rate.of(point.successes, point.n) for _, point in mine]
            bounds = [100 * rate.low for rate in rates], [100 * rate.high for rate in rates]
            at = [latency for latency, _ in mine]
            label = f"{speed} cm/s, {NAMES[mode]}"
            heights = [100 * rate.rate for rate in rates]
            axes.plot(at, heights, LINES[mode], marker="o", markersize=3, color=colour, label=label)
            axes.fill_between(at, *bounds, color=colour, alpha=0.12, linewidth=0)


def show_marks(axes: Axes, marks: list[dict[str, Any]]) -> None:
    """A dotted line at each policy's latency, with its name above the axes; neighbours share a label."""
    groups: list[list[dict[str, Any]]] = []
    for mark in sorted(marks, key=lambda mark: mark["latency_ms"]):
        axes.axvline(mark["latency_ms"], color="0.6", linewidth=0.8, linestyle=":")
        if groups and mark["latency_ms"] < NEAR * groups[-1][-1]["latency_ms"]:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    for group in groups:
        axes.annotate(
            "\n".join(mark["name"] for mark in group),
            (group[0]["latency_ms"], 1.01),
            xycoords=("data", "axes fraction"),
            rotation=60,
            fontsize=6.5,
            ha="left",
            va="bottom",
        )


def page(points: list[Point], marks: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(point.policy for point in points))
    parts = [
        "# A world that does not wait",
        "Success on the moving belt against the time from a picture to its actions. Synchronous: the robot holds still "
        "while the policy thinks. Asynchronous: it carries out the rest of the chunk before. Real-time chunking: the "
        "new chunk also goes on from that one. SmolVLA starts from zeros (temperature 0). `benchmarks/realtime.py` "
        "wrote this page; a cell has Wilson's 95 % interval and n.",
        "![Success against latency](chart.png)",
    ]
    for name in names:
        rows = []
        mine = [point for point in points if point.policy == name]
        columns = [(speed, mode) for speed in SPEEDS for mode in CONTENDERS[name].modes]
        for latency, measured in dict.fromkeys((p.latency_ms, p.measured) for p in mine if not p.measured):
            rows.append([f"{latency:g}", *(cell(mine, *column, latency, measured) for column in columns)])
        rows.append(["its own, measured", *(cell(mine, *column, None, True) for column in columns)])
        head = ["latency, ms", *(f"{speed} cm/s, {NAMES[mode]}" for speed, mode in columns)]
        parts += [f"## {name}", markdown_table(head, rows)]
    parts += [
        "## Latencies that the chart marks",
        markdown_table(
            ["policy", "ms a call", "actions a call"],
            [[mark["name"], f"{mark['latency_ms']:.0f}", str(mark["actions_per_call"])] for mark in marks],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def cell(points: list[Point], speed: int, mode: str, latency: float | None, measured: bool) -> str:
    for point in points:
        if (point.speed, point.mode, point.measured) == (speed, mode, measured) and (
            latency is None or point.latency_ms == latency
        ):
            at = f" at {point.latency_ms:.0f} ms" if measured else ""
            return f"{Rate.of(point.successes, point.n)} of {point.n}{at}"
    return ""


if __name__ == "__main__":
    main()
