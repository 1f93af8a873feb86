"""A published OpenVLA-OFT folder: OpenVLA's files, side files, new statistics, and what a spec has to add.

Its config.json is that of the base model: it says `openvla`, and lists the datasets of the base model alone. Random
checkpoints (`publish`) say themselves what they read, as those that rlrc saves.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlrc.errors import UserError, shorten
from rlrc.policies.dim import Dim
from rlrc.policies.folder import Published
from rlrc.policies.oft.config import OFTConfig
from rlrc.policies.oft.model import OFTForActionPrediction
from rlrc.policies.oft.side_files import HEADS, SideFile, SideFiles
from rlrc.policies.oft.spec import EXAMPLES, Told, read_spec
from rlrc.policies.prismatic.checkpoint import STATISTICS_FILE, Supplement, read_statistics
from rlrc.policies.prismatic.layout import published_layout, trunk_config
from rlrc.reading import lies_there


def publish(preset: str) -> Published:
    """The files and the shapes of "openvla-oft-7b" or "openvla-oft-tiny", as rlrc saves them."""
    return published_layout(OFTForActionPrediction, random_config(tiny=preset == "openvla-oft-tiny"), README)


def random_config(tiny: bool = False) -> dict[str, Any]:
    """The config.json of a policy as published for LIBERO, with two cameras, a state, 8 actions a call, an L1 head."""
    told = read_spec("libero")
    state = {"q01": [-1.0] * told.words.state, "q99": [1.0] * told.words.state}
    values = trunk_config(tiny)
    (statistics,) = values["norm_stats"].values()
    return values | {
        "model_type": OFTConfig.model_type,
        "architectures": [OFTForActionPrediction.__name__],
        "horizon": told.words.chunk,
        "cameras": list(told.words.cameras),
        "state_dim": told.words.state,
        "action_dim": told.words.action,
        "head": "l1",
        "normalisation": told.words.normalisation,
        "action_dims": _names(told.action),
        "state_dims": _names(told.state),
        "norm_stats": {"libero": {**statistics, "proprio": state}},
    }


def supplement(folders: Sequence[Path], spec: str | None) -> Supplement:
    """Read what a published folder holds beside config.json and safetensors files.

    Args:
        folders: the checkpoint's; of an adapter also its own.

    Raises:
        UserError: there is no spec, it contradicts the files, or a file is missing or damaged.
    """
    folder = folders[0]
    if spec is None:
        raise UserError(
            f"{folder}: the files of this OpenVLA-OFT policy do not say how long its chunks are and which cameras and "
            f"state it reads; say it with spec: {EXAMPLES}"
        )
    told, files = read_spec(spec), SideFiles(folders)
    head = _head(folder, told, files.files.get("action_head"))
    if (head == "diffusion") != ("noisy_action_projector" in files.files):
        there = "lies here, and the head is none of diffusion" if head != "diffusion" else "is missing"
        raise UserError(f"{folder}: the file noisy_action_projector--*_checkpoint.pt {there}")
    _require_state(folder, told, files.files.get("proprio_projector"))
    statistics = _statistics(folders)
    action_dim = _action_dim(folder, told, files.files.get("action_head"), statistics)
    values = {
        "model_type": OFTConfig.model_type,
        "horizon": told.words.chunk,
        "cameras": list(told.words.cameras),
        "state_dim": told.words.state,
        "action_dim": action_dim,
        "head": head,
        "film": "vision_backbone" in files.files,
        "normalisation": told.words.normalisation,
        "diffusion_steps": told.words.steps,
        "action_dims": _names(told.action),
        "state_dims": _names(told.state),
        "norm_stats": statistics,
    }
    return Supplement(values, files)


def require_same(folder: Path, spec: str, config: OFTConfig) -> None:
    """Hold a spec against a checkpoint that says itself what it reads.

    Raises:
        UserError: they differ.
    """
    words = read_spec(spec).words
    for word, said, stored in (
        ("chunk", words.chunk, config.horizon),
        ("cameras", list(words.cameras), config.cameras),
        ("state", words.state, config.state_dim),
        ("action", words.action or config.action_dim, config.action_dim),
        ("head", words.head or config.head, config.head),
        ("normalisation", words.normalisation, config.normalisation),
    ):
        if said != stored:
            raise UserError(
                f"{folder}: spec says {word} {shorten(str(said))}, and config.json {shorten(str(stored))}; leave spec "
                "out, this checkpoint needs none"
            )


def _head(folder: Path, told: Told, file: SideFile | None) -> str:
    """The kind of head, which an action head's file says, and a spec where there is none."""
    if file is None:
        if told.words.head != "tokens":
            raise UserError(
                f"{folder}: there is no file action_head--*_checkpoint.pt; put it here, or add head=tokens to spec "
                "where the policy predicts action tokens"
            )
        return "tokens"
    if len(file.prefixes) != 1:
        raise UserError(f"{file.path}: this is no action head; names of its tensors begin with {' or '.join(HEADS)}")
    head = HEADS[file.prefixes[0]]
    if told.words.head not in (None, head):
        raise UserError(f"{file.path}: this is a head of kind {head}, and spec says head={told.words.head}")
    return head


