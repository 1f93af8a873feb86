"""Let other people's clients, as installed from PyPI, talk to `rlrc serve`: each must get what `policy.act` gives.

    make peers           builds the environments in .peers/ and writes results/peers.json

Each client runs unmodified in an environment of its own, whose packages ask for other releases than ours. LeRobot's
takes 8 GB, since PyPI's torch brings CUDA, and less where TORCH_INDEX names a package index with torch for CPUs.

Each asks for the actions of twenty random observations, of an OpenVLA and of an OpenVLA-OFT; openpi-client also through
the port of `rlrc trial`. With --peers, only those are asked, and the rows of the others stay. With --record, what each
sent to the OpenVLA-OFT is kept byte by byte in tests/fixtures/serving, where `make test` plays it to the server again:
`python benchmarks/peers --record --observations 2 --side 32 --out /tmp/peers.json`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from proxy import Recorder

import rlrc
from rlrc.bench import machine
from rlrc.files import write_json
from rlrc.policies.contract import Policy
from rlrc.policies.make_random import MakeRandomConfig, make_random
from rlrc.policies.values import Observation
from rlrc.progress import say
from rlrc.reading import read_json
from rlrc.tables import print_table
from rlrc.wire import pack

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / ".peers"
FIXTURES = ROOT / "tests" / "fixtures" / "serving"
TEXTS = ("put the carrot on the plate", "put the red cube on the plate", "stop")


class Peer(NamedTuple):
    """A client of other people."""

    name: str
    environment: str
    """Name of its folder in .peers/."""
    packages: tuple[str, ...]
    """What its environment holds: openpi-client imports typing-extensions and does not ask for it."""
    script: str
    ours: tuple[Path, ...] = ()
    """Folders of this repository that are installed beside them, without what they ask for."""
    is_recorded: bool = True
    """Whether --record keeps what it sends: where that is the same each time, and no other peer sends it."""
    in_trial: bool = False
    """Whether it talks to the port of `rlrc trial` in place of the server's."""


OPENPI = ("openpi-client==0.1.2", "typing-extensions")
LEROBOT = ("lerobot==0.4.4", "msgpack", "websockets", "wrapt")
PLUGIN = (ROOT, ROOT / "integrations" / "lerobot_policy_rlrc")
PEERS = (
    Peer("openpi-client", "openpi", OPENPI, "ask_openpi.py"),
    Peer("openpi-client in rlrc trial", "openpi", OPENPI, "ask_openpi.py", is_recorded=False, in_trial=True),
    Peer("vla-eval", "vla_eval", ("vla-eval==0.8.0",), "ask_vla_eval.py"),
    Peer("json-numpy over HTTP", "act", ("json-numpy==2.1.1", "numpy", "requests"), "ask_act.py"),
    Peer("lerobot-eval", "lerobot", LEROBOT, "ask_lerobot.py", PLUGIN),
    Peer("lerobot-record", "lerobot", LEROBOT, "ask_lerobot_record.py", PLUGIN, is_recorded=False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "peers.json")
    parser.add_argument("--observations", type=int, default=20)
    parser.add_argument("--side", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--record", action="store_true", help="keep what the clients send in tests/fixtures/serving")
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], help="ask these alone")
    options = parser.parse_args()
    peers = [peer for peer in PEERS if not options.peers or peer.name in options.peers]
    rows = [row for row in read_json(options.out)["rows"] if row["peer"] not in options.peers] if options.peers else []
    with tempfile.TemporaryDirectory() as folder:
        random = Path(folder) / "oft"
        make_random(MakeRandomConfig(preset="openvla-oft-tiny", out_folder=random), random)
        for name, path, spec in (
            ("OpenVLA (checkpoints/tabletop-base)", ROOT / "checkpoints" / "tabletop-base", None),
            ("OpenVLA-OFT (make-random openvla-oft-tiny)", random, "libero"),
        ):
            policy = rlrc.load(path, spec=spec)
            observations = random_observations(policy, options.observations, options.side)
            expected = np.stack([np.atleast_2d(policy.act(observations[[row]])[0]) for row in range(len(observations))])
            with serving(path, spec) as port:
                for peer in peers:
                    keep = options.record and spec and peer.is_recorded
                    record = FIXTURES / f"{Path(peer.script).stem}.msgpack" if keep else None
                    got = ask(peer, port, observations, policy.spec.horizon, Path(folder), record)
                    rows.append(
                        {
                            "peer": peer.name,
                            "packages": list(peer.packages),
                            "policy": name,
                            "observations": len(got),
                            "numbers": int(got.size),
                            "equal": int((got == expected).sum()),
                            "largest_difference": float(np.abs(got - expected).max()),
                        }
                    )
    write_json(options.out, {"machine": machine(), "rows": rows})
    print_table(
        "other people's clients: their actions beside policy.act",
        ["client", "policy", "actions' numbers", "equal", "largest difference"],
        [
            [row["peer"], row["policy"], str(row["numbers"]), str(row["equal"]), f"{row['largest_difference']:.2g}"]
            for row in rows
        ],
    )


