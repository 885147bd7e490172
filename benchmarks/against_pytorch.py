"""ARMT here and in PyTorch, side by side: forward pass and training step, tokens per second and peak memory.

    python benchmarks/against_pytorch.py --shape=ar|lm|gpt2-small [--runs=5] [--sides=jax,torch-eager,torch-compile] [--json]

Needs the extra `torch`. The model of benchmarks/train_step.py is exported (armt_jax.interop.export, format hf); every side loads that
folder in a process of its own, all with the same threads (--threads, default all cores) and the same ids. Their losses are compared before
anything is timed, and again after the steps that warm up; where they differ nothing is printed and the command exits with 1. Then they take
turns, one pass each, and only one of them works at a time. Shown are medians.

forward: the mean cross-entropy of a batch, no gradients. train: loss, gradients and AdamW in place. Tokens are real tokens (memory tokens
are not counted). torch-compile: `torch.compile` of the pass over one segment. peak_mb: peak resident memory of the process while it runs
that (parameters, compiled programs, and for train the optimizer's state included), above what it held before the model was loaded; on a
GPU the peak of the framework's allocator. share_of_peak: arithmetic of the model's matrix products, of a training step three times those of
the forward pass, over the speed of one large float32 product in JAX, measured in the same run.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIDES = ("jax", "torch-eager", "torch-compile")
KINDS = ("forward", "train")
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
WARM_UP = 2
# Relative, of the loss at the start, and after WARM_UP steps of training.
LOSS_TOLERANCES = {
    "cpu": {"forward": 2e-5, "train": 2e-4},
    # On a GPU both sides multiply with 10 bits of mantissa (TF32), and AdamW's first steps go by the signs of gradients.
    "cuda": {"forward": 2e-5, "train": 1e-2},
}


class Failed(RuntimeError):
    """A side that could not do what it was asked."""


class Side:
    """A process of `against_pytorch_sides.py`: it answers one JSON object a line."""

    def __init__(self, name: str, folder: Path, args: argparse.Namespace):
        self.name, self.seconds, self.facts = name, {kind: [] for kind in KINDS}, {}
        self.error: str | None = None
        options = [f"--side={name}", f"--folder={folder}", f"--shape={args.shape}", f"--threads={args.threads}", f"--device={args.device}"]
        platform = {"cpu": "cpu", "cuda": "cuda"}[args.device]
        environ = {**os.environ, "JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "OMP_NUM_THREADS": str(args.threads)}
        words = [sys.executable, str(ROOT / "benchmarks" / "against_pytorch_sides.py"), *options]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT)

    def ask(self, **question: Any) -> dict:
        """Raises Failed with what the process says, or that it ended."""
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"{self.name} ended with exit code {self.process.wait()}: see above")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def prepare(folder: Path, shape: str) -> int:
    """Writes the model and the ids. Returns the operations of a forward pass."""
    # Here alone: the parent holds no devices while the sides are timed.
    code = f"import sys; sys.argv = ['']; from benchmarks import against_pytorch as b; b.write_model({str(folder)!r}, {shape!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        raise Failed(f"the model of shape {shape} could not be exported: see above")
    return json.loads(done.stdout.splitlines()[-1])["flops"]


def write_model(folder: str, shape: str) -> None:
    """Of a process of its own; prints {"flops": of the forward pass}."""
    from flax import nnx

    from armt_jax.interop.export import export
    from armt_jax.telemetry.flops import count_flops
    from benchmarks import train_step

    model, ids = train_step.build(shape, "armt", "float32")
    export(model, Path(folder) / "model", check=False)
    np.save(Path(folder) / "ids.npy", ids)
    # The plainest form: others write the same products down more than once.
    graphdef, params = nnx.split(model.with_recurrence(schedule="sequential", gradient="store"))
    weights = np.ones(ids[:, 1:].shape, np.float32)
    loss = lambda params: nnx.merge(graphdef, params).losses(ids[:, :-1], ids[:, 1:], weights).loss_S.sum()
    print(json.dumps({"flops": count_flops(loss, params)}))


def warm_up(sides: list[Side], kind: str, device: str = "cpu") -> None:
    """Compiles, runs and compares. A `torch-compile` that cannot be had on this machine is left out, with the reason in its row."""
    for side in sides:
        print(f"{side.name}: {kind} is compiled and warms up", file=sys.stderr, flush=True)
        try:
            side.facts[kind] = side.ask(prepare=kind, times=WARM_UP)
        except Failed as error:
            if side.name != "torch-compile":
                raise
            side.error = str(error)
            side.kill()
    sides[:] = [side for side in sides if side.error is None]
    losses, tolerance = {side.name: side.facts[kind]["losses"] for side in sides}, LOSS_TOLERANCES[device][kind]
    first = next(iter(losses))
    for name, found in losses.items():
        gap = float(np.max(np.abs(np.subtract(found, losses[first]) / losses[first])))  # NaN, if one is
        if not gap <= tolerance:
            raise Failed(
                f"the losses of {name} and {first} differ by {gap:.1e} (relative; bar {tolerance:.0e}) in {kind}, {found} "
                f"against {losses[first]}: they do not compute the same, and nothing is shown"
            )


def measure(args: argparse.Namespace, folder: Path) -> list[dict]:
    flops = prepare(folder, args.shape)
    every = [Side(name, folder, args) for name in args.sides]
    peaks: list[float] = []
    try:
        sides = list(every)
        for kind in KINDS:
            warm_up(sides, kind, args.device)
            for i in range(args.runs):
                for side in sides:
                    side.seconds[kind].append(side.ask(run=kind)["seconds"])
                    if side.name == "jax":
                        peaks.append(side.ask(peak=args.peak_size)["flops_per_s"])
                print(f"{kind}: round {i + 1} of {args.runs} done", file=sys.stderr, flush=True)
        for side in sides:
            side.close()
    finally:
        for side in every:
            side.kill()
    tokens = np.load(folder / "ids.npy")[:, 1:].size
    return [row for kind in KINDS for row in rows(args.shape, kind, every, tokens, flops, max(peaks, default=None))]


def rows(shape: str, kind: str, sides: list[Side], tokens: int, flops: int, peak: float | None) -> list[dict]:
    median = {side.name: statistics.median(side.seconds[kind]) for side in sides if side.seconds[kind]}
    work = flops * (3 if kind == "train" else 1)
    out = []
    for side in sides:
        row = dict(shape=shape, what=kind, side=side.name)
        if side.name not in median:
            out.append(row | dict(error=side.error))
            continue
        seconds, eager = median[side.name], median.get("torch-eager")
        out.append(row | dict(
            tokens_per_s=round(tokens / seconds, 1), seconds=round(seconds, 5), peak_mb=round(side.facts[kind]["peak_mb"], 1),
            ratio_to_torch=None if eager is None else round(eager / seconds, 3), gflops_per_s=round(work / seconds / 1e9, 2),
            share_of_peak=None if peak is None else round(work / seconds / peak, 4), how=side.facts[kind]["how"],
        ))  # fmt: skip
    return out


def arguments(argv: list[str] | None) -> argparse.Namespace:
    from benchmarks.train_step import SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ar")
    parser.add_argument("--runs", type=int, default=5, help="timed passes of every side")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of PyTorch; JAX takes all cores it may run on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak_size", type=int, default=3072, help="rows and columns of the product that gives the peak")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    args = parser.parse_args(argv)
    args.sides = args.sides.split(",")
    if unknown := [side for side in args.sides if side not in SIDES]:
        parser.error(f"--sides: {unknown[0]} is unknown, use some of {', '.join(SIDES)}")
    if args.runs < 1:
        parser.error(f"--runs={args.runs} must be at least 1")
    return args


def table(rows: list[dict], args: argparse.Namespace) -> str:
    lines = [f"{args.shape}, {args.device}, {args.threads} threads, median of {args.runs}"]
    lines += [f"{'what':9}{'side':15}{'tokens/s':>11}{'seconds':>10}{'x torch':>9}{'peak MB':>9}{'GFLOP/s':>9}{'of peak':>9}  how"]
    number = lambda value, spec: "-" if value is None else format(value, spec)
    for r in rows:
        if "error" in r:
            lines.append(f"{r['what']:9}{r['side']:15}  not measured: {r['error']}")
            continue
        lines.append(
            f"{r['what']:9}{r['side']:15}{r['tokens_per_s']:11,.0f}{r['seconds']:10.4f}{number(r['ratio_to_torch'], '.2f'):>9}"
            f"{r['peak_mb']:9,.0f}{r['gflops_per_s']:9.1f}{number(r['share_of_peak'], '.1%'):>9}  {r['how']}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    folder = Path(tempfile.mkdtemp(prefix="against-pytorch-"))
    try:
        found = measure(args, folder)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    print("\n".join(map(json.dumps, found)) if args.json else table(found, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
