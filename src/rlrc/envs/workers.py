"""Who runs the worlds of a vector environment: this process, or worker processes that are replaced when they are lost.

A worker is lost when it dies (a simulator that crashes, a system that is short of memory) or one of its worlds gives no
answer within the time its spec allows. A new one takes its place and `WorkerLost` is raised: whoever wanted the
episodes starts them again, which is the same as before, since an episode id fixes everything (`repeat_if_lost`). What a
world raises in Python is another matter, a mistake or bad input that would only come back: it is handed on and nothing
is repeated.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count, pairwise
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol, TypeVar

import numpy as np

from rlrc.envs.world import Reading, Simulation, World, WorldSpec
from rlrc.errors import UserError
from rlrc.process import end_with_parent, shielded
from rlrc.progress import say

MAX_LOSSES = 3
"""Largest number of times that the same work is begun."""

SMALLEST_PICTURE = 16
"""Smallest side of a picture in px, and the side for which a world is made where no pictures are wanted."""

SIGN_OF_LIFE_S = 1.0
"""Seconds for which a worker gathers answers before it sends them; a message for each world costs as much as a fast
world."""

_THREADS = "OMP_NUM_THREADS"
"""Environment variable that PyTorch reads when it is imported."""

T = TypeVar("T")
Calls = dict[int, tuple[Any, ...]]
"""Number of an environment, counted from its worker's first one -> arguments."""
Place = tuple[tuple[str, ...], int, int, str | None]
"""Cameras, number of environments, size in px, and name of the shared memory that holds pictures."""


class WorkerLost(RuntimeError):
    """A worker process died or hung; another has taken its place, and its `environments` need a reset."""

    def __init__(self, environments: range, what: str) -> None:
        numbers = f"{environments.start} to {environments.stop - 1}"
        super().__init__(f"the worker process of environments {numbers} {what}")
        self.environments = environments


def repeat_if_lost(run: Callable[[], T]) -> T:
    """Return what `run()` returns; where a worker was lost meanwhile, say so and call it again.

    Raises:
        UserError: a worker was lost each of `MAX_LOSSES` times.
    """
    for losses in count(1):
        try:
            return run()
        except WorkerLost as loss:
            if losses == MAX_LOSSES:
                raise UserError(
                    f"{loss}; this happened {losses} times in the same episodes, so rlrc gives up"
                ) from loss
            say(f"{loss}; it was replaced, and its episodes are run again")
    raise AssertionError("unreachable")


class Images:
    """The pictures of all cameras and environments, in shared memory where other processes draw them."""

    def __init__(
        self, cameras: tuple[str, ...], num_envs: int, size: int, shared: bool, name: str | None = None
    ) -> None:
        self.cameras, self.num_envs, self.size = cameras, num_envs, size
        shape = (len(cameras), num_envs, size, size, 3)
        self._owner = shared and name is None
        with shielded(signal.SIGHUP):  # multiprocessing's own helper, which starts here, frees what others leave
            self._memory = SharedMemory(name, create=name is None, size=int(np.prod(shape))) if shared else None
        buffer = self._memory.buf if self._memory else None
        self.array: np.ndarray = np.ndarray(shape, np.uint8, buffer)
        """uint8 (C, N, S, S, 3)."""

    @property
    def name(self) -> str | None:
        return self._memory.name if self._memory else None

    @property
    def place(self) -> "Place":
        """Name under which another process finds them."""
        return self.cameras, self.num_envs, self.size, self.name

    def close(self) -> None:
        if self._memory is None:
            return
        del self.array
        self._memory.close()
        if self._owner:
            self._memory.unlink()
        self._memory = None


class Worker(Protocol):
    """Runs the environments `part` of the whole."""

    part: slice

    def send(self, method: str, calls: Calls) -> None: ...

    def receive(self) -> list[Reading] | Exception: ...

    def close(self) -> None: ...


class LocalWorker:
    """A worker in this process; each world is made when it is first called, so that what goes wrong is its answer."""

    def __init__(self, spec: WorldSpec, part: slice, images: Images | None) -> None:
        self.part = part
        self._spec, self._images = spec, images
        self._worlds: dict[int, World] = {}

    def send(self, method: str, calls: Calls) -> None:
        self._answers = list(self.run(method, calls))

    def receive(self) -> list[Reading] | Exception:
        return _all_or_failure(self._answers)

    def run(self, method: str, calls: Calls) -> Iterator[Reading | Exception]:
        """Reset or step the numbered worlds one after another, and draw each; the first exception ends it."""
        try:
            for index, arguments in calls.items():
                if index not in self._worlds:
                    self._worlds[index] = self._spec.factory(_picture_size(self._images))
                reading = _CALLS[method](self._worlds[index], *arguments)
                if self._images:
                    for pictures, camera in zip(self._images.array, self._images.cameras, strict=True):
                        pictures[self.part.start + index] = self._worlds[index].draw(camera)
                yield reading
        except Exception as error:
            yield _failure(error)

    def close(self) -> None:
        self._worlds = {}


