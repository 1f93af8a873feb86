"""The published folder of pi0.5."""

from typing import Any

from rlrc.policies.flow.paligemma_layout import PaliGemmaLayout
from rlrc.policies.flow.published import STATE_PROMPT, Published


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