def _require_state(folder: Path, told: Told, file: SideFile | None) -> None:
    """Check that a projector of the state is there if and only if a spec says that there is a state, of its width."""
    state, name = told.words.state, "proprio_projector.fc1.weight"
    if file is None:
        if state:
            raise UserError(
                f"{folder}: spec says state={state}, and there is no file proprio_projector--*_checkpoint.pt; put it "
                "here, or say state=0 where the policy reads no state"
            )
        return
    if name not in file or file.outline(name).ndim != 2:
        raise UserError(f"{file.path}: this is no projector of a state; it has no matrix 'fc1.weight'")
    width = file.outline(name).shape[1]
    if width != state:
        raise UserError(f"{file.path}: the policy reads a state of {width} numbers, and spec says state={state}")


def _statistics(folders: Sequence[Path]) -> dict[str, Any]:
    """The statistics of fine-tuning, which stand for those of config.json."""
    paths = [folder / STATISTICS_FILE for folder in folders if lies_there(folder / STATISTICS_FILE)]
    if not paths:
        raise UserError(
            f"{folders[0]}: {STATISTICS_FILE} is missing; config.json holds the statistics of the base model alone"
        )
    return read_statistics(paths[0])


def _action_dim(folder: Path, told: Told, file: SideFile | None, statistics: dict[str, Any]) -> int:
    """Numbers of an action: rows of the action head's last matrix, or those that all statistics have."""
    if file is not None:
        name = "action_head.fc2.weight"
        if name not in file or file.outline(name).ndim != 2:
            raise UserError(f"{file.path}: this is no action head; it has no matrix 'fc2.weight'")
        found = len(file.outline(name))
        if told.words.action not in (None, found):
            raise UserError(f"{file.path}: actions have {found} numbers, and spec says action={told.words.action}")
        return found
    if told.words.action is not None:
        return told.words.action
    actions = [entry["action"] for entry in statistics.values() if isinstance(entry.get("action"), dict)]
    counts = {len(action["q01"]) for action in actions if isinstance(action.get("q01"), list)}
    if len(counts) != 1:
        raise UserError(
            f"{folder / STATISTICS_FILE}: it does not say how many numbers an action has; add action= to spec"
        )
    return counts.pop()


def _names(dims: tuple[Dim, ...]) -> list[dict[str, str]] | None:
    return [asdict(dim) for dim in dims] or None


README = """\
Shapes are those of OpenVLA-OFT as published for LIBERO, so that size, speed and memory are the real ones; all tensors
lie in safetensors files, as rlrc saves them.
"""
