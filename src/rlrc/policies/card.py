"""The model card (`README.md`) of a saved policy, written from its lineage."""

from typing import Any

from rlrc.policies.values import PolicySpec


def model_card(spec: PolicySpec, parameters: int, lineage: dict[str, Any], size: int) -> str:
    """Markdown with Hugging Face front matter: what the policy is, how it was made, how to load it.

    Args:
        parameters: how many numbers it has, packed ones included.
        size: bytes of its weights as they are stored.
    """
    lines = [
        "---",
        "library_name: rlrc",
        "pipeline_tag: robotics",
        "license: apache-2.0",
        "---",
        "",
        f"# {spec.family} policy, made by rlrc",
        "",
        f"This policy has {parameters:,} parameters and {size:,} bytes of weights.",
        "",
        "```python",
        "import rlrc",
        "",
        'policy = rlrc.load("path/to/this/folder")',
        *_usage(spec),
        "```",
        "",
        "## How it was made",
        "",
    ]
    for stage in lineage["stages"]:
        lines += [f"### `rlrc {stage['verb']}`", "", "| option | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in stage.get("config", {}).items()]
        lines += ["", "| measured | value |", "|---|---|"] if stage.get("metrics") else []
        lines += [f"| {key} | {_cell(value)} |" for key, value in stage.get("metrics", {}).items()]
        lines.append("")
    return "\n".join(lines)


def _usage(spec: PolicySpec) -> list[str]:
    """Lines of Python that act."""
    actions = f"{spec.horizon}, {len(spec.action)}" if spec.horizon > 1 else str(len(spec.action))
    if len(spec.cameras) == 1 and not spec.state:
        return [
            f"actions = policy.act(images, instructions)  # uint8 (B, H, W, 3), list of str -> float32 (B, {actions})"
        ]
    images = ", ".join(f'"{name}": {name}' for name in spec.cameras)
    state = ", state=state" if spec.state else ""
    return [
        f"images = {{{images}}}  # uint8 (B, H, W, 3) each",
        f"actions = policy.act(images, instructions{state})  # list of str -> float32 (B, {actions})",
    ]


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return (text if len(text) <= 160 else text[:157] + "...").replace("|", "\\|").replace("\n", " ")
