"""Batches made ahead of the step that needs them, by processes of their own.

A batch is a function of (source, seed, split, step), so any process may make any of them, and what a run computes does not depend on how
many do. With 0 workers the process that trains makes them itself, while the device computes the step before: enough where a step takes
longer than its batch (numbers drawn by numpy, texts read from a file). A story among text costs about a millisecond a row, which a GPU does
not wait for.
"""

import collections
import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from armt_jax.tasks.base import Batch, BatchSource

_PROGRAM = "import sys; sys.path[:] = {path!r}; from armt_jax.tasks.workers import work; work()"
# Asked of every worker ahead of time: it makes the second while the first is on its way.
_AHEAD = 2


class WorkerDied(RuntimeError):
    """A process that makes batches is gone."""


class BatchMaker:
    """Makes the batches of a run. To be closed.

    workers: processes; 0: none, batches are made when asked for. The host holds about one finished batch a worker (in a validation up to
        `_AHEAD` more, which training had asked for).
    """

    def __init__(self, workers: int = 0):
        self._workers = [_Worker() for _ in range(workers)]
        self._turn = itertools.cycle(self._workers)

    def batches(
        self, source: BatchSource, *, seed: int, split: str, batch_size: int, rows: slice | None, steps: Iterable[int]
    ) -> Iterator[Batch]:
        """`source.batch` of these steps, in their order. What it raises is raised here, at that step.

        Raises:
            WorkerDied: one of the processes is gone.
        """
        calls = ((source, (seed, step, batch_size, split, rows)) for step in steps)
        if not self._workers:
            yield from (source.batch(*arguments) for source, arguments in calls)
            return
        asked = (next(self._turn).ask(call) for call in calls)
        under_way = collections.deque(itertools.islice(asked, _AHEAD * len(self._workers)))
        while under_way:
            batch = under_way.popleft().get()
            under_way.extend(itertools.islice(asked, 1))
            yield batch

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


IN_PROCESS = BatchMaker()


class _Worker:
    """A process that makes one batch after the other. It ends where its input does: with the process that started it, however that ends."""

    def __init__(self):
        with _signals_held():
            command = [sys.executable, "-c", _PROGRAM.format(path=sys.path)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._asked: collections.deque[_Asked] = collections.deque()

    def ask(self, call: tuple[BatchSource, tuple]) -> "_Asked":
        try:
            pickle.dump(call, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        self._asked.append(_Asked(self))
        return self._asked[-1]

    def receive(self) -> None:
        """The next answer, to whoever asked: answers come in the order of the questions."""
        try:
            answer = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._death() from None
        self._asked.popleft().answer = answer

    def _death(self) -> WorkerDied:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerDied(
            f"a process that makes batches {how}. Where its own message does not say why, the host most likely ran out of memory: lower "
            "train.data_workers"
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # of what was still to be sent
            self._process.stdin.close()
        self._process.stdout.close()


class _Asked:
    """A batch that was asked for."""

    def __init__(self, worker: _Worker):
        self._worker, self.answer = worker, None

    def get(self) -> Batch:
        while self.answer is None:
            self._worker.receive()
        batch, error = self.answer
        if error is not None:
            raise error
        return batch


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A process started within never takes these signals. They are for the process that trains, which saves first, also where all processes
    of a job are sent them (Ctrl-C, a cluster's end of job)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work() -> None:
    """The worker's side: answers until there are no more questions."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever is printed would be taken for an answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            answers.write(_answer(pickle.load(questions)))
            answers.flush()
    os._exit(0)  # not through the buffers, whose reader may be gone


def _answer(call: tuple[BatchSource, tuple]) -> bytes:
    source, arguments = call
    try:
        return pickle.dumps((source.batch(*arguments), None), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # raised where the batch is asked for
        error.add_note("in a process that makes batches:\n" + "".join(traceback.format_exception(error)))
        return _pickled_error(error)


def _pickled_error(error: Any) -> bytes:
    try:
        return pickle.dumps((None, error))
    except Exception:  # an exception may hold anything
        return pickle.dumps((None, RuntimeError("".join(traceback.format_exception(error)))))
