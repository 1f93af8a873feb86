"""The verbs by name. A verb's modules are imported only when it is used, so that `rlrc --help` stays instant.

`run` and `study`, which put the others to work, stand in `command_line.py`.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rlrc.config import Config


class Verb(NamedTuple):
    """A verb: its modules, its artifact and its summary."""

    name: str
    module: str
    """Module that holds a function of the verb's own name, with "_" for "-"."""
    options: str
    """Module that holds the class `config`."""
    config: str
    artifact: str
    """Folder below a stage's own that a later stage means when it names this one."""
    summary: str
    alone: bool = False
    """True if nothing else may run beside it, because it measures time."""
    several_processes: bool = False
    """True if `accelerate launch` can share its work among several processes."""

    def config_class(self) -> type[Config]:
        """The class of the verb's options; importing it brings neither torch nor a simulator."""
        cls: type[Config] = getattr(import_module(self.options), self.config)
        return cls

    def check(self, config: Config) -> None:
        """Hold a config against what it names, such as a world's variants, where the verb's module can.

        Raises:
            UserError: the two do not fit.
        """
        found = getattr(import_module(self.module), "check", None)
        if found is not None:
            found(config)

    def function(self) -> Callable[[Any, Path], dict[str, Any]]:
        """The verb itself: called with a config and a folder, it writes there and returns what it measured."""
        found: Callable[[Any, Path], dict[str, Any]] = getattr(import_module(self.module), self.name.replace("-", "_"))
        return found


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "collect",
            "rlrc.data.collect",
            "rlrc.configs.collect",
            "CollectConfig",
            "dataset",
            "record demonstrations of a scripted expert",
        ),
        Verb(
            "convert-libero",
            "rlrc.data.libero",
            "rlrc.configs.convert_libero",
            "ConvertLiberoConfig",
            "dataset",
            "convert LIBERO's demonstrations",
        ),
        Verb(
            "train",
            "rlrc.recover.train",
            "rlrc.configs.train",
            "TrainConfig",
            "checkpoint",
            "train a small base policy from scratch",
            several_processes=True,
        ),
        Verb(
            "prune",
            "rlrc.prune",
            "rlrc.configs.prune",
            "PruneConfig",
            "checkpoint",
            "remove attention heads and MLP channels, weights or layers",
        ),
        Verb(
            "sft",
            "rlrc.recover.sft",
            "rlrc.configs.sft",
            "SftConfig",
            "checkpoint",
            "recover the skill by supervised fine-tuning",
            several_processes=True,
        ),
        Verb(
            "rl",
            "rlrc.recover.ppo",
            "rlrc.configs.rl",
            "RlConfig",
            "checkpoint",
            "recover the skill by reinforcement learning (PPO)",
            several_processes=True,
        ),
        Verb(
            "quantize",
            "rlrc.quantize",
            "rlrc.configs.quantize",
            "QuantizeConfig",
            "checkpoint",
            "store the weights in 2, 3, 4 or 8 bits",
        ),
        Verb(
            "evaluate",
            "rlrc.act.evaluate",
            "rlrc.configs.evaluate",
            "EvaluateConfig",
            "",
            "measure success rates in a world, or action errors on a dataset",
        ),
        Verb(
            "serve",
            "rlrc.serve",
            "rlrc.configs.serve",
            "ServeConfig",
            "",
            "serve a policy to robots, over the protocols that they speak",
        ),
        Verb(
            "trial",
            "rlrc.trial",
            "rlrc.configs.trial",
            "TrialConfig",
            "",
            "try served policies on a real robot, blind and paired",
        ),
        Verb(
            "bench",
            "rlrc.bench",
            "rlrc.configs.bench",
            "BenchConfig",
            "",
            "measure parameters, bytes, memory and latency",
            alone=True,
        ),
        Verb(
            "sensitivity",
            "rlrc.sensitivity",
            "rlrc.configs.sensitivity",
            "SensitivityConfig",
            "",
            "measure what each part of a policy can bear",
            alone=True,
        ),
        Verb(
            "fit",
            "rlrc.fit",
            "rlrc.configs.fit",
            "FitConfig",
            "",
            "choose what goes for a budget, and write the recipe",
            alone=True,
        ),
        Verb(
            "report",
            "rlrc.report",
            "rlrc.configs.report",
            "ReportConfig",
            "",
            "write a run's self-contained HTML page",
        ),
        Verb(
            "inspect",
            "rlrc.inspect",
            "rlrc.configs.inspect",
            "InspectConfig",
            "",
            "print a policy's shapes, bytes and lineage",
        ),
        Verb(
            "cache",
            "rlrc.data.cache",
            "rlrc.configs.cache",
            "CacheConfig",
            "",
            "show or remove the frames that are kept on this machine",
        ),
        Verb(
            "assets",
            "rlrc.assets",
            "rlrc.configs.assets",
            "AssetsConfig",
            "",
            "fetch a simulator's files from their publishers",
        ),
        Verb(
            "export",
            "rlrc.policies.export",
            "rlrc.configs.export",
            "ExportConfig",
            "lerobot",
            "write a policy as LeRobot saves one",
        ),
        Verb(
            "make-random",
            "rlrc.policies.make_random",
            "rlrc.configs.make_random",
            "MakeRandomConfig",
            "",
            "write a random checkpoint in a family's published layout",
        ),
    )
}
