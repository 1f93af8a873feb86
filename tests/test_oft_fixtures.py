"""Our OpenVLA-OFT against tensors that the original code computed (tolerances from the fixtures' meta.json)."""

import copy
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from published_openvla import tower_shapes, whole_vocabulary
from safetensors.torch import load_file

import rlrc
from rlrc.policies.oft.diffusion import add_noise, alphas_cumprod, timesteps
from rlrc.policies.oft.forms import Noise
from rlrc.policies.oft.heads import timestep_embedding
from rlrc.policies.prismatic.inputs import PrismaticInputs
from rlrc.policies.prismatic.processor import crop_center
from rlrc.policies.statistics import action_statistics, normalise
from rlrc.policies.values import Observation

SETS = sorted({path.parent.name for root in FIXTURES for path in root.glob("openvla_oft*/meta.json")})
KEY = "libero_spatial_no_noops"
SPACE, PAD = 29871, 32000
WIDE = {"atol": 1e-3, "rtol": 1e-3}
NARROW = {"atol": 1e-4, "rtol": 1e-4}
ACTIONS = {"atol": 5e-4, "rtol": 0}


@dataclass
class Set:
    """One set of fixtures, and policies that are read from copies of its folders."""

    folder: Path
    scratch: Path
    meta: dict[str, Any]
    cases: dict[str, torch.Tensor]
    _policies: dict[str, Any] = field(default_factory=dict)

    @property
    def chunk(self) -> int:
        return self.meta["config"]["chunk"]

    @property
    def numbers(self) -> int:
        return self.chunk * self.meta["config"]["action_dim"]

    def spec(self, cameras: int, state: bool, more: str = "") -> str:
        names = "+".join(("front", "wrist")[:cameras])
        width = self.meta["config"]["proprio_dim"] if state else 0
        return f"chunk={self.chunk},cameras={names},state={width}{more}"

    def policy(self, kind: str) -> Any:
        """The policy of a kind of cases, read by the loader from a folder as its authors publish it."""
        if kind not in self._policies:
            self._policies[kind] = getattr(self, f"_{kind}")()
        policy = self._policies[kind]
        policy.model.zero_grad()
        return policy

    def load(self, folder: Path, spec: str, key: str | None = KEY, **options: Any) -> Any:
        return rlrc.load(folder, key, dtype=torch.float32, spec=spec, **options)

    def copy(self, name: str, without: tuple[str, ...] = (), and_of: str | None = None) -> Path:
        """A copy of the checkpoint without some side files and with those of another folder instead."""
        scratch = self.scratch / name
        shutil.copytree(self.folder / "checkpoint", scratch, copy_function=shutil.copyfile)
        scratch.chmod(0o755)
        config = json.loads((scratch / "config.json").read_text())
        config["vision_towers"] = tower_shapes(self.meta)
        (scratch / "config.json").write_text(json.dumps(config))
        whole_vocabulary(self.folder, scratch)
        for kind in without:
            next(scratch.glob(f"{kind}--*")).unlink()
        for file in sorted((self.folder / and_of).iterdir()) if and_of else ():
            if file.name != "cases.safetensors":
                shutil.copyfile(file, scratch / file.name)
        return scratch

    def _l1(self) -> Any:
        return self.load(self.copy("l1"), self.spec(2, state=True))

    def _single(self) -> Any:
        return self.load(self.copy("single", ("proprio_projector",)), self.spec(1, state=False))

    def _discrete1(self) -> Any:
        return self._tokens("discrete1", cameras=1)

    def _discrete2(self) -> Any:
        return self._tokens("discrete2", cameras=2)

    def _whole_head(self) -> Any:
        return self._tokens("whole_head", cameras=2, full_head=True)

    def _tokens(self, name: str, cameras: int, **options: Any) -> Any:
        folder = self.copy(name, ("proprio_projector", "action_head"))
        return self.load(folder, self.spec(cameras, False, ",head=tokens"), **options)

    def _film(self) -> Any:
        return self.load(self.copy("film", and_of="film"), self.spec(2, state=True))

    def _film_single(self) -> Any:
        return self.load(self.copy("film_single", ("proprio_projector",), "film"), self.spec(1, state=False))

    def _diffusion(self) -> Any:
        steps = self.meta["files"]["diffusion/"]["scheduler"]["num_train_timesteps"]
        folder = self.copy("diffusion", ("action_head",), "diffusion")
        return self.load(folder, self.spec(2, True, f",steps={steps}"))

    def _aloha(self) -> Any:
        folder = self.copy("aloha", ("action_head", "proprio_projector"), "aloha")
        return self.load(folder, "aloha", key=None)

    def inputs(self, index: int, cameras: int = 2, state: bool = False) -> PrismaticInputs:
        """What the original code reads of observation `index`."""
        ids = torch.cat([self.cases[f"obs{index}.input_ids_no_space"], torch.tensor([[SPACE]])], dim=1)
        pixels = self.cases[f"obs{index}.expected.pixel_values"][:, : 6 * cameras]
        normalised = self.cases[f"obs{index}.expected.proprio_normalised"][None].float() if state else None
        return PrismaticInputs(ids, torch.ones_like(ids), pixels, state=normalised)

    def train_inputs(self, state: bool = True) -> PrismaticInputs:
        """The training batch, which the fixture pads on the right and we pad behind BOS."""
        ids = self.cases["train.input_ids"]
        prompts = [row[: row.tolist().index(SPACE) + 1] for row in ids]
        rows = [
            PrismaticInputs(
                prompt[None],
                torch.ones_like(prompt[None]),
                self.cases[f"obs{number}.expected.pixel_values"],
                state=self.cases["train.proprio"][number : number + 1] if state else None,
            )
            for number, prompt in enumerate(prompts)
        ]
        return PrismaticInputs.concatenate(rows)

    def check_gradients(self, policy: Any, expected: dict[str, torch.Tensor], prefix: str) -> int:
        """Compare all gradients that a fixture holds; returns how many there are."""
        gradients = {name: parameter.grad for name, parameter in policy.model.named_parameters()}
        names = [name for name in expected if name.startswith(f"{prefix}.expected.grad.")]
        for name in names:
            here = name.removeprefix(f"{prefix}.expected.grad.").removeprefix("vla.")
            for theirs in ("action_head.model.", "action_head.noise_predictor.mlp_resnet."):
                here = here.replace(theirs, "action_head.")
            if here == "embed_rows":
                found = gradients["language_model.model.embed_tokens.weight"][expected[f"{prefix}.embed_rows"]]
            elif here == "lm_head_action_rows":
                found = gradients["language_model.lm_head.weight"][policy.model.config.action_ids]
            else:
                found = gradients[here]
            difference, scale = (found - expected[name]).abs().max(), expected[name].abs().max()
            assert difference <= 1e-3 * scale, f"{name}: {difference:g} where the largest is {scale:g}"
        return len(names)


