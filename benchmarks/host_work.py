"""How much of a training step's time is the host's own work: drawing batches, dispatching, logging.

    python benchmarks/host_work.py --shape=lm|tiny [--steps=20] [--warmup=5] [--log_every=5] [--json]

Runs the real training loop (armt_jax.training.loop, as train.py does) on a text of random bytes with carried memory, at a shape of
train_step.py, and measures the steps after the warm-up: log lines and metric files are in, validation and checkpoints are not. All are
shares of the wall time of those steps:

idle       no training step is on the device: from the moment a step's results are ready (another thread waits for them) to the call of the
           next. This is what the host costs; work that overlaps a running step is not in it.
host       CPU time of the loop's thread. It does not matter whether a step runs beside it, so it bounds what a faster device could lose.
data_wait  drawing a batch on the host, as metrics.jsonl has it.

The CPU's device shares its cores with the host: on an accelerator the loop does the same work beside shorter steps.
"""

import argparse
import json
import pathlib
import queue
import tempfile
import threading
import time

import jax
import numpy as np
from train_step import SHAPES

from armt_jax.config import resolve
from armt_jax.telemetry.jsonl import read_lines
from armt_jax.training import loop


def write_text(folder: pathlib.Path, size: int) -> None:
    for split in ("train", "validation"):
        (folder / split).mkdir(parents=True)
        (folder / split / "text.txt").write_bytes(np.random.default_rng(0).integers(32, 127, size, dtype=np.uint8).tobytes())


def experiment(shape: str, folder: pathlib.Path, steps: int, log_every: int) -> dict:
    """A plain config: the shape, sequential and reversible, on a text in `folder`."""
    backbone, memory, T, S, B = SHAPES[shape]
    if backbone.get("vocab_size", 256) < 256:
        backbone = {**backbone, "vocab_size": 256}
    write_text(folder / "text", (steps + 1) * B * S * T + 1)
    return {
        "seed": 0, "backbone": backbone, "memory": {**memory, "name": "armt", "key_norm": "l2"},
        "recurrence": {"segment_length": T, "gradient": "reversible"},
        "data": {
            "dataset": "text", "path": str(folder / "text"), "tokenizer": "bytes", "stream": "contiguous", "segments": S,
            "splits": ("train", "validation"), "cache_dir": str(folder / "cache"),
        },
        "train": {
            "batch_size": B, "log_every": log_every, "validate_every": steps + 1, "validation_batches": 1, "checkpoint_every": steps + 1,
            "optimizer": {"learning_rate": 1e-4, "clip": "norm"}, "stages": ({"steps": steps},),
        },
        "evaluation": {"batch_size": B}, "mesh": {"data": 1},
    }  # fmt: skip


class Clock:
    """When steps were called and when their results were ready, and what the loop's thread did meanwhile."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last  # measured: the steps after `first`, to the end of `last`
        self.called, self.ready = [], []
        self.began = self.ended = (0.0, 0.0)
        self._results = queue.SimpleQueue()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self):
        while (results := self._results.get()) is not None:
            jax.block_until_ready(results)
            self.ready.append(time.perf_counter())

    def call(self, step, *args):
        self.called.append(time.perf_counter())
        state, metrics = step(*args)
        self._results.put(metrics)
        return state, metrics

    def after(self, number: int):
        """After everything that the loop does in step `number`."""
        now = time.perf_counter(), time.thread_time()
        if number == self.first:
            self.began = now
        if number == self.last:
            self.ended = now

    def close(self):
        self._results.put(None)
        self._watcher.join()

    def shares(self) -> dict:
        """Steps are numbered from 1: ready[n - 1] is of step n, and called[n] of the one after it."""
        wall = self.ended[0] - self.began[0]
        between = zip(self.ready[self.first - 1 : self.last - 1], self.called[self.first : self.last], strict=True)
        idle = sum(max(0.0, called - max(ready, self.began[0])) for ready, called in between)
        # The last measured step ends with a log line, which waits for it.
        idle += max(0.0, self.ended[0] - self.ready[self.last - 1])
        return dict(
            seconds_per_step=wall / (self.last - self.first), idle=idle / wall, host=(self.ended[1] - self.began[1]) / wall,
        )  # fmt: skip


def timed(clock: Clock):
    """The loop's own Run, with the clock's hands in it."""

    class Timed(loop.Run):
        def _train_step(self, *args):
            step = super()._train_step(*args)
            return lambda *inputs: clock.call(step, *inputs)

        def after_step(self):
            super().after_step()
            clock.after(self.standing.step)

    return Timed


def measure(shape: str, steps: int, warmup: int, log_every: int) -> dict:
    """One more step than is measured: the last one of a run also validates and saves."""
    last = warmup + steps
    clock = Clock(warmup, last)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        raw = experiment(shape, folder, last + 1, log_every)
        run, loop.Run = loop.Run, timed(clock)
        try:
            loop.train(resolve(raw), raw, folder / "run")
        finally:
            loop.Run = run
            clock.close()
        lines = [line for line in read_lines(folder / "run" / "metrics.jsonl") if "data_wait" in line]
    windows = [line for line in lines if warmup < line["step"] <= last]
    waited = sum(line["data_wait"] * line["seconds_per_step"] for line in windows) / sum(line["seconds_per_step"] for line in windows)
    rounded = {name: round(value, 5) for name, value in {**clock.shares(), "data_wait": waited}.items()}
    return dict(shape=shape, steps=steps, log_every=log_every, **rounded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="lm")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--log_every", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.steps % args.log_every or args.warmup % args.log_every or not args.warmup:
        parser.error("--steps and --warmup must be multiples of --log_every: a log line waits for all steps before it")
    found = measure(args.shape, args.steps, args.warmup, args.log_every)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.shape}, {jax.devices()[0].device_kind}, jax {jax.__version__}, {args.steps} steps, a log line every {args.log_every}")
    print(
        f"{found['seconds_per_step']:.3f} s a step; idle {found['idle']:.3%}, host {found['host']:.3%}, data_wait {found['data_wait']:.3%}"
    )


if __name__ == "__main__":
    main()
