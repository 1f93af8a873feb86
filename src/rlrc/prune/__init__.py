"""Prune: make the layers smaller, or sparser, by one of the study's methods, on calibration data where it needs them.

    rlrc prune --policy checkpoints/tabletop-base --dataset runs/demos/dataset --ratio 0.9
    rlrc prune --policy openvla-7b --dataset DEMOS --ratio 0.9 --protect 0 -1 --samples 16
    rlrc prune --policy openvla-7b method:depth --method.keep 0 31
    rlrc prune --policy openvla-7b --ratio 0.75 method:tokens --method.by pool
    rlrc prune --policy openvla-7b --dataset DEMOS method:tower --method.keep 1

The layers are those of the language model, and of the action expert where there is one. They are never in memory as a
whole: a method measures them block by block (`stream`), then each is read once more, changed and written. A pruned
policy needs recovery: `rlrc sft`, then `rlrc rl`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import torch

from rlrc.configs.prune import PruneConfig
from rlrc.data import Demonstrations
from rlrc.data.statistics import adopt_statistics, policy_key
from rlrc.errors import UserError
from rlrc.files import sha256_file
from rlrc.packed.layers import count_parameters
from rlrc.policies.checkpoint import outline
from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.policies.groups import DECODER, Group
from rlrc.policies.locate import LINEAGE_FILE
from rlrc.policies.parts.tokens import widened
from rlrc.policies.values import Tensors
from rlrc.progress import say, track
from rlrc.prune.allocate import Rounding
from rlrc.prune.calibrate import Frames, text_calibration
from rlrc.prune.child import child_of
from rlrc.prune.groups import Chain, chain_of, coupled_groups, single_matrices, span
from rlrc.prune.measured import Measured, SavedSums, read_measured, write_measured
from rlrc.prune.method import Plan, PruningMethod, Source, Target
from rlrc.prune.methods import method_of
from rlrc.prune.stream import StoredBlocks
from rlrc.prune.vision import vision_calibration

check = Demonstrations.check


def prune(config: PruneConfig, out: Path) -> dict[str, Any]:
    """Measure, plan, and write `out/checkpoint` and `out/measured.safetensors`.

    Returns:
        `metrics`: exact parameter counts before and after, of the whole policy and of the decoder's linear layers, and
        (unless it is a dry run) the share of zeros in these; `layers`: how many heads (key-value heads, where queries
        share them) and channels each of them has. Which ones stayed is written to the lineage.

    Raises:
        UserError: a layer would keep nothing, the target is out of reach, a layer is named that is not there, the
            policy is quantized, a weight or the loss is not finite, or the dataset holds too few frames.
    """
    task = Task.of(config, out)
    task.method.check(task.groups, task.num_layers, task.target)
    say(task.method.announcement(task.groups, task.target))
    measured = task.measure()
    plan = task.method.plan(measured, task.groups, task.num_layers, task.target)
    child = child_of(task.parent, task.chain, plan)
    left = chain_of(child, config.stacks)
    result: dict[str, Any] = {"metrics": task.counts(child, left), "layers": _layer_sizes(left)}
    _tell(task.chain, left, plan, result["metrics"])
    if not config.dry_run:
        stage = {"verb": "prune", "config": config.model_dump(mode="json"), **task.provenance, **result}
        stage["kept"] = plan.kept
        tensors = task.tensors(plan, child, result["metrics"])
        child.save(out / "checkpoint", stage, tensors=tensors)
        write_measured(out / "measured.safetensors", measured, task.key)
        task.saved.forget()
    return result


READING = {"cameras", "action_key", "state_key", "dataset_episodes", "statistics", "unnorm_key", "spec"}
"""Options that decide what is read of the dataset and of the policy, and how."""


@dataclass(frozen=True)
class Task:
    """One pruning: the policy as an outline, its files, and all that `measure` depends on."""

    config: PruneConfig
    parent: Policy
    files: Tensors
    chain: Chain
    """The layers that pass by: those of language, or those of vision."""
    groups: Sequence[Group]
    target: Target
    demonstrations: Demonstrations | None
    key: dict[str, Any]
    """Everything that the measurements depend on."""
    saved: SavedSums

    @classmethod
    def of(cls, config: PruneConfig, out: Path) -> Self:
        parent = outline(config.policy, policy_key(config), config.full_head, config.spec)
        files = parent.weights
        assert files is not None
        try:
            chain = chain_of(parent, config.stacks)
            groups = (coupled_groups if config.method.couples_units else single_matrices)(parent, config.stacks)
            towers = parent.joined_towers() if config.method.takes_tower else None
        except UserError as error:
            raise UserError(f"{config.policy}: {error}") from error
        protected = _protected(config.protect, len(chain))
        rounding = Rounding(config.round_to, config.round_direction)
        tokens = parent.model.config.tokens_of_picture
        target = Target(config.ratio, config.overall, protected, rounding, tokens, towers)
        demonstrations = None if config.dataset is None else Demonstrations.of(config)
        if demonstrations is not None:
            adopt_statistics(parent, demonstrations, config)
        key = {
            "policy": identity(parent, files),
            "method": config.method.model_dump(mode="json"),
            "target": None if config.method.target_free else [config.ratio, sorted(protected)],
            "dataset": None if demonstrations is None else demonstrations.sha256,
            "reading": config.model_dump(mode="json", include=READING, exclude_defaults=True) or None,
            "token_ids": None if config.token_ids is None else sha256_file(config.token_ids),
            "samples": config.samples,
            "seed": config.seed,
        } | ({} if config.stacks is None else {"stacks": sorted(config.stacks)})
        saved = SavedSums(None if config.dry_run else out / "calibration", key)
        return cls(config, parent, files, chain, groups, target, demonstrations, key, saved)

    @property
    def method(self) -> PruningMethod[Any]:
        return method_of(self.config.method)

    @property
    def num_layers(self) -> int:
        return len(self.chain)

    @property
    def provenance(self) -> dict[str, Any]:
        return {f"{name}_sha256": self.key[name] for name in ("dataset", "token_ids") if self.key[name] is not None}

    @property
    def blocks(self) -> StoredBlocks:
        return StoredBlocks(self.files, self.chain)

    def measure(self) -> Measured:
        """Return what the method reads off the layers, or what an earlier run has read."""
        if self.config.measured is not None:
            return read_measured(self.config.measured, self.key)
        with (device := resolve_device(self.config.device)):  # where new tensors are made
            measured = self._measure_on(device)
        for name, tensor in measured.items():
            if not tensor.isfinite().all():
                raise UserError(
                    f"what {self.config.method.kind} measured for '{name}' is NaN or infinite; the checkpoint or the "
                    "samples are broken, or float16 is too narrow for them"
                )
        return {name: tensor.cpu() for name, tensor in measured.items()}

    def _measure_on(self, device: torch.device) -> Measured:
        blocks = StoredBlocks(self.files, self.chain, device)
        source = Source(blocks, self.groups, self.target, self.config.seed, self.saved)
        if self.config.method.needs_calibration:
            source = self._with_calibration(source)
        return self.method.measure(source)

    def _with_calibration(self, source: Source) -> Source:
        assert self.parent.source is not None
        around = outline(self.parent.source, full_head=self.config.full_head, spec=self.config.spec)
        if self.parent.unnorm_key is not None:
            around.adopt((self.parent.norm_stats or {})[self.parent.unnorm_key], self.parent.unnorm_key)
        if self.config.token_ids is not None:
            return replace(source, calibration=text_calibration(around, self.config.token_ids))
        assert self.demonstrations is not None
        frames = Frames.draw(around, self.demonstrations, self.config.samples, self.config.seed)
        if self.chain.is_vision:
            language = StoredBlocks(self.files, chain_of(self.parent), frames.actions.device)
            beside = Source(language, (), self.target, calibration=frames.calibration())
            return replace(source, calibration=vision_calibration(frames, beside))
        if not self.config.method.reads_pictures:
            frames.let_vision_go()
        return source.with_frames(frames)

    def tensors(self, plan: Plan, child: Policy, metrics: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
        """The child's tensors by name, each read, changed and let go in its turn; counts the layers' `zeros`."""
        left = chain_of(child, self.config.stacks).places
        prefixes, wanted = {stack.name: f"{stack.prefix}." for stack in self.chain.stacks}, child.model.state_dict()
        known = self.parent.model.state_dict()
        around = [name for name in self.files if name in known and not name.startswith(tuple(prefixes.values()))]
        yield from self._around(around, plan, child)
        blocks, zeros = self.blocks, 0
        for old, place in track(list(zip(plan.layers, left, strict=True)), "write"):
            block = blocks[old]
            plan.edit(old, block)
            for stack, number in place.items():
                for leaf, tensor in block.layer(stack).state_dict().items():
                    name = f"{prefixes[stack]}{number}.{leaf}"
                    if name in wanted:  # the last layer of some stacks has less than others
                        zeros += tensor.numel() - int(tensor.count_nonzero()) if tensor.ndim == 2 else 0
                        yield name, tensor
        metrics["zeros"] = zeros / metrics["linear_parameters"]

    def _around(self, names: Sequence[str], plan: Plan, child: Policy) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of these names, none of which is in a layer, as the child has them."""
        read = self.parent.stored
        if plan.tower is not None:
            yield from plan.tower.tensors(names, read)
            return
        side_by_side = child.model.config.patches_of_token // self.parent.model.config.patches_of_token
        for name in names:
            is_reader = name == f"{child.feature_reader}.weight"
            yield name, widened(read(name), side_by_side) if is_reader and side_by_side > 1 else read(name)

    def counts(self, child: Policy, left: Chain) -> dict[str, Any]:
        """Exact counts before and after, JSON-able; `left` is the child's part of the chain."""
        before, after = _linear_parameters(self.chain), _linear_parameters(left)
        return {
            "parameters_before": count_parameters(self.parent.model),
            "parameters": count_parameters(child.model),
            "linear_parameters_before": before,
            "linear_parameters": after,
            "removed": 1 - after / before,
        }


