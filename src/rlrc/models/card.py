"""The model card (`README.md`) of a saved policy, written from its lineage."""

from typing import Any


def model_card(parameters: int, lineage: dict[str, Any], size: int) -> str:
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
        "# OpenVLA policy, made by rlrc",
        "",
        f"This policy has {parameters:,} parameters and {size:,} bytes of weights.",
        "",
        "```python",
        "import rlrc",
        "",
        'policy = rlrc.load("path/to/this/folder")',
        "actions = policy.act(images, instructions)  # uint8 (B, H, W, 3), list of str -> float32 (B, 7)",
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


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return (text if len(text) <= 160 else text[:157] + "...").replace("|", "\\|").replace("\n", " ")
