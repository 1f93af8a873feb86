"""What rounding activations to 8 bits costs: the shipped small policies in 4 bits, by the kernels and unpacked.

    python benchmarks/activations.py            about half an hour on 2 cores; writes results/activations.json

rlrc's kernels on a CPU multiply codes with activations that are rounded to 8 bits (W4A8). Its kernels on a GPU, and the
plain form, multiply what the codes stand for with activations as they are (W4A16). Here the second kind is the same
checkpoint with its weights unpacked, computed in bf16 and in float32. All three play the same episodes, and act on the
same demonstrated frames, where it is counted how many numbers of their actions differ.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import rlrc
from rlrc.act.evaluate import evaluate
from rlrc.bench import machine
from rlrc.configs.collect import CollectConfig
from rlrc.configs.evaluate import EvaluateConfig
from rlrc.configs.quantize import Part, QuantizeConfig
from rlrc.data import Demonstrations
from rlrc.data.collect import collect
from rlrc.episodes import by_condition, compare, read_episodes, success_rate
from rlrc.files import write_json
from rlrc.packed.layers import QuantizedLinear, who_multiplies
from rlrc.policies.contract import Policy
from rlrc.quantize import quantize
from rlrc.sensitivity.frames import Frames

POLICIES = ("checkpoints/tabletop-rlrc", "checkpoints/tabletop-oft-rlrc")
KERNELS, FLOAT32 = "W4A8, kernels", "W4A32, unpacked"
PARTS: tuple[Part, ...] = ("decoder", "vision", "projector")
DTYPES = {"W4A16, unpacked": torch.bfloat16, FLOAT32: torch.float32}
EPISODES, FRAMES, DEMONSTRATIONS = 512, 512, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/activations.json"))
    parser.add_argument("--episodes", type=int, default=EPISODES, help="episodes of each split")
    parser.add_argument("--frames", type=int, default=FRAMES)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    paired: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "demos").mkdir()
        collect(CollectConfig(episodes=DEMONSTRATIONS, cameras=("front", "wrist")), place / "demos")
        for path in POLICIES:
            quantize(QuantizeConfig(policy=Path(path), bits=4, parts=PARTS, device="cpu"), place / path)
            ways = {KERNELS: place / path / "checkpoint"}
            require_kernels(rlrc.load(ways[KERNELS], device="cpu"))
            for way, dtype in DTYPES.items():
                ways[way] = place / path / way
                unpack(rlrc.load(ways[KERNELS], device="cpu"), dtype, ways[way])
            here, pairs = play(path, ways, place, options.episodes)
            rows += here
            shares = changed(path, ways, place, options.frames)
            paired += [pair | shares[pair["a"]] for pair in pairs]
    write_json(options.out, {"machine": machine(), "frames": options.frames, "rows": rows, "paired": paired})


def require_kernels(policy: Policy) -> None:
    """Check that the kernels multiply the linear layers, so that there is something to compare."""
    multipliers = who_multiplies(policy.model, policy.model.device, policy.model.dtype)
    if {row["backend"] for row in multipliers if row["kind"] == "linear"} != {"cpu"}:
        raise SystemExit(f"the kernels do not multiply all linear layers here: {multipliers}")


def unpack(policy: Policy, dtype: torch.dtype, folder: Path) -> None:
    """Save the policy with the weights that its codes stand for."""
    packed = {name: module for name, module in policy.model.named_modules() if isinstance(module, QuantizedLinear)}
    config = policy.model.config
    dense = policy.rebuilt(type(config).from_dict(config.to_dict() | {"quantization_config": None}))
    shapes = {name: tensor.shape for name, tensor in dense.model.state_dict().items()}
    stored = policy.model.state_dict()

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes.items():
            module = packed.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
            yield name, (stored[name] if module is None else module.dequantize().reshape(shape)).to(dtype)

    dense.save(folder, dtype=dtype, tensors=tensors())


def play(
    path: str, ways: dict[str, Path], place: Path, episodes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Success of every way to run a policy, and of the kernels minus each other way over the same episodes."""
    played = {}
    for number, (way, folder) in enumerate(ways.items()):
        out = place / f"{Path(path).name}-{number}"
        out.mkdir()
        evaluate(EvaluateConfig(policy=folder, episodes=episodes, num_envs=128, videos=0, device="cpu"), out)
        played[way] = by_condition(read_episodes(out / "episodes.parquet"))
    rows = [
        {"policy": path, "way": way, "split": split, "n": len(cell), "successes": success_rate(cell).successes}
        for way, cells in played.items()
        for split, cell in cells.items()
    ]
    paired = []
    for way in DTYPES:
        for split, cell in played[way].items():
            found = compare(played[KERNELS][split], cell)
            points = {name: round(100 * getattr(found, name), 3) for name in ("difference", "low", "high")}
            paired.append(
                {"policy": path, "a": way, "b": KERNELS, "split": split, "n": found.n, **points, "p": found.p}
            )
    return rows, paired


def changed(path: str, ways: dict[str, Path], place: Path, frames: int) -> dict[str, dict[str, Any]]:
    """By way, the share of the actions' numbers that differ noticeably from the kernels' on demonstrated frames, with
    its interval."""
    policy = rlrc.load(path, device="cpu")
    cameras = [f"observation.images.{name}" for name in policy.spec.cameras]
    shown = Frames.draw(policy, Demonstrations.load(place / "demos" / "dataset", cameras), frames, seed=1)
    behaviours = {way: shown.shown_to(rlrc.load(folder, device="cpu")) for way, folder in ways.items()}
    shares = {way: shown.changed(behaviours[way], behaviours[KERNELS]) for way in DTYPES}
    return {way: {"changed": share.mean, "changed_95": [share.low, share.high]} for way, share in shares.items()}


if __name__ == "__main__":
    main()
