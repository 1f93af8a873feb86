"""Ways to lose the process that plays an episode. They lie apart from their tests, so that it need not import torch."""

import os
import signal
import time
from pathlib import Path

from rlrc.configs.collect import CollectConfig
from rlrc.data import collect

LOST_ONCE = "RLRC_TEST_LOST_ONCE"
"""The environment variable with the name of a file that exists once a process has been lost."""

_play = collect._play


def play_or_die(config: CollectConfig, played: Path, episode_id: int) -> collect.Attempt:
    if episode_id == 502 and not Path(os.environ[LOST_ONCE]).exists():
        Path(os.environ[LOST_ONCE]).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return _play(config, played, episode_id)


def play_or_hang(config: CollectConfig, played: Path, episode_id: int) -> collect.Attempt:
    if episode_id == 502 and not Path(os.environ[LOST_ONCE]).exists():
        Path(os.environ[LOST_ONCE]).touch()
        collect.HUNG_EPISODE_S = 2.0
        collect._demonstrate = lambda *_: time.sleep(1000)
    return _play(config, played, episode_id)


def always_die(config: CollectConfig, played: Path, episode_id: int) -> None:
    os._exit(1)
