"""Actions as CUDA graphs, without a GPU: what is recorded, and what an action does on the way.

Where a recorder stands in for CUDA's, it keeps the Python function and calls it again, so that everything around a
graph is tried. What a GPU would do is tried on PyTorch's device "meta", whose tensors have shapes and no numbers: a
read-back from there fails, and operations can be counted.
"""

import collections
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_policies import CASES, Case, look, make
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlrc.configs.train import Shape, TowerShape
from rlrc.packed import cuda
from rlrc.policies import graphs
from rlrc.policies.graphs import MOST_GRAPHS, Graphs
from rlrc.policies.openvla.tiny import new_policy
from rlrc.policies.parts.decoding import Decoding
from rlrc.policies.parts.fused_decoding import FusedDecoding
from rlrc.policies.stored import StoredPolicy
from rlrc.quantize import linear_names, quantize_linears


class Again:
    """Stands in for CUDA's recorder: work is done again when it is replayed."""

    def __init__(self, model: Any = None) -> None:
        self.recorded: list[Callable[[], None]] = []
        self.replays = 0

    def __call__(self, work: Callable[[], None]) -> Any:
        self.recorded.append(work)
        work()
        again = self

        class Recording:
            def replay(self) -> None:
                again.replays += 1
                work()

        return Recording()


@pytest.fixture
def again() -> Again:
    return Again()


def double(tensors: Any) -> tuple[torch.Tensor]:
    return (2 * tensors["x"],)


def test_a_shape_is_recorded_when_it_comes_for_the_second_time(again: Again) -> None:
    runs = Graphs(nn.Linear(2, 2), again)
    results = [runs.run(double, "", {"x": torch.full((3,), float(n))})[0] for n in range(4)]
    assert [result.tolist() for result in results] == [[2.0 * n] * 3 for n in range(4)]  # and none is written over
    assert (len(again.recorded), again.replays) == (1, 3)
    runs.run(double, "", {"x": torch.zeros(4)})
    runs.run(double, "other", {"x": torch.zeros(3)})
    assert (len(again.recorded), again.replays) == (1, 3)


def test_a_weight_that_moved_is_noticed(again: Again) -> None:
    model = nn.Linear(2, 2)
    runs = Graphs(model, again)
    for _ in range(3):
        runs.run(double, "", {"x": torch.zeros(3)})
    with torch.no_grad():
        model.weight.add_(1)
    runs.run(double, "", {"x": torch.zeros(3)})
    assert (len(again.recorded), again.replays) == (1, 3)  # changed in place, the graph reads the new numbers
    model.double()
    for _ in range(2):
        runs.run(double, "", {"x": torch.zeros(3)})
    assert (len(again.recorded), again.replays) == (2, 4)


def test_only_the_last_graphs_are_kept(again: Again) -> None:
    runs = Graphs(nn.Linear(2, 2), again)
    for size in [*range(1, MOST_GRAPHS + 2), 1]:
        for _ in range(2):
            runs.run(double, "", {"x": torch.zeros(size)})
    assert len(again.recorded) == MOST_GRAPHS + 2


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@torch.no_grad()
def test_recorded_actions_are_those_of_the_policy(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """All families, prompts of a graph's length and shorter ones, with noise of each row's own."""
    recorders: list[Again] = []
    monkeypatch.setattr(graphs, "CudaRecorder", lambda model: recorders.append(Again()) or recorders[-1])
    policy = make(case)

    def generators(seed: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed + row) for row in range(3)]

    def samples() -> list[Any]:
        given = [policy.prepare(look(policy)), policy.encode(policy.prepare(look(policy)))]
        return [policy.sample(inputs, case.sampler, generators(seed)) for seed in range(3) for inputs in given]

    expected = samples()
    monkeypatch.setattr(StoredPolicy, "records", property(lambda policy: True))
    found = samples()
    assert sum(recorder.replays for recorder in recorders) == 4 and len(recorders[-1].recorded) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.actions, other.actions, atol=1e-5, rtol=1e-5)
        assert (one.logprobs is None) == (other.logprobs is None)


