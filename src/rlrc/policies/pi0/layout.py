"""The published folder of pi0."""

from typing import Any

from rlrc.policies.flow.paligemma_layout import PaliGemmaLayout, random_config
from rlrc.policies.flow.published import Published
from rlrc.policies.flow.random_layout import random_layout
from rlrc.policies.folder import Published as RandomPolicy
from rlrc.policies.pi0.model import Pi0Model

ROBOT = (8, 7)
"""Numbers of the state and of an action of a random policy."""


class Pi0Layout(PaliGemmaLayout):
    """See `flow.checkpoint.Layout`."""

    def config(self, published: Published) -> dict[str, Any]:
        published.require(published.spec.state is None, "spec state= belongs to pi05; pi0 reads the state as numbers")
        published.require(
            published.fields.input_features.get("observation.state") is not None,
            "input_features have no 'observation.state', which pi0 reads",
        )
        return super().config(published)


def publish(preset: str) -> RandomPolicy:
    """The files and the shapes of "pi0" or "pi0-tiny", as rlrc saves them."""
    values = random_config(tiny=preset.endswith("-tiny"))
    return random_layout(Pi0Model, Pi0Layout(), values, ROBOT)
