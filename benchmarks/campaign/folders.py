"""Whole folders in the place of a checkpoint: adapters, other families, nothing at all."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import Case
from damage import VALUES, Change
from policy_case import VERBS_ON_WEIGHTS, WEIGHTS
from policy_case import checkpoint_case as _case
from valid import nothing, put, put_user_files


def cases() -> Iterator[Case]:
    import torch
    from safetensors.torch import save_file

    def pickles_only(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "pytorch_model.bin")

    def oft(*names: str) -> Change:
        def change(folder: Path) -> None:
            for name in names:
                (folder / name).write_bytes(b"PK\x03\x04")

        return change

    def adapter(keep: tuple[str, ...], config: Any) -> Change:
        def change(folder: Path) -> None:
            for path in list(folder.iterdir()):
                if path.name not in keep:
                    path.unlink()
            (folder / "adapter_config.json").write_text(json.dumps(config))
            layer = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
            pair = {f"{layer}.lora_A.weight": torch.zeros(2, 64), f"{layer}.lora_B.weight": torch.zeros(64, 2)}
            save_file(pair, folder / "adapter_model.safetensors")

        return change

    def foreign(name: str, values: Any) -> Change:
        def change(folder: Path) -> None:
            for path in list(folder.iterdir()):
                path.unlink()
            (folder / name).write_text(json.dumps(values))
            save_file({"model.x": torch.zeros(2, 2)}, folder / WEIGHTS)

        return change

    yield _case("folder/fine", nothing, expected="works")
    yield _case("folder/pickles-only", pickles_only, "policy", "pickle")
    for name in ("action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"):
        for verb, arguments in VERBS_ON_WEIGHTS.items():
            if verb != "bench":
                yield _case(f"folder/oft-{name}-{verb}", oft(name), name.split("--")[0] + "|OFT", arguments=arguments)
    both = oft(
        "action_head--latest_checkpoint.pt",
        "proprio_projector--latest_checkpoint.pt",
        "vision_backbone--1_checkpoint.pt",
    )
    yield _case("folder/oft-all", both, "action_head|OFT|proprio|vision_backbone--")
    lora = {
        "peft_type": "LORA",
        "base_model_name_or_path": "openvla/openvla-7b",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    for name, keep in (("without-config", ()), ("with-config", ("config.json", "preprocessor_config.json"))):
        yield _case(f"folder/adapter-{name}", adapter(keep, lora), "adapter", "openvla/openvla-7b")
        for kind, raw in VALUES.items():
            edit = adapter(keep, lora | {"base_model_name_or_path": "@@"})

            def change(folder: Path, edit: Change = edit, raw: str = raw) -> None:
                edit(folder)
                path = folder / "adapter_config.json"
                path.write_text(path.read_text().replace('"@@"', raw))

            if name == "without-config":
                yield _case(f"folder/adapter-base={kind}", change, "adapter")
    itself = adapter((), lora | {"base_model_name_or_path": "policy"})
    yield _case("folder/adapter-of-itself", itself, "adapter")
    for family in ("pi0", "pi05", "smolvla", "act", "diffusion"):
        yield _case(
            f"folder/lerobot-{family}", foreign("config.json", {"type": family, "n_obs_steps": 1}), "config.json"
        )
    yield _case("folder/llama", foreign("config.json", {"model_type": "llama", "hidden_size": 64}), "llama")
    yield _case("folder/gguf", lambda f: (f / WEIGHTS).rename(f / "model.gguf") and None, "policy")
    yield _case("folder/empty", _empty, "policy", "config.json|no such")

    def place(make: Any) -> Any:
        def build(root: Path) -> None:
            put_user_files(root)
            put("images", root / "data")
            make(root / "policy")

        return build

    nowhere: dict[str, Any] = {
        "missing": lambda path: None,
        "file": lambda path: path.write_text("x"),
        "pipe": lambda path: os.mkfifo(path),
        "link-to-itself": lambda path: path.symlink_to(path.name),
        "dev-zero": lambda path: path.symlink_to("/dev/zero"),
    }
    for verb, arguments in {**VERBS_ON_WEIGHTS, "inspect": ("inspect", "policy")}.items():
        for kind, make in nowhere.items():
            yield Case(f"checkpoint/folder/{kind}-{verb}", arguments, place(make), words=("policy",))


def _empty(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.unlink()
