"""Published OpenVLA-OFT folders: what loads, what is refused in one line, and what is saved."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_policies import CASES, STATISTICS, look, make

import rlrc
from rlrc.errors import UserError
from rlrc.policies.checkpoint import outline
from rlrc.policies.contract import Policy
from rlrc.policies.folder import stored_bytes
from rlrc.policies.oft.spec import PRESETS, read_spec

SPEC = "chunk=3,cameras=front+wrist,state=5"
OWN_FIELDS = {
    *("horizon", "cameras", "state_dim", "head", "film", "normalisation", "diffusion_steps"),
    *("action_dims", "state_dims", "action_dim", "norm_stats"),
}
SIDE_FILES = {"action_head": "action_head", "proprio_projector": "proprio_projector"}


def publish(policy: Policy, folder: Path) -> Path:
    """Write a policy as OpenVLA-OFT's authors publish theirs: heads in `.pt` files, and a config of the base model."""
    policy.save(folder)
    config = json.loads((folder / "config.json").read_text())
    kind = config["head"]
    config = {name: value for name, value in config.items() if name not in OWN_FIELDS} | {"model_type": "openvla"}
    (folder / "config.json").write_text(json.dumps(config | {"norm_stats": {"base": STATISTICS["toy"]}}))
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    tensors = load_file(folder / "model.safetensors")
    inside = {"l1": "model.", "diffusion": "noise_predictor.mlp_resnet."}
    for name in ("action_head", "proprio_projector", "noisy_action_projector"):
        prefix = inside[kind] if name == "action_head" and kind in inside else ""
        own = [key for key in tensors if key.startswith(f"{name}.")]
        if own:
            state = {f"module.{prefix}{key.removeprefix(f'{name}.')}": tensors.pop(key) for key in own}
            torch.save(state, folder / f"{name}--150000_checkpoint.pt")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(make(CASES["oft-l1"]), tmp_path_factory.mktemp("oft") / "published")


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    """A published folder that a test may change."""
    return Path(shutil.copytree(shared_folder, tmp_path / "published"))


@torch.no_grad()
@pytest.mark.parametrize("case", ["oft-l1", "oft-tokens", "oft-diffusion"])
def test_a_published_folder_is_the_policy(case: str, tmp_path: Path) -> None:
    policy = make(CASES[case])
    folder = publish(policy, tmp_path / "published")
    loaded = CASES[case].paced(rlrc.load(folder, spec=SPEC + (",head=tokens" if case == "oft-tokens" else "")))
    assert loaded.spec == policy.spec
    assert list(loaded.norm_stats or {}) == ["toy"]  # the statistics of fine-tuning, and not those of the base model
    generators = [[torch.Generator().manual_seed(row) for row in range(3)] for _ in range(2)]
    found, expected = (
        p.sample(p.prepare(look(p)), CASES[case].sampler, generator).actions
        for p, generator in zip((loaded, policy), generators, strict=True)
    )
    assert torch.equal(found, expected)
    loaded.save(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.pt"))
    assert not (tmp_path / "saved" / "dataset_statistics.json").exists()
    again = rlrc.load(tmp_path / "saved")
    assert again.spec == policy.spec and again.model.config.model_type == "openvla_oft"
    assert torch.equal(*(p.predict(p.prepare(look(p)), found)[0] for p in (again, loaded))) or case == "oft-diffusion"
    parent = again.lineage["parent"]["sha256"]
    assert {name.partition("--")[0] for name in parent} >= {"model.safetensors"}
    assert ("action_head--150000_checkpoint.pt" in parent) == (case != "oft-tokens")


def test_film_is_merged_and_replaces_the_towers(folder: Path) -> None:
    """LoRA's factors are added with min(rank, 16) / rank; the folder's own vision weights are not read."""
    tensors, rank = load_file(folder / "model.safetensors"), 20
    generator = torch.Generator().manual_seed(0)
    film: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    hidden = 40
    for name in [name for name in tensors if name.startswith("vision_backbone.")]:
        whole = tensors[name]
        theirs = name.replace(".blocks.0.", ".blocks.0.block.").replace(".blocks.1.", ".blocks.1.block.")
        if name.endswith("qkv.weight"):
            a, b = (torch.randn(*shape, generator=generator) for shape in ((rank, whole.shape[1]), (len(whole), rank)))
            module = theirs.removesuffix(".weight")
            film |= {f"{module}.lora_A.default.weight": a, f"{module}.lora_B.default.weight": b}
            film[f"{module}.base_layer.weight"] = whole + 1
            expected[name] = whole + 1 + 16 / 20 * (b @ a)
        else:
            film[theirs.replace("qkv.bias", "qkv.base_layer.bias")] = expected[name] = whole + 1
        tensors[name] = torch.zeros_like(whole)
    for tower in ("featurizer", "fused_featurizer"):
        for block in range(2):
            for layer in ("scale", "shift"):
                for leaf, shape in (("weight", (16, hidden)), ("bias", (16,))):
                    name = f"vision_backbone.{tower}.blocks.{block}.{layer}.{leaf}"
                    film[name] = expected[name] = torch.randn(*shape, generator=generator)
    torch.save(film, folder / "vision_backbone--150000_checkpoint.pt")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    state = rlrc.load(folder, spec=SPEC).model.state_dict()
    found = {name: tensor for name, tensor in state.items() if name.startswith("vision_backbone.")}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)
    del film[name]
    torch.save(film, folder / "vision_backbone--150000_checkpoint.pt")
    with pytest.raises(UserError, match=r"vision_backbone--150000_checkpoint.pt: 1 tensors are missing.*shift.bias"):
        outline(folder, spec=SPEC)