def random_observations(policy: Policy, count: int, side: int) -> Observation:
    generator = np.random.default_rng(0)
    images = {camera: generator.integers(0, 256, (count, side, side, 3), np.uint8) for camera in policy.spec.cameras}
    state = generator.uniform(-0.1, 0.1, (count, len(policy.spec.state))).astype(np.float32)
    return Observation(images, [TEXTS[row % len(TEXTS)] for row in range(count)], state if policy.spec.state else None)


@contextmanager
def serving(path: Path, spec: str | None) -> Iterator[int]:
    """`rlrc serve` in a process of its own; gives the port.

    It answers one request after another, since `policy.act` itself rounds a batch otherwise than a row alone in bf16.
    """
    command = [sys.executable, "-m", "rlrc", "serve", "--policy", str(path), "--port", "0", "--names", "libero"]
    command += ["--max-batch", "1"]
    command += ["--spec", spec] if spec else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("serving "):
                break
        else:
            raise SystemExit(f"the server of {path} does not start")
        try:
            yield int(line.split("ws://127.0.0.1:")[1].split()[0])
        finally:
            process.terminate()
        if process.wait(60):
            raise SystemExit(f"the server of {path} ended with status {process.returncode}")


@contextmanager
def trial(port: int, folder: Path) -> Iterator[int]:
    """A trial of `rlrc trial` that has begun and succeeds at the end; gives the port that the robot's program talks to.

    Both of its policies are the server at `port`, by two addresses, so that the order decides nothing.
    """
    scenes = folder / "scenes.yaml"
    scenes.write_text("- name: only")
    policies = [f"{name}=ws://{host}:{port}" for name, host in (("one", "127.0.0.1"), ("two", "localhost"))]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "rlrc", "trial", "--policies", *policies, "--scenes", str(scenes)]
        command += ["--port", "0", "--out", str(Path(out) / "trial")]
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:
            assert process.stdin is not None and process.stderr is not None
            line = next(line for line in process.stderr if "connects to ws://" in line)
            process.stdin.write("\n")
            process.stdin.flush()
            wait_for(process.stderr, "then a note if you like): ")
            yield int(line.rpartition(":")[2])
            process.stdin.write("s\nq\n")
            process.stdin.close()
            said = process.stderr.read()
    if process.returncode or "kept: success" not in said:
        raise SystemExit(f"the trial failed: {said}")


def wait_for(stream: TextIO, text: str) -> None:
    """Read until `text`, which ends no line."""
    said = ""
    while not said.endswith(text):
        character = stream.read(1)
        if not character:
            raise SystemExit(f"the trial ended early: {said}")
        said += character


def ask(
    peer: Peer, port: int, observations: Observation, horizon: int, folder: Path, record: Path | None
) -> np.ndarray:
    """The actions (N, H, D) that a peer gets; a policy without wrist camera or state has no use for what is sent."""
    python = environment(peer)
    count = len(observations)
    front = observations.images["front"]
    asked, answers = folder / "asked.npz", folder / "answers.npz"
    np.savez(
        asked,
        front=front,
        wrist=observations.images.get("wrist", front),
        state=np.zeros((count, 8), np.float32) if observations.state is None else observations.state,
        text=np.array(observations.instruction),
        horizon=horizon,
    )
    say(f"{peer.name} asks port {port}")
    with trial(port, folder) if peer.in_trial else nullcontext(port) as entrance, Recorder(entrance) as relay:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.run([python, HERE / peer.script, str(relay.port), asked, answers], check=True, env=clean)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with np.load(asked) as given:
            seen = {name: given[name] for name in ("front", "wrist", "state")}
        record.write_bytes(pack({"sent": relay.connections, "text": list(observations.instruction), **seen}))
    with np.load(answers) as got:
        return got["actions"]


def environment(peer: Peer) -> Path:
    """The interpreter of a peer's environment, which is made where it is not there yet."""
    folder = ENVIRONMENTS / peer.environment
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        say(f"making {folder} with {' '.join(peer.packages)}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "-q"]
        index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
        subprocess.run([*install, *index, *peer.packages], check=True)
        for path in peer.ours:
            subprocess.run([*install, "--no-deps", "-e", path], check=True)
        (folder / "installed").write_text("\n".join(peer.packages))
    return python


if __name__ == "__main__":
    main()
