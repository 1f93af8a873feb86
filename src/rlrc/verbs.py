"""The verbs by name. A verb's module is imported only when the verb is used, so that `rlrc --help` stays instant."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rlrc.config import Config


class Verb(NamedTuple):
    """Where a verb lives: `module` holds a config class and a function of the verb's own name ("-" becomes "_")."""

    module: str
    config: str
    artifact: str
    """What a later stage that names one of this verb means: this folder below the stage's own."""
    summary: str
    alone: bool = False
    """Whether nothing else may run beside it: it measures time."""


VERBS = {
    "collect": Verb("rlrc.data.collect", "CollectConfig", "dataset", "record demonstrations of a scripted expert"),
    "convert-libero": Verb("rlrc.data.libero", "ConvertLiberoConfig", "dataset", "convert LIBERO's demonstrations"),
    "train": Verb("rlrc.recover.train", "TrainConfig", "checkpoint", "train a base policy from scratch"),
    "prune": Verb("rlrc.prune", "PruneConfig", "checkpoint", "remove attention heads and MLP channels"),
    "sft": Verb("rlrc.recover.sft", "SftConfig", "checkpoint", "recover by supervised fine-tuning"),
    "rl": Verb("rlrc.recover.ppo", "RlConfig", "checkpoint", "recover by reinforcement learning (PPO)"),
    "quantize": Verb("rlrc.quantize", "QuantizeConfig", "checkpoint", "store the weights in 4 or 8 bits"),
    "evaluate": Verb("rlrc.evaluate", "EvaluateConfig", "", "measure success rates in a world"),
    "bench": Verb("rlrc.bench", "BenchConfig", "", "measure parameters, bytes, memory and latency", alone=True),
    "report": Verb("rlrc.report", "ReportConfig", "", "write a run's self-contained HTML page"),
    "run": Verb("rlrc.pipeline", "RunConfig", "", "run a recipe: all of the above, resumable"),
    "study": Verb("rlrc.study", "StudyConfig", "", "run a recipe and write its evidence: tables, tests, figures"),
    "inspect": Verb("rlrc.inspect", "InspectConfig", "", "print a policy's shapes, bytes and lineage"),
    "assets": Verb("rlrc.assets", "AssetsConfig", "", "fetch a simulator's files from their publishers"),
    "make-random": Verb(
        "rlrc.models.random", "MakeRandomConfig", "", "write a random checkpoint of OpenVLA's published layout"
    ),
}


def config_class(verb: str) -> type[Config]:
    cls: type[Config] = getattr(import_module(VERBS[verb].module), VERBS[verb].config)
    return cls


def function(verb: str) -> Callable[[Any, Path], dict[str, Any]]:
    """The verb itself: `function(verb)(config, out)` writes below `out` and returns what it measured."""
    found: Callable[[Any, Path], dict[str, Any]] = getattr(import_module(VERBS[verb].module), verb.replace("-", "_"))
    return found
