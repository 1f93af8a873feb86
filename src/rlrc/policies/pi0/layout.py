"""The published folder of pi0."""

from typing import Any

from rlrc.policies.flow.paligemma_layout import PaliGemmaLayout
from rlrc.policies.flow.published import Published


class Pi0Layout(PaliGemmaLayout):
    """See `flow.checkpoint.Layout`."""

    def config(self, published: Published) -> dict[str, Any]:
        published.require(published.spec.state is None, "spec state= belongs to pi05; pi0 reads the state as numbers")
        published.require(
            published.fields.input_features.get("observation.state") is not None,
            "input_features have no 'observation.state', which pi0 reads",
        )
        return super().config(published)