@pytest.fixture(scope="module", params=SETS)
def fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Set:
    folder = next(root / request.param for root in reversed(FIXTURES) if (root / request.param).exists())
    meta, cases = json.loads((folder / "meta.json").read_text()), load_file(folder / "cases.safetensors")
    for index in range(3):
        if f"obs{index}.expected.pixel_values" not in cases:
            cases[f"obs{index}.expected.pixel_values"] = normalised_pictures(folder, cases, index)
    return Set(folder, tmp_path_factory.mktemp("oft"), meta, cases)


def normalised_pictures(folder: Path, cases: dict[str, torch.Tensor], index: int) -> torch.Tensor:
    """The pixel values of an observation by their formula, which a small copy of the fixture leaves out."""
    towers = json.loads((folder / "checkpoint" / "preprocessor_config.json").read_text())["tvf_normalize_params"]
    pictures = [cases[f"obs{index}.expected.cropped_{name}"].permute(2, 0, 1) / 255 for name in ("full", "wrist")]
    channels = [
        (picture - torch.tensor(tower["mean"])[:, None, None]) / torch.tensor(tower["std"])[:, None, None]
        for picture in pictures
        for tower in towers
    ]
    return torch.cat(channels)[None]


@pytest.mark.parametrize("index", range(3))
def test_pictures_and_state(fixture: Set, index: int) -> None:
    policy, cases = fixture.policy("l1"), fixture.cases
    images = {
        camera: cases[f"obs{index}.expected.cropped_{name}"][None].numpy()
        for camera, name in (("front", "full"), ("wrist", "wrist"))
    }
    pixels = torch.cat([policy.processor.images(images[camera]) for camera in policy.spec.cameras], dim=1)
    torch.testing.assert_close(pixels, cases[f"obs{index}.expected.pixel_values"], atol=1e-5, rtol=0)
    state = policy.normalised_state(Observation({}, [""], cases[f"obs{index}.proprio"].numpy()[None]))
    expected = cases[f"obs{index}.expected.proprio_normalised"].float()
    np.testing.assert_allclose(state[0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(("index", "camera"), [(0, "full"), (0, "wrist"), (1, "full"), (1, "wrist")])
def test_crop(fixture: Set, index: int, camera: str) -> None:
    resized, cropped = (fixture.cases[f"obs{index}.expected.{stage}_{camera}"] for stage in ("resized", "cropped"))
    found = crop_center(resized.numpy()[None])[0].astype(int)
    assert np.abs(found - cropped.numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", ["l1", "single"])
@torch.no_grad()
def test_chunk_of_numbers(fixture: Set, kind: str, index: int, attention: str) -> None:
    policy, expected = fixture.policy(kind), fixture.cases
    model, cameras = policy.model, len(policy.spec.cameras)
    model.set_attn_implementation(attention)
    inputs, name = fixture.inputs(index, cameras, state=kind == "l1"), f"{kind}.{index}.expected"

    pixels = inputs.pixel_values.unflatten(1, (cameras, 6)).flatten(0, 1)
    features = model.vision_backbone(pixels).unflatten(0, (1, cameras)).flatten(1, 2)
    torch.testing.assert_close(features, expected[f"{name}.vision_features"], **NARROW)
    torch.testing.assert_close(model.project_images(inputs).embeddings, expected[f"{name}.projected"], **NARROW)
    embeddings, mask, positions = model.sequence(inputs)
    assert positions[0].tolist() == expected[f"{name}.position_ids"].tolist()
    assert mask[0].tolist() == expected[f"{name}.attention_mask_2d"].tolist()
    assert (embeddings[0] == 0).all(dim=1).tolist() == expected[f"{name}.zeroed"].tolist()
    if f"{name}.inputs_embeds" in expected:
        torch.testing.assert_close(embeddings, expected[f"{name}.inputs_embeds"], **NARROW)
        torch.testing.assert_close(layer_by_layer(policy, inputs), expected[f"{name}.hidden_states"], **WIDE)
    else:
        last = model.language_model.model.read_all(embeddings, mask, positions)
        torch.testing.assert_close(last, expected[f"{name}.last_hidden"], **WIDE)
    states = model.action_states((embeddings, mask, positions))
    torch.testing.assert_close(states, expected[f"{name}.actions_hidden_states"], **WIDE)
    actions = policy.sample(inputs).actions
    torch.testing.assert_close(actions[0], expected[f"{name}.normalised_actions"], **ACTIONS)
    check_physical(policy, actions, expected, name)
    model.set_attn_implementation("sdpa")


def layer_by_layer(policy: Any, inputs: PrismaticInputs) -> torch.Tensor:
    """What enters the decoder, what leaves each layer, and the final norm in place of the last, (layers + 1, T, h)."""
    seen: list[torch.Tensor] = []
    decoder = policy.model.language_model.model
    handles = [layer.register_forward_hook(lambda *call: seen.append(call[2])) for layer in decoder.layers]
    sequence = policy.model.sequence(inputs)
    last = decoder.read_all(*sequence)
    for handle in handles:
        handle.remove()
    return torch.cat([sequence[0], *seen[:-1], last])


def check_physical(policy: Any, actions: torch.Tensor, expected: dict[str, torch.Tensor], name: str) -> None:
    keys = [key.removeprefix(f"{name}.actions.") for key in expected if key.startswith(f"{name}.actions.")]
    assert keys
    before = policy.unnorm_key
    for key in keys:
        policy.unnorm_key = key
        np.testing.assert_allclose(
            policy.to_physical(actions[0].numpy()), expected[f"{name}.actions.{key}"].numpy(), atol=5e-4, rtol=0
        )
    policy.unnorm_key = before


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", ["discrete1", "discrete2"])
@torch.no_grad()
def test_chunk_of_tokens(fixture: Set, kind: str, index: int) -> None:
    policy, expected, name = fixture.policy(kind), fixture.cases, f"{kind}.{index}.expected"
    inputs = fixture.inputs(index, cameras=len(policy.spec.cameras))
    logits = policy.model(inputs.input_ids, pixel_values=inputs.pixel_values).logits[0]
    if f"{name}.action_logits_all_positions" in expected:
        torch.testing.assert_close(logits, expected[f"{name}.action_logits_all_positions"], atol=8e-3, rtol=0)
    if f"{name}.action_logits" in expected:
        read = policy.model.before_places(logits[None])[0]
        torch.testing.assert_close(read, expected[f"{name}.action_logits"], atol=8e-3, rtol=0)
    sample = policy.sample(inputs)
    assert sample.latent["tokens"].flatten().tolist() == expected[f"{name}.tokens"].tolist()
    np.testing.assert_allclose(sample.actions[0], expected[f"{name}.normalised_actions"], atol=1e-12)
    check_physical(policy, sample.actions, expected, name)


@torch.no_grad()
def test_padding_changes_nothing(fixture: Set) -> None:
    """The training batch, right-padded upstream and padded behind BOS here: equal wherever there is no padding."""
    policy, expected = fixture.policy("l1"), fixture.cases
    inputs = fixture.train_inputs()
    embeddings, mask, positions = policy.model.sequence(inputs)
    last = policy.model.language_model.model.read_all(embeddings, mask, positions)
    for row in range(2):
        there, length = mask[row].bool(), int(mask[row].sum())
        assert length == int(expected["train.expected.mask_2d"][row].sum())
        assert positions[row][there].tolist() == list(range(length))
        torch.testing.assert_close(last[row][there], expected["train.expected.last_hidden"][row, :length], **WIDE)
    states = policy.model.action_states((embeddings, mask, positions))
    torch.testing.assert_close(states, expected["train.expected.actions_hidden_states"], **WIDE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients(fixture: Set, attention: str) -> None:
    policy, expected = fixture.policy("l1"), fixture.cases
    policy.model.set_attn_implementation(attention)
    predicted, target = policy.predict(fixture.train_inputs(), expected["train.actions"])
    torch.testing.assert_close(predicted, expected["train.expected.predicted_actions"], **ACTIONS)
    losses = policy.loss(fixture.train_inputs(), expected["train.actions"])
    torch.testing.assert_close(losses["loss"], expected["train.expected.loss"], atol=1e-4, rtol=0)
    for name, part in (("curr_action", slice(0, 1)), ("next_actions", slice(1, None))):
        mean = policy.errors(predicted, target)[:, part].mean()
        torch.testing.assert_close(mean, expected[f"train.expected.{name}_l1_loss"], atol=1e-4, rtol=0)
    losses["loss"].backward()
    assert fixture.check_gradients(policy, expected, "train") > 20
    policy.model.set_attn_implementation("sdpa")


def test_loss_and_gradients_of_tokens(fixture: Set) -> None:
    """The original loss also counts the stop token and the logits of all other tokens, so it is put together here."""
    if (fixture.folder / "vocabulary.safetensors").exists():
        pytest.skip("a small copy of the fixture has no whole head, and the original loss reads all of it")
    policy, expected = fixture.policy("whole_head"), fixture.cases
    inputs, numbers = fixture.train_inputs(state=False), fixture.numbers
    logits = policy.model(inputs.input_ids, inputs.attention_mask, inputs.pixel_values).logits[:, -numbers - 2 : -1]
    target = policy.teacher_forced(inputs, expected["train.actions"]).target.flatten(1) + policy.model.first_action_id
    labels = torch.cat([target, torch.full((2, 1), policy.model.config.stop_token_id)], dim=1)
    wanted = expected["train.labels"]
    assert labels.flatten().tolist() == wanted[wanted != -100].tolist()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected["train_discrete.expected.loss"], atol=1e-4, rtol=0)
    loss.backward()
    assert fixture.check_gradients(policy, expected, "train_discrete") == 6
    predicted, bins = policy.predict(inputs, expected["train.actions"])
    vitals = policy.vitals(predicted, bins, policy.best_actions(torch.nn.functional.one_hot(bins, 256).float()))
    for name, part in (("curr_action", slice(0, 1)), ("next_actions", slice(1, None))):
        for kind, vital in (("accuracy", "token_accuracy"), ("l1_loss", "l1_error")):
            mean = vitals[vital][:, part].mean().float()
            torch.testing.assert_close(mean, expected[f"train_discrete.expected.{name}_{kind}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("index", range(3))
@torch.no_grad()
def test_film(fixture: Set, index: int) -> None:
    policy, name = fixture.policy("film"), f"film.{index}.expected"
    expected, inputs = load_file(fixture.folder / "film" / "cases.safetensors"), fixture.inputs(index, state=True)
    mean = policy.model.mean_text(inputs.input_ids, inputs.attention_mask)
    torch.testing.assert_close(mean[0], expected[f"{name}.language_mean"], **NARROW)
    torch.testing.assert_close(features(policy, inputs, mean), expected[f"{name}.vision_features"], **NARROW)
    actions = policy.sample(inputs).actions
    torch.testing.assert_close(actions[0], expected[f"{name}.normalised_actions"], **ACTIONS)
    check_physical(policy, actions, expected, name)


@torch.no_grad()
def test_film_of_one_picture_and_of_a_padded_batch(fixture: Set) -> None:
    expected = load_file(fixture.folder / "film" / "cases.safetensors")
    policy, inputs = fixture.policy("film_single"), fixture.inputs(0, cameras=1)
    mean = policy.model.mean_text(inputs.input_ids, inputs.attention_mask)
    torch.testing.assert_close(
        features(policy, inputs, mean), expected["film_single.0.expected.vision_features"], **NARROW
    )
    # The original takes the mean over padding as well, so that a row depends on its neighbours; we leave it out.
    policy, batch = fixture.policy("film"), fixture.train_inputs()
    everywhere = torch.ones_like(batch.attention_mask)
    theirs = policy.model.mean_text(torch.where(batch.attention_mask.bool(), batch.input_ids, PAD), everywhere)
    torch.testing.assert_close(
        features(policy, batch, theirs), expected["film_train.expected.vision_features"], **NARROW
    )


def features(policy: Any, inputs: PrismaticInputs, condition: torch.Tensor) -> torch.Tensor:
    cameras = len(policy.spec.cameras)
    pixels = inputs.pixel_values.unflatten(1, (cameras, 6)).flatten(0, 1)
    found = policy.model.vision_backbone(pixels, condition.repeat_interleave(cameras, dim=0))
    return found.unflatten(0, (-1, cameras)).flatten(1, 2)


@torch.no_grad()
def test_denoising(fixture: Set) -> None:
    policy, expected = fixture.policy("diffusion"), load_file(fixture.folder / "diffusion" / "cases.safetensors")
    form, inputs = policy.form, fixture.inputs(0, state=True)
    assert isinstance(form, Noise)
    training, steps = policy.model.config.diffusion_steps, len(expected["diffusion.timesteps"])
    torch.testing.assert_close(alphas_cumprod(training), expected["diffusion.alphas_cumprod"], atol=1e-6, rtol=0)
    times = expected["diffusion.timesteps"]
    assert timesteps(training, steps) == times.tolist()
    hidden = policy.model.config.text_config.hidden_size
    torch.testing.assert_close(
        timestep_embedding(times, hidden), expected["diffusion.expected.timestep_embeddings"], atol=1e-5, rtol=0
    )
    before = [expected["diffusion.noise"], *expected["diffusion.expected.samples"][:-1, None]]
    for number, chunk in enumerate(before):
        noise = form.noise_in(inputs, chunk, int(times[number]))
        torch.testing.assert_close(noise[0], expected["diffusion.expected.noise_pred"][number], atol=1e-3, rtol=0)
    sequence = policy.model.sequence(inputs, before[-1], times[-1:])
    torch.testing.assert_close(sequence[0], expected["diffusion.expected.last_inputs_embeds"], **NARROW)
    policy.denoise_in(steps)
    assert form.passes == policy.stages(inputs)["prefill"].passes == steps
    actions = form.denoise(inputs, expected["diffusion.noise"])
    torch.testing.assert_close(actions[0], expected["diffusion.expected.samples"][-1], atol=1e-3, rtol=0)
    check_physical(policy, actions, expected, "diffusion.expected")


def test_loss_and_gradients_of_denoising(fixture: Set) -> None:
    policy, expected = fixture.policy("diffusion"), load_file(fixture.folder / "diffusion" / "cases.safetensors")
    actions, noise = fixture.cases["train.actions"], expected["diffusion_train.noise"]
    times = expected["diffusion_train.timesteps"]
    noisy = add_noise(actions, noise, times, policy.model.config.diffusion_steps)
    torch.testing.assert_close(noisy, expected["diffusion_train.expected.noisy_actions"], atol=1e-5, rtol=0)
    sequence, target = policy.form.with_noise(fixture.train_inputs(), actions, noise, times)
    predicted = policy.form.read(policy.model.action_states(sequence))
    torch.testing.assert_close(predicted, expected["diffusion_train.expected.noise_pred"], atol=1e-3, rtol=0)
    loss = policy.errors(predicted, target).mean()
    torch.testing.assert_close(loss, expected["diffusion_train.expected.loss"], atol=1e-4, rtol=0)
    loss.backward()
    assert fixture.check_gradients(policy, expected, "diffusion_train") == 3


@torch.no_grad()
def test_aloha(fixture: Set) -> None:
    policy, expected = fixture.policy("aloha"), load_file(fixture.folder / "aloha" / "cases.safetensors")
    first, second = fixture.inputs(0), fixture.inputs(1)
    state = policy.normalised_state(Observation({}, [""], expected["aloha.proprio"].numpy()[None]))
    np.testing.assert_allclose(state[0], expected["aloha.expected.proprio_normalised"], atol=1e-6)
    pixels = torch.cat([first.pixel_values, second.pixel_values[:, :6]], dim=1)
    inputs = PrismaticInputs(first.input_ids, first.attention_mask, pixels, state=torch.from_numpy(state))
    states = policy.model.action_states(policy.model.sequence(inputs))
    torch.testing.assert_close(states, expected["aloha.expected.actions_hidden_states"], **WIDE)
    actions = policy.sample(inputs).actions
    torch.testing.assert_close(actions[0], expected["aloha.expected.normalised_actions"], **ACTIONS)
    check_physical(policy, actions, expected, "aloha.expected")


def test_normalisation(fixture: Set) -> None:
    policy, cases = fixture.policy("l1"), fixture.cases
    raw = {"action": cases["norm.actions"].numpy(), "proprio": cases["norm.proprio"].numpy()}
    labels = policy.to_normalised(raw["action"])
    np.testing.assert_allclose(labels, cases["norm.expected.actions_q99"], atol=1e-6)
    assert labels.dtype == np.float32
    state = policy.normalised_state(Observation({}, [""] * 24, raw["proprio"]))
    np.testing.assert_allclose(state, cases["norm.expected.proprio_q99"], atol=1e-6)
    known = policy.norm_stats
    for entry, name in (("action", "actions"), ("proprio", "proprio")):
        bounds = action_statistics(known, KEY, kind="bounds", entry=entry)
        np.testing.assert_allclose(normalise(raw[entry], bounds), cases[f"norm.expected.{name}_bounds"], atol=1e-6)
    policy.model.config.norm_stats = copy.deepcopy(known)
    for entry, dim in (("action", 4), ("proprio", 3)):
        for value in ("min", "max", "q01", "q99"):
            policy.model.config.norm_stats[KEY][entry][value][dim] = 0.25
    labels = policy.to_normalised(raw["action"])
    np.testing.assert_allclose(labels, cases["norm.expected.actions_q99_constdim"], atol=1e-6)
    state = policy.normalised_state(Observation({}, [""] * 24, raw["proprio"]))
    policy.model.config.norm_stats = known
    np.testing.assert_allclose(state, cases["norm.expected.proprio_eval_constdim"], atol=1e-6)
    # The original trains on another state than it evaluates on where a number never moves: see `normalised_state`.
    theirs = cases["norm.expected.proprio_q99_constdim"].numpy()
    np.testing.assert_allclose(np.delete(state, 3, axis=1), np.delete(theirs, 3, axis=1), atol=1e-6)
