"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self, TextIO

_FORMATS = {"loss": ".4f", "exact_match": ".3f", "accuracy": ".3f", "perplexity": ".2f", "data_wait": ".0%"}
_RATE_WINDOW = 20  # reported points over which the plain lines' ETA is averaged


class Progress:
    """Shows how far a loop is, and its metrics.

    On a terminal: a tqdm bar with ETA, metrics behind it. Elsewhere (a pipe, a log file): one line for every `update`
    that carries metrics, none for those that do not, so that calling it each step does not flood the log:

        step 200/1650 | stage 3/10 | loss 1.2345 | exact_match 0.512 | 12,345 tokens/s | eta 2m10s

    `description` names what is counted ("step", "eval batch"). `total` may be None and set later. `initial` is where a
    resumed run starts. `enabled=False` (processes other than the first) prints nothing.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        stream: TextIO | None = None,
        *,
        initial: int = 0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = total
        self._description = description
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        self._clock = clock
        self._points = deque([(clock(), initial)], maxlen=_RATE_WINDOW)
        self._bar = None
        if enabled and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=description, initial=initial, file=self._stream, dynamic_ncols=True)

    def set_total(self, total: int | None) -> None:
        self._total = total
        if self._bar is not None:
            self._bar.total = total
            self._bar.refresh()

    def update(self, step: int, **metrics: Any) -> None:
        """Moves to `step`. Metrics are numbers or strings, shown in the order given."""
        if not self._enabled:
            return
        shown = [format_metric(name, value) for name, value in metrics.items()]
        if self._bar is not None:
            self._update_bar(step, shown)
        elif shown:
            self._print(" | ".join([self._position(step), *shown, *self._eta(step)]))

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._enabled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _update_bar(self, step: int, shown: list[str]) -> None:
        if shown:
            self._bar.set_postfix_str(" | ".join(shown), refresh=False)
        if step > self._bar.n:
            self._bar.update(step - self._bar.n)  # redraws at most ten times a second
        else:
            self._bar.n = step
            self._bar.refresh()

    def _print(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def _position(self, step: int) -> str:
        return f"{self._description} {step}" + ("" if self._total is None else f"/{self._total}")

    def _eta(self, step: int) -> list[str]:
        """Remaining time at the rate of the last reported points; nothing while there is no rate or no total."""
        now = self._clock()
        if step < self._points[-1][1]:
            self._points.clear()
        began, first = self._points[0] if self._points else (now, step)
        self._points.append((now, step))
        if self._total is None or step <= first or now <= began:
            return []
        return [f"eta {format_duration((now - began) / (step - first) * max(self._total - step, 0))}"]


class LongWork:
    """Progress of work of unknown length, every `every` seconds; not a word about what is done sooner."""

    def __init__(self, description: str, stream: TextIO | None = None, *, every: float = 5.0, clock: Callable[[], float] = time.monotonic):
        self._open = lambda: Progress(None, description, stream, clock=clock)
        self._progress: Progress | None = None
        self._every, self._clock, self._next = every, clock, clock() + every

    def reached(self, done: int, **metrics: Any) -> None:
        if self._clock() < self._next:
            return
        if self._progress is None:
            self._progress = self._open()
        self._progress.update(done, **metrics)
        self._next = self._clock() + self._every

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._progress is not None:
            self._progress.close()


def format_metric(name: str, value: Any) -> str:
    """`loss 1.2345`, `12,345 tokens/s`, `stage 3/10`; `loss -` for None, which a NaN is in JSON."""
    if value is None:
        return f"{name} -"
    if name.endswith("_per_s"):
        return f"{float(value):,.0f} {name.removesuffix('_per_s')}/s"
    if isinstance(value, str):
        return f"{name} {value}"
    if isinstance(value, int):
        return f"{name} {value:,}"
    key = name.rsplit("/", 1)[-1]  # "validation/loss" looks like "loss"
    return f"{name} {format(float(value), _FORMATS.get(key, '.4g'))}"


def format_duration(seconds: float) -> str:
    """`45s`, `2m10s`, `1h05m`, `3d04h`."""
    seconds = round(seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{seconds}s"
    if hours < 1:
        return f"{minutes}m{seconds % 60:02d}s"
    if days < 1:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"
