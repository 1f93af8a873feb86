"""Microseconds of one product in each of the ways in which packed weights can be multiplied, beside bf16.

    python benchmarks/on_gpu/products.py --out products.json

The rule in `rlrc.packed.cuda.products` chooses by the number of rows; here each way is forced, so that its limits can
be set by what is measured. Calls are recorded as one CUDA graph, as an action is, with as many weights in turn as do
not fit into the GPU's cache together.
"""

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import options
import torch
import torch.nn.functional as F
from torch import nn

from rlrc.bench import machine
from rlrc.files import write_json
from rlrc.packed import cuda
from rlrc.packed.cuda import products
from rlrc.packed.layers import QuantizedLinear
from rlrc.packed.layout import PackedWeight

SHAPES = ((4096, 4096), (4096, 11008), (1024, 4096), (4096, 512))
"""(inputs, outputs) of OpenVLA-7B's decoder and vision, and of a pruned decoder's queries."""
ROWS = (1, 4, 8, 16, 32, 64, 128, 280, 600)
WAYS = {"vector": {"VECTOR_ROWS": 8}, "matrix": {"VECTOR_ROWS": 0}, "unpacked": {"VECTOR_ROWS": 0, "MATRIX_ROWS": 0}}
"""The limits of rows that force each way."""
MOST_ROWS = {"vector": 8, "matrix": products.MATRIX_ROWS, "unpacked": max(ROWS)}
"""Most rows for which a way is measured: its tiles hold no more, or it is far behind."""
CACHE_BYTES = 2**28
"""Bytes of the weights that take turns: more than any GPU's cache."""
REPLAYS = 7


def main() -> None:
    chosen = options.parse(__doc__)
    if chosen.device == "cpu":
        raise SystemExit("products.py measures kernels of a GPU; there is none here")
    rows: list[dict[str, Any]] = []
    for inputs, outputs in SHAPES:
        dense = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16, device=chosen.device)
        layers = {bits: QuantizedLinear.from_linear(dense, bits, 32) for bits in (4, 8)}
        for count in ROWS:
            x = torch.randn(count, inputs, dtype=torch.bfloat16, device=chosen.device)
            row: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "rows": count}
            row["bf16"] = microseconds(dense.weight, lambda weight, x=x: F.linear(x, weight))
            for bits, layer in layers.items():
                for way, limits in WAYS.items():
                    if count > MOST_ROWS[way]:
                        continue
                    with patch.multiple(products, MATRIX_OUTPUTS=0, **limits):
                        row[f"{way}-{bits}bit"] = microseconds(
                            layer.packed_weight, lambda weight, x=x: cuda.linear(weight, x)
                        )
            rows.append(row)
            print({key: round(value, 1) for key, value in row.items()}, flush=True)
        write_json(chosen.out, {"machine": machine(), "rows": rows})


@torch.no_grad()
def microseconds(weight: torch.Tensor | PackedWeight, multiply: Callable[[Any], Any]) -> float:
    """The time of one product: the fastest of some replays of a graph in which copies of the weight take turns."""
    size = weight.nbytes if isinstance(weight, torch.Tensor) else weight.codes.nbytes
    copies = [copy_of(weight) for _ in range(math.ceil(CACHE_BYTES / size))]
    for one in copies[:2]:
        multiply(one)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in copies:
            multiply(one)
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * start.elapsed_time(end) / len(copies))
    return min(times)


def copy_of(weight: torch.Tensor | PackedWeight) -> Any:
    """The same weight at another place in memory."""
    if isinstance(weight, torch.Tensor):
        return weight.clone()
    codes, scales, zeros = (tensor.clone() for tensor in (weight.codes, weight.scales, weight.zeros))
    return weight._replace(codes=codes, scales=scales, zeros=zeros)


if __name__ == "__main__":
    main()
