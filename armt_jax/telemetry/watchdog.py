"""A stall is seen: a run in which nothing happens says where each of its threads stands."""

import faulthandler
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO, TypeVar

T = TypeVar("T")


class StallWatchdog:
    """Writes the stacks of all threads to stderr whenever `seconds` have gone by without a `beat`; with `end`, exit code 1 follows.

    The clock runs in C (faulthandler), so a thread that hangs inside a library and holds the interpreter's lock is seen too. One per
    process. `seconds` of 0: off. It watches between its creation and `close`.
    """

    def __init__(self, seconds: float = 0, *, end: bool = False, stream: TextIO | None = None):
        if seconds < 0:
            raise ValueError(f"a stall of {seconds} seconds cannot be watched for: give a positive number, or 0 to turn the watchdog off")
        self._seconds, self._end = seconds, end
        self._stream = sys.__stderr__ if stream is None else stream
        self._armed = -float("inf")
        self.beat()

    def beat(self) -> None:
        """Something happened. Cheap enough for every step: the clock is set back once a tenth of its time, a second at most."""
        now = time.monotonic()
        if self._seconds and now - self._armed >= min(1.0, self._seconds / 10):
            self._armed = now
            faulthandler.dump_traceback_later(self._seconds, repeat=not self._end, exit=self._end, file=self._stream)

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a beat for each."""
        for item in items:
            self.beat()
            yield item

    def close(self) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
            self._seconds = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
