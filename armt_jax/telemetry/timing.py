"""Where the time of a training step goes: waiting for data, or computing."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator


class StepTimer:
    """Throughput and data wait over windows of steps, leaving out what is not training.

        timer = StepTimer()
        for step in range(n):
            with timer.data_wait():
                rows = next(batches)                 # on the host; putting them on a device waits for the device, not for data
            state, metrics = train_step(state, put(rows))
            timer.tick(tokens=batch_tokens)
            if step % 100 == 0:
                jax.block_until_ready(metrics)       # dispatch is asynchronous: without this the last steps are not in
                writer.write(step, timer.flush())
                with timer.paused():
                    validate(...)

    Times are the host's. Steps are dispatched without waiting, so a single step's host time means nothing; over a window
    that ends with a fetched metric the sum is right. Data wait that the device's queue hides is not lost time: a large
    share matters only when `tokens_per_s` is below what the same step reaches on a repeated batch.

    `paused` belongs outside a step (validation, checkpoints, the first compilation); pauses may be nested, and may lie
    inside a data wait, from which they are then left out too.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._pause_depth = 0
        self._pause_began = 0.0
        self._paused_total = 0.0  # finished pauses since construction
        self.reset()

    def reset(self) -> None:
        """Starts a new window, forgetting the current one."""
        self._window_began = self._active_time()
        self._waited = 0.0
        self._steps = 0
        self._tokens = 0
        self._flops = 0

    @contextlib.contextmanager
    def data_wait(self) -> Iterator[None]:
        began = self._active_time()
        try:
            yield
        finally:
            self._waited += self._active_time() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        if self._pause_depth == 0:
            self._pause_began = self._clock()
        self._pause_depth += 1
        try:
            yield
        finally:
            self._pause_depth -= 1
            if self._pause_depth == 0:
                self._paused_total += self._clock() - self._pause_began

    def tick(self, *, tokens: int, flops: int = 0, steps: int = 1) -> None:
        """Ends a step that processed `tokens` tokens (of the global batch, if throughput is to be global) in `flops` operations."""
        self._steps += steps
        self._tokens += tokens
        self._flops += flops

    def flush(self) -> dict[str, float]:
        """Rates of the window since the last flush, and starts the next. NaN where a window had no step or no time.

        `tokens_per_s`; `data_wait`, a share of the window between 0 and 1; `seconds_per_step`; `flops_per_step`.
        """
        seconds = self._active_time() - self._window_began
        steps, tokens, waited, flops = self._steps, self._tokens, self._waited, self._flops
        self.reset()
        if steps == 0 or seconds <= 0:
            return dict.fromkeys(("tokens_per_s", "data_wait", "seconds_per_step", "flops_per_step"), math.nan)
        return {
            "tokens_per_s": tokens / seconds, "data_wait": waited / seconds, "seconds_per_step": seconds / steps,
            "flops_per_step": flops / steps,
        }  # fmt: skip

    def _active_time(self) -> float:
        """The clock with all pauses cut out; it stands still during one."""
        now = self._pause_began if self._pause_depth else self._clock()
        return now - self._paused_total
