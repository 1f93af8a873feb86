"""Python code in a process of its own, which has seen nothing of the test, without the seconds of importing torch.

The process is forked from one that has imported what is below, neither rlrc nor transformers, and does nothing else.
"""

import contextlib
import io
import multiprocessing
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor

LONG_TO_IMPORT = ["numpy", "torch", "torch._dynamo", "torch.distributed.tensor", "torch.export", "scipy.optimize"]


def fresh(code: str, *arguments: object) -> str:
    """Run the code as `python -c CODE ARGUMENTS` would; returns what it prints, raises what it raises."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LONG_TO_IMPORT)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_run, code, [str(argument) for argument in arguments], dict(os.environ)).result()


def _run(code: str, arguments: list[str], environment: Mapping[str, str]) -> str:
    assert "transformers" not in sys.modules and "rlrc" not in sys.modules
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    return printed.getvalue()