class SimulationWorker:
    """A worker in this process whose environments are all in one simulation, and so start together."""

    def __init__(self, spec: WorldSpec, part: slice, images: Images | None) -> None:
        self.part = part
        self._spec, self._images = spec, images
        self._simulation: Simulation | None = None

    def send(self, method: str, calls: Calls) -> None:
        try:
            self._answer: list[Reading] | Exception = self._run(method, calls)
        except Exception as error:
            self._answer = _failure(error)

    def receive(self) -> list[Reading] | Exception:
        return self._answer

    def close(self) -> None:
        if self._simulation is not None:
            self._simulation.close()
        self._simulation = None

    def _run(self, method: str, calls: Calls) -> list[Reading]:
        count = self.part.stop - self.part.start
        if len(calls) < count:
            raise UserError(f"the environments of '{self._spec.name}' start and move together, all {count} of them")
        if self._simulation is None:
            assert self._spec.simulation is not None
            self._simulation = self._spec.simulation(_picture_size(self._images), count)
        arguments = [calls[n] for n in range(count)]
        if method == "step":
            if any(action is None or wait for action, wait in arguments):
                raise UserError(f"the environments of '{self._spec.name}' move together and cannot wait one by one")
            readings = self._simulation.step(np.stack([action for action, _ in arguments]))
        else:
            (split, variant, _), *_ = arguments
            readings = self._simulation.reset(split, variant, [id_ for _, _, id_ in arguments])
        if self._images:
            for pictures, camera in zip(self._images.array, self._images.cameras, strict=True):
                pictures[self.part] = self._simulation.draw(camera)
        return readings


class ProcessWorker:
    """A worker in a process of its own, spawned so that no GL context, thread or lock is inherited."""

    def __init__(self, spec: WorldSpec, part: slice, images: Images | None) -> None:
        self.part = part
        self._spec, self._images = spec, images
        self._start()

    def send(self, method: str, calls: Calls) -> None:
        self._awaited = len(calls)
        with suppress(OSError):  # of a worker that is dead, which `receive` tells
            self._pipe.send((method, calls))

    def receive(self) -> list[Reading] | Exception:
        try:
            return _all_or_failure(self._answers())
        except TimeoutError:
            what = f"gave no answer for {self._spec.answer_limit_s:g} s"
        except (EOFError, OSError):
            self._process.join(timeout=1)
            what = _ending(self._process.exitcode)
        self.close()
        self._start()
        return WorkerLost(range(self.part.start, self.part.stop), what)

    def _answers(self) -> Iterator[Reading | Exception]:
        while self._awaited:
            if not self._pipe.poll(self._spec.answer_limit_s):
                raise TimeoutError
            answers: list[Reading | Exception] = self._pipe.recv()
            self._awaited -= len(answers)
            yield from answers

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()  # A worker holds nothing worth saving, and may still be starting, or hang.
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._spec, self.part, None if self._images is None else self._images.place)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        with one_thread(), shielded(signal.SIGINT, signal.SIGHUP):
            self._process.start()
        theirs.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started within compute on one thread each: they are many, and more threads would fight for cores."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


def split(count: int, workers: int) -> list[slice]:
    """`count` environments in at most `workers` even parts (one part where there are no workers)."""
    bounds = np.linspace(0, count, min(max(workers, 1), count) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


def _serve(pipe: Connection, spec: WorldSpec, part: slice, pictures: Place | None) -> None:
    """The body of a worker process: answer calls until the other end hangs up."""
    end_with_parent()
    images = None
    if pictures is not None:
        cameras, num_envs, size, name = pictures
        images = Images(cameras, num_envs, size, shared=True, name=name)
    try:
        worker = LocalWorker(spec, part, images)
        while True:
            for answers in _gathered(worker.run(*pipe.recv())):
                pipe.send(answers)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        if images:
            images.close()


def _gathered(answers: Iterable[Reading | Exception]) -> Iterator[list[Reading | Exception]]:
    """All answers in one list where they come fast, in several where they are slow: each list is a sign of life."""
    gathered, since = [], time.monotonic()
    for answer in answers:
        gathered.append(answer)
        if time.monotonic() - since >= SIGN_OF_LIFE_S:
            yield gathered
            gathered, since = [], time.monotonic()
    if gathered:
        yield gathered


def _reset(world: World, split: str, variant: str, episode_id: int) -> Reading:
    return world.reset(split, variant, episode_id)


def _step(world: World, action: np.ndarray | None, wait: int) -> Reading:
    """Let a world run on for `wait` ticks, and then take an action, if there is one."""
    if action is None:
        return world.wait(wait)
    if wait:
        world.wait(wait)
    return world.step(action)


_CALLS: dict[str, Callable[..., Reading]] = {"reset": _reset, "step": _step}


def _all_or_failure(answers: Iterable[Reading | Exception]) -> list[Reading] | Exception:
    """All readings, or the first failure, after which no more is asked for."""
    readings = []
    for answer in answers:
        if isinstance(answer, Exception):
            return answer
        readings.append(answer)
    return readings


def _picture_size(images: Images | None) -> int:
    """Size of the pictures that a world is made for, in px."""
    return images.size if images else SMALLEST_PICTURE


def _failure(error: Exception) -> Exception:
    """Return a worker's answer where a world raised `error`: the user's mistake as it is, any other with its trace."""
    return error if isinstance(error, UserError) else RuntimeError(f"an environment failed:\n{traceback.format_exc()}")


def _ending(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"died (exit code {exit_code})"
    hint = ", perhaps for want of memory" if exit_code == -signal.SIGKILL else ""
    return f"died ({signal.Signals(-exit_code).name}{hint})"
