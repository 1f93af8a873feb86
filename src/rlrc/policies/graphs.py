"""Actions on an NVIDIA GPU as CUDA graphs: the work of an action is recorded once and then launched as a whole.

One action of a 7B policy is about ten thousand kernels in PyTorch, and launching one takes the processor 5 to 8 us, so
that an action takes 50 to 80 ms whatever the GPU can do. A graph launches in 2 us a kernel or less.

What is recorded is what happens for inputs of certain shapes. A shape is recorded when it is seen for the second time:
recording takes as long as a few actions. Inputs are copied to where the graph reads them, and outputs from where it
writes them, so nothing of the caller's has to stay where it is. All graphs of a policy share their memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

Tensors = Mapping[str, torch.Tensor]
Action = Callable[[Tensors], tuple[torch.Tensor, ...]]
"""The work of an action. It reads named tensors and nothing else that changes, and never waits for the GPU."""

MOST_GRAPHS = 16
"""Shapes that are kept; the one that was used longest ago goes first."""

LOCK = threading.Lock()
"""Held while inputs and outputs of a graph are in use, since threads may share a policy."""


class Recording(Protocol):
    """Work that has been recorded."""

    def replay(self) -> None:
        """Do it again, with what now lies in its inputs."""


class Recorder(Protocol):
    """Records work."""

    def __call__(self, work: Callable[[], None]) -> Recording: ...


class Recorded(NamedTuple):
    """The graph of an action for inputs of one shape."""

    recording: Recording
    inputs: dict[str, torch.Tensor]
    outputs: list[torch.Tensor]


class Graphs:
    """The graphs of one policy.

    Args:
        model: the policy's model. Graphs read its weights where they were when they were recorded; they are recorded
            anew when a weight has moved. Layers must not be exchanged.
        recorder: records work; None is CUDA's.
    """

    def __init__(self, model: nn.Module, recorder: Recorder | None = None) -> None:
        self._model = model
        self._record = recorder or CudaRecorder(model)
        self._weights: list[torch.Tensor] = []
        self._places: list[int] = []
        self._graphs: OrderedDict[Hashable, Recorded | None] = OrderedDict()

    def run(self, action: Action, key: Hashable, inputs: Tensors) -> tuple[torch.Tensor, ...]:
        """Do what `action` does, by its graph where there is one.

        Args:
            key: what `action` depends on besides the shapes and dtypes of its inputs.
        """
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        with LOCK, torch.no_grad():
            if [weight.data_ptr() for weight in self._weights] != self._places:
                self._graphs.clear()
                self._weights, self._places = [], []
            if (key, shapes) not in self._graphs:
                self._graphs[key, shapes] = None
                if len(self._graphs) > MOST_GRAPHS:
                    self._graphs.popitem(last=False)
                return action(inputs)
            known = self._graphs[key, shapes] or self._recorded(action, inputs)
            self._graphs[key, shapes] = known
            self._graphs.move_to_end((key, shapes))
            for name, place in known.inputs.items():
                place.copy_(inputs[name])
            known.recording.replay()
            return tuple(output.clone() for output in known.outputs)

    def _recorded(self, action: Action, inputs: Tensors) -> Recorded:
        self._weights = [*self._model.parameters(), *self._model.buffers()]
        self._places = [weight.data_ptr() for weight in self._weights]
        places = {name: tensor.clone() for name, tensor in inputs.items()}
        outputs: list[torch.Tensor] = []

        def work() -> None:
            outputs[:] = action(places)

        return Recorded(self._record(work), places, outputs)


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._pool: Any = None

    def __call__(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Do the work once beside the graph, so that what is prepared at its first time is not recorded; then record
        it."""
        with torch.cuda.device(next(self._model.parameters()).device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                work()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as those that prepare the next pictures, may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
            return graph
