"""Parts that supervised and reinforcement learning share: precision, trainable parameters, processes, exact resume.

A run that is killed and started again ends with the same bits as one that was not. So nothing random has a history:
every draw comes from a generator seeded by (seed, what it is for, step), and the learning rate is a function of the
step. What is left to store is the trainable parameters, the optimizer's moments and the step, in one safetensors file.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import gather, reduce
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from rlrc.configs.learner import LearnerConfig
from rlrc.errors import UserError
from rlrc.files import atomic_path
from rlrc.native.processor import multiplies_bfloat16
from rlrc.policies.contract import Policy
from rlrc.policies.device import resolve_device
from rlrc.progress import MetricsLog, bar, read_metrics, say
from rlrc.recover.optimizer import optimizers
from rlrc.recover.processes import processes_on
from rlrc.recover.straight_through import PackedLayers
from rlrc.recover.trainable import choose_trainable, linears, zeros_of

STATE_FILE = "state.safetensors"


class Learner:
    """A policy with its optimizer and its process group.

    Gradients are averaged over processes by one all-reduce of the flattened gradients instead of by wrapping the model
    for DDP: acting, critic warm-up and behaviour cloning each run other parts of the model, which DDP would have to
    be told of each time.
    """

    def __init__(
        self,
        policy: Policy,
        config: LearnerConfig,
        out: Path,
        extra_modules: dict[str, nn.Module] | None = None,
        learning_rates: dict[str, float] | None = None,
    ) -> None:
        """
        Args:
            extra_modules: modules outside the model to train beside it, by name.
            learning_rates: those of parameters whose names start with the key; the others have the config's.

        Raises:
            UserError: the policy is quantized and its zeros are to stay, or the device cannot be trained on.
        """
        self.policy = policy
        self.config = config
        self._processes, self.device = processes_on(resolve_device(config.device))
        self.precision = _precision_of(config, self.device, self.is_main)
        self._stored_dtype = policy.model.dtype
        if self._stored_dtype == torch.float16:
            policy.model.float()  # autocast's bf16 and float16 do not mix; float32 loses nothing
        if self.device.type == "cpu":
            # The backward pass of the fused CPU kernel takes several times as long as attention written out.
            policy.model.set_attn_implementation("eager")
        self._packed = PackedLayers(policy.model)
        if self._packed:
            if config.keep_zeros:
                raise UserError("keep_zeros: many weights of a quantized policy are rounded to zero; leave it out")
            policy.eager = True  # a CUDA graph would go on with the weights that it was recorded with
        self._lora = choose_trainable(policy, config)
        self._packed.settle(self._stored_dtype)
        modules = {"model": policy.model, **(extra_modules or {})}
        for module in modules.values():
            module.to(self.device)
        self.parameters = _trained_in_float32(modules)
        if self.precision == "fp32":
            policy.model.float()
        self._zeros = zeros_of(self.parameters, linears(policy)) if config.keep_zeros else {}
        self._sound = torch.ones((), dtype=torch.bool, device=self.device)
        scale_rates = self._packed.scale_rates(config.learning_rate)
        self._optimizers = optimizers(
            self.parameters,
            modules.values(),
            config.optimizer,
            config.learning_rate,
            config.weight_decay,
            (learning_rates or {}) | {f"model.{name}": rate for name, rate in scale_rates.items()},
        )
        self.out = out
        self._state_path = out / STATE_FILE
        self._saved_at = time.monotonic()

    @property
    def is_main(self) -> bool:
        """True if this process is the one that writes files."""
        return self._processes.is_main_process

    @property
    def rank(self) -> int:
        return self._processes.process_index

    @property
    def world_size(self) -> int:
        return self._processes.num_processes

    @property
    def trains_vision(self) -> bool:
        """True if the vision towers and the projector change."""
        model, parts = self.policy.model, self.policy.parts
        seeing = [model.get_submodule(parts[part]) for part in ("vision", "projector") if part in parts]
        return any(parameter.requires_grad for module in seeing for parameter in module.parameters())

    def generator(self, purpose: str, *key: int, device: str | None = None) -> torch.Generator:
        """A generator for one draw, each process its own; see `rng`. `device` defaults to the learner's."""
        seed = int(rng(self.config.seed, purpose, *key, self.rank).integers(2**63))
        return torch.Generator(device or self.device).manual_seed(seed)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Compute without gradients, and the weights of layers that stand for packed ones once for all the time.

        Where the policy records its actions as graphs, these weights are computed at each use: a graph would go on to
        read what was computed before the training since.
        """
        with self.autocast(), torch.no_grad(), nullcontext() if self.policy.records else parametrize.cached():
            yield

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over processes."""
        return reduce(value.detach(), "mean")

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, joined along the first axis."""
        return gather(tensor)

    def step(self, learning_rate_factor: float = 1.0) -> torch.Tensor:
        """One step of the optimizer on the gradients that are there; parameters without any stay untouched.

        Nothing is read back from the device, so a gradient that is infinite or NaN is noticed later, by
        `require_sound`.

        Returns:
            The norm of the gradient before it was scaled down.
        """
        trained = [parameter for parameter in self.parameters.values() if parameter.grad is not None]
        self._average([parameter.grad for parameter in trained if parameter.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(trained, self.config.max_grad_norm)
        self._sound &= norm.isfinite()
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * learning_rate_factor
            optimizer.step()
        self.zero_grad()
        with torch.no_grad():
            for name, zeros in self._zeros.items():
                self.parameters[name].masked_fill_(zeros, 0)
        return norm

    def require_sound(self) -> None:
        """Check that the gradients of all steps were finite.

        This waits for the device. So it is asked where metrics are read, which in supervised training is up to
        `LOG_EVERY` steps after the gradient that was not finite, and in reinforcement learning at the end of the
        iteration, and before anything is saved.

        Raises:
            UserError: a gradient was infinite or NaN.
        """
        if not self._sound:
            raise UserError("training diverged, because the gradient is not finite; lower the learning rate")

    def zero_grad(self) -> None:
        """Forget the gradients that are there."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def _average(self, gradients: Sequence[torch.Tensor]) -> None:
        """Make every gradient its mean over processes."""
        if self.world_size == 1:
            return
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def resume(self) -> int:
        """Take up the last training state, if there is one, and return the steps that were done.

        Raises:
            UserError: the state is not one of this model, config and number of processes.
        """
        if not self._state_path.exists():
            return 0
        try:
            with safe_open(self._state_path, framework="pt") as file:
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
                facts = file.metadata() or {}
                step, processes = int(facts["step"]), int(facts.get("processes", self.world_size))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{self._state_path}: this training state cannot be read ({error}); delete it, and training starts anew"
            ) from error
        if processes != self.world_size:
            raise UserError(
                f"{self._state_path}: this training began in {processes} processes and cannot go on in "
                f"{self.world_size}; start as many, choose another folder, or delete the file"
            )
        names = {name.partition("/")[2] for name in stored if name.startswith("parameter/")}
        owners = {name: self.parameters.get(name.partition("/")[2]) for name in stored}
        fits = all(
            owner is not None and stored[name].shape in (owner.shape, torch.Size([])) for name, owner in owners.items()
        )
        if names != set(self.parameters) or not fits:
            raise UserError(f"{self._state_path} belongs to another training run; choose another folder, or delete it")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(stored.pop(f"parameter/{name}"))
        for key, value in stored.items():  # a parameter that never had a gradient has no moments
            moment, _, name = key.partition("/")
            self._moments(self.parameters[name])[moment] = value.to(self.device)
        return step

    def save(self, step: int) -> None:
        """Write the training state after `step` steps, in place of the one before.

        Raises:
            UserError: training has diverged.
        """
        self.require_sound()
        self._saved_at = time.monotonic()
        if not self.is_main:
            return
        tensors = {f"parameter/{name}": parameter.data for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self._moments(parameter).items()}
        with atomic_path(self._state_path) as aside:
            save_file(tensors, aside, metadata={"step": str(step), "processes": str(self.world_size)})

    def _moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """Return what the optimizer remembers of a parameter, by name."""
        return next(
            optimizer.state[parameter]
            for optimizer in self._optimizers
            if any(parameter is member for group in optimizer.param_groups for member in group["params"])
        )

    def save_if_due(self, step: int) -> None:
        """Write the training state if the last one is older than `save_every` seconds."""
        if time.monotonic() - self._saved_at >= self.config.save_every:
            self.save(step)

    @contextmanager
    def logbook(self, verb: str, total: int, done: int) -> Iterator["Record"]:
        """A bar and the metrics in `out`, from step `done` on; yields record(step, values, note), for steps in order.

        Only the main process shows and writes anything.
        """
        if not self.is_main:
            yield lambda step, values, note: None
            return
        with bar(verb, total, start=done) as progress, MetricsLog(self.out) as log:
            log.truncate_after(done)
            last = done

            def record(step: int, values: dict[str, float], note: str) -> None:
                nonlocal last
                log.log(step, **values)
                progress.advance(step - last, note)
                last = step

            yield record

    def finish(self, verb: str, **facts: Any) -> dict[str, Any]:
        """Merge the adapters, pack what was packed, and write `out/checkpoint` in the precision that was loaded.

        The training state is dropped.

        Args:
            facts: what the checkpoint's lineage tells of this stage beside its config and metrics.

        Returns:
            The last row of metrics; on processes other than the main one, nothing.

        Raises:
            UserError: training has diverged.
        """
        self.require_sound()
        if self._lora is not None:
            self._lora.merge_and_unload()
        self._packed.restore()
        last_row: dict[str, Any] = {}
        if self.is_main:
            last_row = read_metrics(self.out / "metrics.jsonl")[-1]
            stage = {
                "verb": verb,
                "config": self.config.model_dump(mode="json"),
                "metrics": last_row,
                "precision": self.precision,
                **facts,
            }
            self.policy.save(self.out / "checkpoint", stage, dtype=self._stored_dtype)
            self._state_path.unlink(missing_ok=True)
        self._processes.wait_for_everyone()
        return last_row


