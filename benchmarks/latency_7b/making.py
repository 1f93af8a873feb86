"""Policies of rlrc's own, and what makes all the policies that a process holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import shapes
from actor import ACTIONS_A_TURN, Actor, Setting, milliseconds
from baselines import BF16, Towers, Transformers
from names import BASELINE, RLRC, VLA_CACHE, run_of

from rlrc.bench import STAGES, stage_timer
from rlrc.configs.evaluate import VlaCacheConfig
from rlrc.native.processor import multiplies_bfloat16
from rlrc.packed.layers import who_multiplies
from rlrc.policies.openvla.vla_cache import VlaCache
from rlrc.policies.values import Observation
from rlrc.policies.wide import FEWEST_ROWS
from rlrc.roofline import Work, work

WIDENED = f"weights bf16, computed in float32 from {FEWEST_ROWS} rows on and in bf16 below"
ACTIVATIONS = {"cpu": "A8", "cuda": "A16", "reference": "A16, unpacked at every call"}
"""Bits of activations, by the backend that multiplies packed weights."""
FEWEST_STAGE_ROUNDS = 3
"""Actions whose stages are timed, of which the median counts; a turn's actions where these are more."""


def make(names: Sequence[str], setting: Setting) -> dict[str, Actor | Exception]:
    """The policies of these names. Beside the baseline, those in bf16 and the large one lie in its weights."""
    libraries = psutil.Process().memory_info().rss
    made: dict[str, Actor | Exception] = {}
    memory = towers = None
    for name in names:
        run = run_of(name)
        config = shapes.config_of(run.shape, setting.tiny)
        try:
            if run.by == RLRC:
                policy: Rlrc | Transformers = Rlrc(name, shapes.policy(config, run.bits, memory, setting.device))
            else:
                towers = towers or Towers(config, setting.device)
                policy = Transformers(run, config.text_config, towers, memory)
                memory = shapes.Memory(policy.llama) if name == BASELINE else memory
            made[name] = Actor(policy, setting.device, libraries)
        except Exception as error:  # other people's packages fail in their own ways, and the others' rows go on
            made[name] = error
    return made


class Rlrc:
    """A policy of rlrc's own, perhaps with VLA-Cache."""

    compiled = False

    def __init__(self, name: str, policy: Any) -> None:
        self._bits = run_of(name).bits
        self._policy = policy
        self._actor = policy
        if name == VLA_CACHE:
            middle = policy.model.config.text_config.num_hidden_layers // 2 - 1  # the authors' choice of 32 layers
            self._actor = VlaCache(policy, VlaCacheConfig(attention_layer=middle))
        spec = policy.spec
        self.cameras, self.state_width, self.actions_per_call = spec.cameras, len(spec.state), spec.horizon

    def act(self, observation: Observation) -> np.ndarray:
        """A chunk of actions."""
        return self._actor.act(observation)

    def facts(self) -> dict[str, Any]:
        """Return what the row says of the policy."""
        model = self._policy.model
        multipliers = who_multiplies(model, model.device, model.dtype)
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        return {"dtype": self._dtype(multipliers), "multipliers": multipliers, "weight_bytes": weights}

    def _dtype(self, multipliers: list[dict[str, Any]]) -> str:
        if self._bits == 16:
            native = self._policy.device.type != "cpu" or multiplies_bfloat16()
            return BF16 if native else WIDENED
        backends = {row["backend"] for row in multipliers if row["kind"] == "linear"}
        return " and ".join(f"W{self._bits}{ACTIVATIONS[backend]}" for backend in sorted(backends))

    def stages(self, observation: Observation) -> dict[str, float] | None:
        """The milliseconds of each stage. No clock follows VLA-Cache, which has its own way through the decoder, nor a
        GPU, on which an action is one graph and its stages alone are something else."""
        if self._actor is not self._policy or self._policy.records:
            return None
        measure = stage_timer(self._policy, observation)
        rounds = max(FEWEST_STAGE_ROUNDS, ACTIONS_A_TURN[self._policy.device.type])
        seconds = np.median([measure() for _ in range(rounds)], axis=0)
        return {stage: milliseconds(value) for stage, value in zip(STAGES, seconds, strict=True)}

    def work(self, observation: Observation) -> dict[str, Work] | None:
        """Return what each stage has to do; None where no clock follows them."""
        if self._actor is not self._policy:
            return None
        return work(self._policy.stages(self._policy.prepare(observation)))
