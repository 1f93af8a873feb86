"""The verbs by name. A verb's modules are imported only when it is used, so that `rlrc --help` stays instant."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rlrc.config import Config


class Verb(NamedTuple):
    """Where a verb lives."""

    module: str
    """It holds a function of the verb's own name ("-" becomes "_")."""
    options: str
    """It holds the class `config`."""
    config: str
    artifact: str
    """What a later stage that names one of this verb means: this folder below the stage's own."""
    summary: str
    alone: bool = False
    """Whether nothing else may run beside it: it measures time."""


VERBS = {
    "collect": Verb(
        "rlrc.data.collect",
        "rlrc.configs.collect",
        "CollectConfig",
        "dataset",
        "record demonstrations of a scripted expert",
    ),
    "convert-libero": Verb(
        "rlrc.data.libero",
        "rlrc.configs.convert_libero",
        "ConvertLiberoConfig",
        "dataset",
        "convert LIBERO's demonstrations",
    ),
    "train": Verb(
        "rlrc.recover.train", "rlrc.configs.train", "TrainConfig", "checkpoint", "train a base policy from scratch"
    ),
    "prune": Verb(
        "rlrc.prune", "rlrc.configs.prune", "PruneConfig", "checkpoint", "remove attention heads and MLP channels"
    ),
    "sft": Verb("rlrc.recover.sft", "rlrc.configs.sft", "SftConfig", "checkpoint", "recover by supervised fine-tuning"),
    "rl": Verb(
        "rlrc.recover.ppo", "rlrc.configs.rl", "RlConfig", "checkpoint", "recover by reinforcement learning (PPO)"
    ),
    "quantize": Verb(
        "rlrc.quantize", "rlrc.configs.quantize", "QuantizeConfig", "checkpoint", "store the weights in 4 or 8 bits"
    ),
    "evaluate": Verb(
        "rlrc.evaluate", "rlrc.configs.evaluate", "EvaluateConfig", "", "measure success rates in a world"
    ),
    "bench": Verb(
        "rlrc.bench",
        "rlrc.configs.bench",
        "BenchConfig",
        "",
        "measure parameters, bytes, memory and latency",
        alone=True,
    ),
    "report": Verb("rlrc.report", "rlrc.configs.report", "ReportConfig", "", "write a run's self-contained HTML page"),
    "run": Verb("rlrc.pipeline", "rlrc.configs.run", "RunConfig", "", "run a recipe: all of the above, resumable"),
    "study": Verb(
        "rlrc.study",
        "rlrc.configs.run",
        "StudyConfig",
        "",
        "run a recipe and write its evidence: tables, tests, figures",
    ),
    "inspect": Verb(
        "rlrc.inspect", "rlrc.configs.inspect", "InspectConfig", "", "print a policy's shapes, bytes and lineage"
    ),
    "assets": Verb(
        "rlrc.assets", "rlrc.configs.assets", "AssetsConfig", "", "fetch a simulator's files from their publishers"
    ),
    "make-random": Verb(
        "rlrc.models.random",
        "rlrc.configs.make_random",
        "MakeRandomConfig",
        "",
        "write a random checkpoint of OpenVLA's published layout",
    ),
}


def config_class(verb: str) -> type[Config]:
    """The class of the verb's options; importing it brings neither torch nor a simulator."""
    cls: type[Config] = getattr(import_module(VERBS[verb].options), VERBS[verb].config)
    return cls


def check(verb: str, config: Config) -> None:
    """Hold a config against what it names, such as a world's variants, where the verb's module has a `check` for it.

    Raises:
        UserError: the two do not fit.
    """
    found = getattr(import_module(VERBS[verb].module), "check", None)
    if found is not None:
        found(config)


def function(verb: str) -> Callable[[Any, Path], dict[str, Any]]:
    """The verb itself: `function(verb)(config, out)` writes below `out` and returns what it measured."""
    found: Callable[[Any, Path], dict[str, Any]] = getattr(import_module(VERBS[verb].module), verb.replace("-", "_"))
    return found
