"""All pruning methods by their options."""

from typing import Any

from rlrc.configs import prune as configs
from rlrc.prune.criteria import LlmPrunerMethod, RandomMethod
from rlrc.prune.depth import DepthMethod
from rlrc.prune.flap import FlapMethod
from rlrc.prune.method import PruningMethod
from rlrc.prune.saliency import StateSaliencyMethod
from rlrc.prune.tokens import TokensMethod
from rlrc.prune.tower import TowerMethod
from rlrc.prune.unstructured import MagnitudeMethod, WandaMethod

METHODS: dict[type[configs.MethodConfig], type[PruningMethod[Any]]] = {
    configs.LlmPruner: LlmPrunerMethod,
    configs.StateSaliency: StateSaliencyMethod,
    configs.Flap: FlapMethod,
    configs.Wanda: WandaMethod,
    configs.Magnitude: MagnitudeMethod,
    configs.Depth: DepthMethod,
    configs.Tokens: TokensMethod,
    configs.Tower: TowerMethod,
    configs.Random: RandomMethod,
}


def method_of(config: configs.MethodConfig) -> PruningMethod[Any]:
    """The method that these options are of."""
    return METHODS[type(config)](config)
