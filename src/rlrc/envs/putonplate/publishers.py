"""Who publishes the simulator's files. `published.sha256` lists them, with "-" where we have not seen the original."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rlrc.envs.putonplate import files

_GITHUB = "https://raw.githubusercontent.com"
_RL4VLA = f"{_GITHUB}/gen-robot/RL4VLA/55f966d6bf721342518ff8609cc1388cc4e80ef9"
_PUBLISHERS = {
    "data/robots/widowx/": f"{_GITHUB}/haosulab/ManiSkill-WidowX250S/v0.2.0/",
    "carrot/": f"{_RL4VLA}/ManiSkill/mani_skill/assets/carrot/",
}


@dataclass(frozen=True)
class PublishedFile:
    """A file by its address, its path below the folder of files, and its SHA-256 where that is known."""

    url: str
    path: str
    sha256: str | None


@dataclass(frozen=True)
class Archive:
    """A zip file of which the one member whose name ends with `member` is needed, at `path`."""

    url: str
    sha256: str
    member: str
    path: Path


def published_files() -> list[PublishedFile]:
    """The robot, the objects, the plates and the pictures."""
    found = []
    for path, sha256 in files.checksums().items():
        here = next(prefix for prefix in _PUBLISHERS if path.startswith(prefix))
        found.append(PublishedFile(_PUBLISHERS[here] + quote(path.removeprefix(here)), path, sha256))
    return found


def archives() -> list[Archive]:
    """The table, from ManiSkill's own data set; the checksum is ManiSkill's."""
    return [
        Archive(
            "https://huggingface.co/datasets/haosulab/ManiSkill_bridge_v2_real2sim/resolve/main/"
            "bridge_v2_real2sim_dataset.zip",
            "618512a205b4528cafecdad14b1788ed1130879f3064deb406516ed5b9c5ba92",
            "stages/bridge_table_1_v1.glb",
            files.STAGE,
        )
    ]
