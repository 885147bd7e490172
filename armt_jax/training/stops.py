"""How a run ends before its last step: SIGTERM, and a loss that is not finite."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from armt_jax.parallel.processes import is_joined
from armt_jax.telemetry.failures import EXIT_PREEMPTED


class Preempted(SystemExit):
    def __init__(self):
        super().__init__(EXIT_PREEMPTED)


class Interrupted(Exception):
    """SIGTERM in the middle of a validation."""


class NonFiniteLoss(FloatingPointError):
    """Training diverged. Nothing was saved after the last good step."""


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of killing the process. (Only the main thread can install it.)

    In a job of several processes JAX takes the signal, so that all stop at one step: `processes.reached_stop`.
    """
    asked = threading.Event()
    if is_joined() or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
