"""A checkpoint of a published layout with random weights: as large and as fast as the real one, without skill.

    rlrc make-random --preset openvla-7b OUT      # 7,541,237,184 parameters, 15 GB
    rlrc make-random --preset openvla-tiny OUT    # the same parts in small, for tests

Names, shapes and files are those of the published checkpoint. Each tensor is drawn from a generator of its own, seeded
by (seed, name), a few megabytes at a time, and written shard by shard: little memory is needed, and neither the order
of tensors nor the size of files matters.
"""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import torch

from rlrc.configs.make_random import MakeRandomConfig
from rlrc.errors import UserError
from rlrc.files import atomic_path, require_space, write_json, write_text
from rlrc.ownership import CHECKPOINT, require_own, require_plain
from rlrc.policies.locate import LINEAGE_FILE
from rlrc.policies.registry import publish
from rlrc.policies.schema import LineageFields
from rlrc.policies.shards import SHARD_BYTES, ShardWriter
from rlrc.progress import bar, say
from rlrc.reading import read_model
from rlrc.tables import human_bytes
from rlrc.version import __version__

VERB = "make-random"
CHUNK = 2**20
"""Numbers drawn at a time: float32 of that many stay in the processor's cache on their way to bf16."""
MILLION = 10**6


def make_random(config: MakeRandomConfig, out: Path) -> dict[str, Any]:
    """Write the checkpoint to `out_folder`, or to `out` where that is not given; `seconds` counts writing.

    Raises:
        UserError: something else lies there, or the disk is full.
    """
    started = time.monotonic()
    folder = config.out_folder or out
    _refuse_to_overwrite(folder)
    published = publish(config.preset)
    shapes = published.shapes
    parameters = sum(math.prod(shape) for shape in shapes.values())
    require_space(folder, parameters * torch.bfloat16.itemsize)
    with atomic_path(folder, CHECKPOINT) as aside:
        aside.mkdir()
        write_weights(shapes, config.seed, aside)
        published.write_files(aside)
        stage = {"verb": VERB, "config": config.model_dump(mode="json", exclude={"out_folder"})}
        write_json(aside / LINEAGE_FILE, {"stages": [stage], "rlrc_version": __version__})
        write_text(
            aside / "README.md", published.readme.format(parameters=parameters, preset=config.preset, seed=config.seed)
        )
    nbytes = sum(file.stat().st_size for file in folder.iterdir())
    say(f"{folder}: {parameters:,} random parameters, {human_bytes(nbytes)}")
    return {"parameters": parameters, "bytes": nbytes, "seconds": round(time.monotonic() - started, 1)}


def write_weights(shapes: dict[str, tuple[int, ...]], seed: int, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Draw the tensors and write them to safetensors files of up to `shard_bytes`."""
    writer = ShardWriter(folder, shard_bytes)
    done, total = 0, sum(math.prod(shape) for shape in shapes.values())
    with bar("random weights, in millions", total // MILLION) as progress:
        for name, shape in shapes.items():
            writer.add(name, draw(name, shape, seed))
            before, done = done, done + math.prod(shape)
            progress.advance(done // MILLION - before // MILLION)
    writer.close()


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """One tensor in bf16: biases 0, scales of norms and LayerScale 1, all else normal.

    A matrix keeps the variance of what it multiplies (1 / fan-in), so that signals neither die nor explode through 32
    layers. Queries and keys are twice as large: attention then chooses, where random scores near 0 would average all
    patches and words, and with them whatever differs between two pictures or two instructions.
    """
    if name.endswith(".bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(_tensor_seed(name, seed))
    deviation = _deviation(name, shape)
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    for chunk in tensor.view(-1).split(CHUNK):
        # Drawn in float32: torch's bf16 normals are made from uniforms of 8 bits.
        chunk.copy_(torch.randn(len(chunk), generator=generator) * deviation)
    return tensor


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of the tensor's numbers."""
    # Position embeddings and learnt tokens are added, not multiplied; their last axis is the hidden size.
    fan_in = math.prod(shape[1:]) if name.endswith(".weight") else shape[-1]
    gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
    return gain / math.sqrt(fan_in)


def _tensor_seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")


def _refuse_to_overwrite(folder: Path) -> None:
    """Only what this verb wrote may be replaced, and nothing that was made from it since.

    Raises:
        UserError: something else is there.
    """
    require_plain(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    lineage = folder / LINEAGE_FILE
    if not lineage.is_file() or [stage.verb for stage in read_model(lineage, LineageFields).stages] != [VERB]:
        raise UserError(f"{folder} holds something else; choose another folder, or delete it first")
    require_own(folder, CHECKPOINT.files)
