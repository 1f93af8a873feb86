"""`rlrc` with verbs that take for ever, to end them by signals. What they have begun by then they say on stdout."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import toy_verbs

from rlrc import ownership, verbs
from rlrc.files import atomic_path

SftConfig = toy_verbs.SftConfig


def sft(config: toy_verbs.SftConfig, out: Path) -> dict[str, Any]:
    """Writes half a checkpoint, and with `dataset` acts in a world of which two processes draw the pictures."""
    with atomic_path(out / "checkpoint", ownership.CHECKPOINT) as aside:
        aside.mkdir()
        (aside / "config.json").write_text("half")
        if config.dataset is not None:
            import bandit_world

            from rlrc.envs.vector import WorkerVectorEnv

            env = WorkerVectorEnv(bandit_world.SPEC, num_envs=2, num_workers=2, image_size=32)
            env.reset()
        Path(os.environ["READY"]).write_text(str(os.getpid()))
        time.sleep(120)
    return {}


# Without a guard, so that processes which are spawned know these verbs too.
verbs.VERBS["sft"] = verbs.VERBS["sft"]._replace(module="slow_verbs", options="slow_verbs")
ownership.WRITES["sft"] = ownership.stage_files("sft")

if __name__ == "__main__":
    from rlrc.cli import main

    sys.modules["slow_verbs"] = sys.modules["__main__"]
    main()
