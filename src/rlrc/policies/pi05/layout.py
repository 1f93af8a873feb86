"""The published folder of pi0.5."""

from typing import Any

from rlrc.policies.flow.paligemma_layout import PaliGemmaLayout, random_config
from rlrc.policies.flow.published import STATE_PROMPT, Published
from rlrc.policies.flow.random_layout import random_layout
from rlrc.policies.folder import Published as RandomPolicy
from rlrc.policies.pi05.model import Pi05Model

ROBOT = (8, 7)
"""Numbers of the state and of an action of a random policy."""


class Pi05Layout(PaliGemmaLayout):
    """See `flow.checkpoint.Layout`."""

    def config(self, published: Published) -> dict[str, Any]:
        """The folder says that the prompt tells the state, and not how; its real dimensions are openpi's way and
        LeRobot's since 0.6."""
        told = published.spec.state
        if told is None:
            told = "none" if published.preprocessor.step(STATE_PROMPT) is None else "real"
        has_state = published.fields.input_features.get("observation.state") is not None
        published.require(
            told == "none" or has_state, "the prompt tells the state, and input_features have no 'observation.state'"
        )
        values = super().config(published)
        return values | ({"state_dim": 0} if told == "none" else {"state_in_prompt": told})


def publish(preset: str) -> RandomPolicy:
    """The files and the shapes of "pi05" or "pi05-tiny", as rlrc saves them."""
    values = random_config(tiny=preset.endswith("-tiny")) | {"state_in_prompt": "real", "max_prompt_tokens": 200}
    return random_layout(Pi05Model, Pi05Layout(), values, ROBOT)
