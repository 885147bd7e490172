"""Where the time of a training step (loss and gradients) goes: the operations of the compiled program, by the time they took.

    python benchmarks/profile_step.py --shape=ar|lm|gpt2-small|tiny [--schedule=sequential] [--gradient=reversible] [--memory=armt]
        [--dtype=float32] [--steps=3] [--top=15] [--json]

Shapes are those of train_step.py. `steps` steps are traced by JAX's profiler after one that is not. Times are of one step; loops, calls and
conditionals are left out, as their insides are counted. Kinds: products (dot, convolution, a matrix library's call), copies (transposes,
slices, updates of slices, too), and the rest.
"""

import argparse
import collections
import glob
import gzip
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402

from armt_jax.recurrence.gradients import GRADIENTS  # noqa: E402
from armt_jax.recurrence.schedules import SCHEDULES  # noqa: E402
from benchmarks.train_step import SHAPES, Variant, build  # noqa: E402

# %computation (parameters) -> type {, and in it: %name = type opcode(operands), calls=%computation
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(")
_CALLED = re.compile(r"calls=%?([\w.-]+)")
_OUTER = {"while", "call", "conditional", "async-start", "async-done"}
_PRODUCTS = {"dot", "convolution", "custom-call"}
_COPIES = {"copy", "transpose", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "reverse"}
_FREE = {"parameter", "constant", "bitcast", "reshape", "broadcast", "tuple", "get-tuple-element", "iota"}


class Operation(NamedTuple):
    """result: its type. inside: the operations that it fuses, or itself."""

    result: str
    opcode: str
    inside: frozenset[str]

    @property
    def kind(self) -> str:
        if self.inside & _PRODUCTS:
            return "product"
        work = self.inside - _FREE
        return "copy" if work and work <= _COPIES else "other"


def operations(program: str) -> dict[str, Operation]:
    """{name: operation} of a compiled program's text."""
    lines, inside, computation = [], collections.defaultdict(set), None
    for line in program.splitlines():
        if begins := _COMPUTATION.match(line):
            computation = begins[1]
        elif found := _INSTRUCTION.match(line):
            inside[computation].add(found[3])
            lines.append((*found.groups(), _CALLED.search(line)))
    return {
        name: Operation(result.split("{")[0], opcode, frozenset(inside[called[1]] if called else {opcode}))
        for name, result, opcode, called in lines
    }


def traced(run, steps: int) -> list[dict[str, Any]]:
    """The events that carry an operation's name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(steps):
                run()
        (path,) = glob.glob(f"{folder}/**/perfetto_trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "hlo_op" in event.get("args", {})]


def summarise(events: list[dict[str, Any]], program: Mapping[str, Operation], steps: int) -> list[dict[str, Any]]:
    """One row an operation, the longest first. Times in milliseconds a step."""
    spent, times = collections.Counter(), collections.Counter()
    for event in events:
        name = event["args"]["hlo_op"]
        if name in program and program[name].opcode not in _OUTER:
            spent[name] += event["dur"] / 1e3 / steps
            times[name] += 1
    total, rows = sum(spent.values()), []
    for name, ms in spent.most_common():
        row = {"operation": name, "kind": program[name].kind, "result": program[name].result, "times": times[name] // steps}
        rows.append(row | {"ms": round(ms, 3), "share": round(ms / total, 4)})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ar")
    parser.add_argument("--schedule", choices=tuple(SCHEDULES), default="sequential")
    parser.add_argument("--gradient", choices=GRADIENTS, default="reversible")
    parser.add_argument("--memory", default="armt")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    model, ids = build(a.shape, a.memory, a.dtype)
    variant = Variant(model, a.schedule, a.gradient, ids)
    variant.time("train", count=False)
    events = traced(lambda: variant.time("train", count=False), a.steps)
    rows = summarise(events, operations(variant.train.as_text()), a.steps)
    if a.json:
        for row in rows:
            print(json.dumps(row))
        return
    by_kind = collections.Counter()
    for row in rows:
        by_kind[row["kind"]] += row["ms"]
    total = sum(by_kind.values())
    shares = ", ".join(f"{kind} {ms:.1f} ms ({ms / total:.0%})" for kind, ms in by_kind.most_common())
    print(f"{a.shape}, {a.schedule}, {a.gradient}: {total:.1f} ms of operations a step: {shares}\n")
    print("| operation | kind | result | times a step | ms a step | share |\n|---|---|---|---:|---:|---:|")
    for row in rows[: a.top]:
        print(f"| {row['operation']} | {row['kind']} | {row['result']} | {row['times']} | {row['ms']:.2f} | {row['share']:.1%} |")


if __name__ == "__main__":
    main()