SPECS = {
    None: "the files of this OpenVLA-OFT policy do not say how long its chunks are.*libero, aloha",
    "liberty": "spec 'liberty': 'liberty' is no preset; give libero",
    "chunk=3": "spec 'chunk=3': missing key 'cameras'",
    "cameras=front": "missing key 'chunk'",
    "bridge": "spec 'bridge': missing key 'cameras'",
    "chunk=3,chunk=4,cameras=front": "'chunk=4' is no word=value, or it is there twice",
    "chunk=0,cameras=front": "'chunk': .*greater than or equal to 1",
    "chunk=many,cameras=front": "'chunk': .*valid integer",
    "chunk=3,cameras=front+front": "'cameras': a camera is named twice",
    "chunk=3,cameras=front wrist": "'cameras.0'",
    "chunk=3,cameras=front,colour=red": "unknown key 'colour'",
    "chunk=3,cameras=front,head=l3": "'head'",
    "chunk=3,cameras=front+wrist": "the policy reads a state of 5 numbers, and spec says state=0",
    "libero": "the policy reads a state of 5 numbers, and spec says state=8",
    "chunk=3,cameras=front,state=5,action=6": "actions have 7 numbers, and spec says action=6",
    "chunk=3,cameras=front,state=5,head=tokens": "this is a head of kind l1, and spec says head=tokens",
}


@pytest.mark.parametrize("spec", SPECS)
def test_bad_specs(shared_folder: Path, spec: str | None) -> None:
    with pytest.raises(UserError, match=SPECS[spec]) as raised:
        outline(shared_folder, spec=spec)
    assert "\n" not in str(raised.value)


def test_presets_are_those_of_the_published_code() -> None:
    shapes = {name: read_spec(f"{name},cameras=front").words for name in PRESETS}
    assert {name: (words.chunk, words.action, words.state) for name, words in shapes.items()} == {
        "libero": (8, 7, 8),
        "aloha": (25, 14, 14),
        "bridge": (5, 7, 7),
    }
    assert {name for name, words in shapes.items() if words.normalisation == "bounds"} == {"aloha"}
    libero = read_spec("libero")
    assert (len(libero.action), len(libero.state)) == (7, 8)
    assert libero.action[6].convention == "1 opens, 0 closes"


def test_a_saved_policy_needs_no_spec_and_refuses_another(tmp_path: Path) -> None:
    make(CASES["oft-l1"]).save(tmp_path / "saved")
    outline(tmp_path / "saved", spec=SPEC)
    with pytest.raises(UserError, match=r"spec says chunk 4, and config.json 3; leave spec out"):
        outline(tmp_path / "saved", spec=SPEC.replace("3", "4"))
    torch.save({"module.fc1.weight": torch.zeros(2, 2)}, tmp_path / "saved" / "proprio_projector--1_checkpoint.pt")
    with pytest.raises(UserError, match="holds everything in safetensors files; move this file away"):
        outline(tmp_path / "saved")