@pytest.mark.parametrize("name", ["openvla", "openvla-oft"])
def test_processors_record_nothing(name: str) -> None:
    policy = make(next(case for case in CASES.values() if case.family == name))
    assert not policy.records


VIEWS = {"view", "_unsafe_view", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze", "select", "slice"}
VIEWS |= {"split", "split_with_sizes", "alias", "detach", "as_strided", "unbind", "unfold", "_reshape_alias"}
MEMORY = {"empty", "new_empty", "empty_like", "promote_types"}


class Kernels(TorchDispatchMode):
    """Counts the operations that would be kernels on a GPU, and notes tensors that are not on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.elsewhere: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self.elsewhere.append(f"{name} of {tuple(value.shape)}")
        if name not in VIEWS | MEMORY:
            self.counts[name] += 1
        return result


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@torch.no_grad()
def test_an_action_never_waits_for_the_gpu(case: Case, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read back, and nothing comes from the processor's memory, between inputs and outputs."""
    monkeypatch.setattr(StoredPolicy, "records", property(lambda policy: True))
    monkeypatch.setattr(graphs, "CudaRecorder", Again)
    policy, drawn = make(case), []
    inputs = policy.prepare(look(policy, 1))
    inputs = inputs.padded(inputs.input_ids.shape[1] + 3) if padded else inputs

    def do(action: Any, inputs: Any, numbers: torch.Tensor | None, key: Any) -> Any:
        drawn.append(action)
        there = None if numbers is None else numbers.to("meta")
        seen = inputs.to("meta")
        policy.model.to("meta")
        with Kernels() as kernels:
            outputs = action(seen, there)
        assert not kernels.elsewhere
        return tuple(torch.zeros(output.shape, dtype=output.dtype) for output in outputs)

    monkeypatch.setattr(policy, "do", do)
    policy.sample(inputs, case.sampler, torch.Generator().manual_seed(0))
    assert len(drawn) == 1


@contextmanager
def counted_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """Triton's kernels and PyTorch's attention count as one each; the former do nothing."""
    launches: collections.Counter[str] = collections.Counter()

    def launch(kernel: Any, *_: Any, **__: Any) -> None:
        launches[kernel.fn.__name__] += 1

    def attend(queries: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        launches["attention"] += 1
        return torch.empty_like(queries)

    with monkeypatch.context() as patch:
        patch.setattr("triton.runtime.jit.JITFunction.run", launch)
        patch.setattr(F, "scaled_dot_product_attention", attend)
        patch.setattr(cuda, "missing", lambda device: None)
        yield launches


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("packing", ["bfloat16", "4 bits"])
@torch.no_grad()
def test_kernels_of_a_decoded_token(packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer takes 13 kernels, 10 where it is packed; through modules it takes 40 and more. The last token's
    difference between decoders of five and of four layers is one layer's."""
    found: dict[str, dict[int, int]] = {}
    for layers in (4, 5):
        tower = TowerShape(hidden_size=16, num_attention_heads=2, intermediate_size=32, stem_channels=(4, 8))
        shape = Shape(
            patch_size=32, towers=(tower, tower), hidden_size=40, num_hidden_layers=layers, intermediate_size=40
        )
        policy = new_policy(shape, ["put carrot on plate"], None)
        model = policy.model.to(torch.bfloat16)
        if packing == "4 bits":
            quantize_linears(model, linear_names(policy, ["decoder"]), 4, 32)
        inputs = policy.prepare(policy.observation(look(policy, 1).images, ["put carrot on plate"])).to("meta")
        model.to("meta")
        for kind in (FusedDecoding, Decoding):
            with counted_launches(monkeypatch) as launches:
                embeddings, mask, positions = model.sequence(inputs)
                decoding = kind(model.language_model.model, mask, positions, embeddings.shape[1] + 1)
                decoding.advance(embeddings)
                launches.clear()
                with Kernels() as kernels:
                    decoding.advance(embeddings[:, :1])
            found.setdefault(kind.__name__, {})[layers] = sum(launches.values()) + sum(kernels.counts.values())
    a_layer = {name: counts[5] - counts[4] for name, counts in found.items()}
    assert a_layer["FusedDecoding"] == (10 if packing == "4 bits" else 13)
    assert a_layer["Decoding"] >= 35
