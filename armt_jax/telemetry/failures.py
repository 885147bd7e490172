"""How a command ends when something is wrong that its user can mend."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from logging import LogRecord, getLogger

from absl import logging

# Exit code after SIGTERM: the state was saved; start the same command again (EX_TEMPFAIL).
EXIT_PREEMPTED = 75


def one_line_errors(run: Callable, *kinds: type[Exception]) -> Callable:
    """`run(argv)` as an absl main: an error of these kinds, a ValueError or an OSError becomes one clear line and exit code 1.

    Other exceptions are bugs and keep their traceback; ARMT_JAX_TRACEBACK=1 shows it for all, and what Orbax's threads say of a failed
    save, each in a page of its own.
    """

    def main(argv):
        whole = bool(os.environ.get("ARMT_JAX_TRACEBACK"))
        if not whole:
            _hush_failed_saves()
        try:
            run(argv)
        except (ValueError, OSError, *kinds) as error:
            if whole:
                raise
            logging.error("%s: %s (set ARMT_JAX_TRACEBACK=1 for the traceback)", type(error).__name__, error)
            sys.exit(1)

    return main


def _hush_failed_saves() -> None:
    """The save raises what went wrong; Orbax's threads log it, too. (What stays is "Event loop is closed", which its writes print, past any
    logger, when they end after the first that failed.)"""
    for logger in (logging.get_absl_logger(), getLogger("asyncio")):
        logger.addFilter(_is_news)


def _is_news(record: LogRecord) -> bool:
    """Not an exception that came through Orbax."""
    at = record.exc_info[2] if record.exc_info else None
    while at is not None:
        if f"{os.sep}orbax{os.sep}" in at.tb_frame.f_code.co_filename:
            return False
        at = at.tb_next
    return True


@contextlib.contextmanager
def leaving_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the block with EXIT_PREEMPTED: for work whose finished parts are on disk, so that the same command goes on from there.

    Only the main thread can install it; in another nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_PREEMPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