HEAD, PROJECTOR = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite a state dict with one thing changed."""

    def rewrite(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        replaced = change(state)
        torch.save(state if replaced is None else replaced, path)

    return rewrite


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def compress(path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/rlrc-was-here"),)


def drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "cut off": (HEAD, cut_off, "damaged or cut off"),
    "empty": (HEAD, lambda path: path.write_bytes(b""), "damaged or cut off"),
    "git-lfs": (HEAD, lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer"),
    "compressed": (HEAD, compress, "the file is compressed"),
    "plain pickle": (HEAD, lambda path: path.write_bytes(pickle.dumps({})), "damaged or cut off, or no file of"),
    "evil": (HEAD, lambda path: torch.save({"a": Evil()}, path), "holds more than plain tensors, and is not loaded"),
    "list": (HEAD, changed(lambda state: list(state.values())), "a dictionary of tensors is needed, not list"),
    "nothing": (HEAD, changed(lambda state: {}), "a dictionary of tensors is needed"),
    "integers": (HEAD, changed(lambda state: {"model.x": torch.ones(2, dtype=torch.long)}), "'model.x' is no plain"),
    "text": (HEAD, changed(lambda state: {**state, "model.x": "x"}), "'model.x' is no plain tensor"),
    "huge view": (HEAD, changed(lambda state: {**state, "x": torch.ones(1).expand(10**9)}), "'x' is no plain tensor"),
    "other names": (HEAD, changed(lambda state: {"x.y": torch.ones(2)}), "this is no action head"),
    "lacks one": (HEAD, changed(drop("module.model.fc1.bias")), "1 tensors are missing.*'action_head.fc1.bias'"),
    "lacks fc2": (HEAD, changed(drop("module.model.fc2.weight")), "no action head; it has no matrix 'fc2.weight'"),
    "one too many": (
        HEAD,
        changed(lambda s: {**s, "module.model.x": torch.ones(2)}),
        "unexpected tensor 'action_head.x'",
    ),
    "wrong shape": (
        HEAD,
        changed(lambda state: {**state, "module.model.fc1.weight": torch.ones(3, 3)}),
        r"'action_head.fc1.weight' has shape \(3, 3\) in the weights and \(40, 280\)",
    ),
    "no projector": (PROJECTOR, Path.unlink, "spec says state=5, and there is no file proprio_projector"),
    "no head": (HEAD, Path.unlink, "there is no file action_head--.*add head=tokens"),
    "other projector": (PROJECTOR, changed(lambda s: {"x": torch.ones(2)}), "this is no projector of a state"),
    "two heads": (HEAD, lambda path: shutil.copy(path, path.parent / "action_head--5_checkpoint.pt"), "keep the one"),
    "no statistics": (HEAD, lambda path: (path.parent / "dataset_statistics.json").unlink(), "json is missing"),
    "noise": (
        HEAD,
        lambda path: shutil.copy(path, path.parent / "noisy_action_projector--1_checkpoint.pt"),
        "noisy_action_projector.* lies here, and the head is none of diffusion",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_side_files(folder: Path, kind: str) -> None:
    """One line, before a weight is read."""
    name, spoil, message = FILES[kind]
    spoil(folder / name)
    with pytest.raises(UserError, match=message) as raised:
        outline(folder, spec=SPEC)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    assert not Path("/tmp/rlrc-was-here").exists()


def test_nan_in_a_side_file(folder: Path) -> None:
    changed(lambda state: {**state, "module.model.fc1.bias": torch.full((40,), torch.nan)})(folder / HEAD)
    with pytest.raises(UserError, match=r"action_head--150000_checkpoint.pt: 'action_head.fc1.bias' holds NaN"):
        rlrc.load(folder, spec=SPEC)


def test_a_folder_without_side_files_is_openvla_unless_a_spec_is_given(folder: Path) -> None:
    for file in folder.glob("*.pt"):
        file.unlink()
    assert outline(folder).spec.family == "openvla"
    policy = outline(folder, spec="chunk=5,cameras=front,head=tokens")
    assert (policy.spec.family, policy.spec.horizon, len(policy.spec.action)) == ("openvla-oft", 5, 7)


@torch.no_grad()
def test_bounds_normalise_by_least_and_largest_values(folder: Path) -> None:
    policies = [rlrc.load(folder, spec=SPEC + more) for more in ("", ",normalisation=bounds")]
    actions = np.full((1, 7), 0.5)
    np.testing.assert_allclose(policies[0].to_physical(actions)[0, :6], 0.75 * 2.5 - 1, atol=1e-6)
    np.testing.assert_allclose(policies[1].to_physical(actions)[0, :6], 0.75 * 4 - 2, atol=1e-6)
    assert policies[0].to_physical(actions)[0, 6] == policies[1].to_physical(actions)[0, 6] == 0.5
    physical = np.float32([[0.1, -0.9, 1.4, 0.3, 0.2, 0.7, 1.0]])
    for policy in policies:
        np.testing.assert_allclose(policy.to_physical(policy.to_normalised(physical)), physical, atol=1e-6)


def test_several_statistics_are_chosen_among_when_the_policy_acts(folder: Path) -> None:
    """Without a choice the policy loads, as one without a state does, so that it can be changed."""
    (folder / "dataset_statistics.json").write_text(json.dumps({"one": STATISTICS["toy"], "two": STATISTICS["toy"]}))
    policy = rlrc.load(folder, spec=SPEC)
    with pytest.raises(UserError, match="choose an unnorm_key: the checkpoint holds statistics for one, two"):
        policy.act(look(policy))
    chosen = rlrc.load(folder, unnorm_key="two", spec=SPEC)
    assert chosen.act(look(chosen)).shape == (3, 3, 7)


def test_bytes_on_disk_count_side_files(folder: Path) -> None:
    stored = stored_bytes(folder)
    assert stored[HEAD] == (folder / HEAD).stat().st_size
    assert sum(stored.values()) > stored[HEAD] + stored[PROJECTOR]
