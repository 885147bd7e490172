"""Batches made ahead of the step that needs them, by processes of their own.

A batch is a function of (source, seed, split, step), so any process may make any of them, and what a run computes does not depend on how
many do. With 0 workers the process that trains makes them itself, while the device computes the step before: enough where a step takes
longer than its batch (numbers drawn by numpy, texts read from a file). A story among text costs about a millisecond a row, which a GPU does
not wait for.
"""

import collections
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection

from armt_jax.tasks.base import Batch, BatchSource


class BatchMaker:
    """Makes the batches of a run. To be closed.

    workers: processes; 0: none, batches are made when asked for. Every worker has one batch in hand and one finished, so the host holds
        2 * workers batches.
    """

    def __init__(self, workers: int = 0):
        # Not forked: JAX's threads would not survive it.
        context = multiprocessing.get_context("spawn")
        self._ahead = 2 * workers
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) if workers else None

    def batches(
        self, source: BatchSource, *, seed: int, split: str, batch_size: int, rows: slice | None, steps: Iterable[int]
    ) -> Iterator[Batch]:
        """`source.batch` of these steps, in their order. What it raises is raised here, at that step."""
        if self._pool is None:
            yield from (source.batch(seed, step, batch_size, split, rows) for step in steps)
            return
        asked = (self._pool.submit(_batch, source, seed, step, batch_size, split, rows) for step in steps)
        under_way: collections.deque[Future] = collections.deque(itertools.islice(asked, self._ahead))
        try:
            while under_way:
                batch = under_way.popleft().result()
                under_way.extend(itertools.islice(asked, 1))
                yield batch
        finally:
            for future in under_way:
                future.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


IN_PROCESS = BatchMaker()


def _batch(source: BatchSource, seed: int, step: int, batch_size: int, split: str, rows: slice | None) -> Batch:
    return source.batch(seed, step, batch_size, split, rows)


def _start_worker() -> None:
    """A signal to the whole group (Ctrl-C, a job's end) is for the process that trains: it saves first. When it dies, so does a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