Record = Callable[[int, dict[str, float], str], None]


class Means:
    """Running means of named scalars, kept on the device until they are taken."""

    def __init__(self) -> None:
        self._values: dict[str, list[torch.Tensor]] = defaultdict(list)

    def add(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self._values[name].append(value.detach().float())

    def take(self, learner: Learner) -> dict[str, float]:
        """The means over what was added, and over processes; starts anew.

        Raises:
            UserError: training has diverged.
        """
        learner.require_sound()
        names, values = list(self._values), list(self._values.values())
        self._values = defaultdict(list)
        if not names:
            return {}
        means = learner.mean(torch.stack([torch.stack(value).mean() for value in values]))
        return dict(zip(names, means.tolist(), strict=True))


def rng(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """The generator of one draw: independent for every purpose and key, whatever was drawn before."""
    return np.random.default_rng([seed, *purpose.encode(), *key])


def learning_rate_factor(step: int, steps: int, warmup_steps: int, schedule: Literal["constant", "cosine"]) -> float:
    """Return the factor of the peak learning rate at `step` (counted from 0): linear warm-up, then constant or a cosine
    that reaches 0 at `steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def _precision_of(config: LearnerConfig, device: torch.device, tells: bool) -> Literal["fp32", "bf16"]:
    """The precision to compute in; `tells` is whether this process says what slows training down."""
    native = multiplies_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported(False)
    if config.precision == "auto":
        return "bf16" if native else "fp32"
    if config.precision == "bf16" and tells and not native:
        say("nothing here multiplies bf16 natively, so --precision fp32 trains up to ten times as fast")
    return config.precision


def _trained_in_float32(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by the names of their modules and their own, turned into float32."""
    parameters = {
        f"{prefix}.{name}": parameter
        for prefix, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
    return parameters
