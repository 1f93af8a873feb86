"""Who draws which episodes. An episode's id fixes everything about it, so that equal ids are equal episodes."""

FIRST_CURVE_EPISODE = 900_000
"""Learning curves draw their episodes from here on; they are neither trained on nor in anyone's table."""
FIRST_TRAINING_EPISODE = 1_000_000
"""Demonstrations and reinforcement learning draw episodes from here on; smaller ids are left to evaluation."""
MAX_EPISODE_ID = 10**12
