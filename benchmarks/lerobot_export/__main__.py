"""Let LeRobot's own SmolVLA class, unmodified, load what `rlrc export` writes: equal chunks for equal noise.

    python benchmarks/lerobot_export --python ENV/bin/python       writes results/lerobot_export.json

The policies are that of tests/fixtures/smolvla and smaller ones that are pruned from it. ENV holds lerobot 0.4.4 with
transformers 4.53.2 (4.55 to 4.57 shift the vision positions, their issue 41190). Its VLM's processor, which LeRobot
loads and this policy does not use, is stood in for. With --record, LeRobot's chunks are kept in
tests/fixtures/smolvla/lerobot_*.safetensors, which `make test` compares with ours.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import rlrc
from rlrc.bench import machine
from rlrc.configs.export import ExportConfig
from rlrc.configs.prune import Depth, PruneConfig, Random
from rlrc.files import write_json
from rlrc.policies.export import FOLDER, export
from rlrc.policies.values import Observation
from rlrc.prune import prune

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "smolvla" / "cross4"
SMALLER: dict[str, dict[str, Any]] = {
    "two layers of four": {"method": Depth(keep=(0, 3))},
    "half of the heads and channels": {"method": Random(), "ratio": 0.5},
    "half of them, and layer 0 whole": {"method": Random(), "ratio": 0.5, "protect": (0,)},
}
"""How the smaller policies are pruned. An even layer and an odd one stay; or the layers stay, and zeros fill up the
expert's channels, or all that is smaller than layer 0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment with lerobot 0.4.4")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "lerobot_export.json")
    parser.add_argument(
        "--record", action="store_true", help="keep LeRobot's chunks of the smaller policies for the tests"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows, versions = compare(Path(scratch), options.python, options.record)
    write_json(options.out, {"machine": machine(), "versions": versions, "rows": rows})
    print(json.dumps(rows, indent=1))


def compare(scratch: Path, python: Path, record: bool) -> tuple[list[dict[str, object]], dict[str, str]]:
    """Export all policies, ask LeRobot for their chunks, and compare them with ours."""
    vlm = scratch / "vlm"
    shutil.copytree(FIXTURE / "tokenizer", vlm)
    shutil.copyfile(FIXTURE / "vlm_config" / "config.json", vlm / "config.json")
    rlrc.load(FIXTURE / "checkpoint", spec=f"vlm={vlm}").save(scratch / "whole")
    policies = {"whole": scratch / "whole"}
    for name, options in SMALLER.items():
        prune(PruneConfig(policy=scratch / "whole", device="cpu", **options), scratch / f"{name}, pruned")
        policies[name] = scratch / f"{name}, pruned" / "checkpoint"
    rows = []
    for name, path in policies.items():
        exported = scratch / name
        exported.mkdir(exist_ok=True)
        export(ExportConfig(policy=path, vlm=str(vlm)), exported)
        answer = exported / "answer.safetensors"
        command = [str(python), str(Path(__file__).parent / "ask_smolvla.py"), str(exported / FOLDER), str(FIXTURE)]
        asked = subprocess.run([*command, str(answer)], check=True, capture_output=True, text=True)
        theirs, ours = load_file(answer), chunk_of(path)
        rows.append(
            {
                "policy": name,
                "numbers": theirs["chunk"].numel(),
                "largest_difference": float((theirs["chunk"] - ours).abs().max()),
            }
        )
        if record and name in SMALLER:
            save_file(theirs, FIXTURE.parent / f"lerobot_{list(SMALLER).index(name)}.safetensors")
    versions: dict[str, str] = json.loads(asked.stdout.splitlines()[-1])
    return rows, versions


def chunk_of(path: Path) -> torch.Tensor:
    """Our normalised chunk for the fixture's observation and noise."""
    cases, meta = load_file(FIXTURE / "cases.safetensors"), json.loads((FIXTURE / "meta.json").read_text())
    policy = rlrc.load(path)
    images = {name: cases[f"in.image.{name}"].numpy() for name in policy.spec.cameras}
    seen = Observation(images, meta["prompt"]["texts"], cases["in.state"].numpy())
    (chunks,) = policy._denoise(policy.prepare(seen), cases["in.noise"], 10)
    return chunks[..., : len(policy.spec.action)]


if __name__ == "__main__":
    main()