def identity(policy: Policy, files: Tensors) -> dict[str, str]:
    """Hashes of the files that say what the policy computes: its weights, and all JSON beside them."""
    assert policy.source is not None
    folders = dict.fromkeys([policy.source, *(path.parent for path in files.paths)])
    beside = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.name != LINEAGE_FILE]
    hashes = {path.name: sha256_file(path) for path in files.paths}
    return hashes | {f"{number}: {path.name}": sha256_file(path) for number, path in enumerate(beside)}


def _protected(indices: Sequence[int], layers: int) -> frozenset[int]:
    for index in indices:
        if not -layers <= index < layers:
            raise UserError(f"protect: there is no layer {index}, they are numbered 0 to {layers - 1}")
    protected = frozenset(index % layers for index in indices)
    if len(protected) == layers:
        raise UserError(f"protect names all {layers} layers: nothing is left to prune")
    return protected


def _linear_parameters(chain: Chain) -> int:
    """Number of parameters of the layers' matrices, without biases."""
    layers = (layer for stack in chain.stacks for layer in stack.layers)
    return sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)


def _layer_sizes(chain: Chain) -> list[dict[str, Any]]:
    sizes: dict[tuple[str, int], dict[str, Any]] = {}
    for group in chain.groups:
        of_layer = {"layer": group.layer} | ({} if group.stack == DECODER else {"stack": group.stack})
        sizes.setdefault((group.stack, group.layer), of_layer)[group.kind] = group.units
    return list(sizes.values())


def _tell(parent: Chain, child: Chain, plan: Plan, metrics: dict[str, Any]) -> None:
    new_number = {old: new for new, old in enumerate(plan.layers)}
    after = {(group.stack, group.layer, group.kind): group for group in child.groups}
    changes: dict[tuple[str, int], list[str]] = {}
    for old in parent.groups:
        new = after.get((old.stack, new_number.get(old.layer, -1), old.kind))
        if new is not None and old.units != new.units:
            changes.setdefault((old.stack, old.layer), []).append(f"{old.noun} {old.units} -> {new.units}")
    for (stack, change), run in groupby(changes.items(), key=lambda item: (item[0][0], item[1])):
        say(f"{span([layer for (_, layer), _ in run], stack)}: {', '.join(change)}")
    if gone := sorted(set(range(len(parent))) - set(plan.layers)):
        say(f"layers that go: {', '.join(map(str, gone))}")
    if plan.tokens is not None:
        say(f"tokens of a picture: {plan.kept['tokens_before']} -> {plan.tokens.count}")
    for part, name in (("policy", "parameters"), ("linear layers", "linear_parameters")):
        say(f"{part}: {metrics[f'{name}_before']:,} -> {metrics[name]:,} parameters")
