"""Forward and training speed, peak temporary memory and compile time of every schedule x gradient strategy.

    python benchmarks/train_step.py --shape=ar|lm|gpt2-small|tiny [--json] [--runs=5] [--memory=armt] [--dtype=float32]

One process; every variant runs `runs` times after a warm-up, all variants taking turns, and the median is printed. Tokens are real tokens
(memory tokens are not counted). temp_mb is the compiled training step's peak temporary memory (XLA's memory analysis), parameters,
gradients and inputs not counted. The training step is loss and gradients (no optimizer).
"""

import argparse
import itertools
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.recurrence.gradients import GRADIENTS
from armt_jax.recurrence.schedules import SCHEDULES

# backbone, memory, segment length, segments, batch
SHAPES = {
    "ar": (dict(preset="neox-tiny-ar", mlp_width=512), dict(num_memory_tokens=4, d_mem=64), 4, 51, 32),
    "lm": (
        dict(name="gpt2", vocab_size=1000, num_layers=6, width=256, num_heads=8, max_positions=256),
        dict(num_memory_tokens=16, d_mem=96), 128, 32, 2,
    ),
    "gpt2-small": (dict(preset="gpt2"), dict(num_memory_tokens=16, d_mem=64), 512, 4, 1),
    # To see that a script works.
    "tiny": (
        dict(name="gpt2", vocab_size=50, num_layers=2, width=16, num_heads=2, max_positions=16),
        dict(num_memory_tokens=2, d_mem=4), 8, 3, 2,
    ),
}  # fmt: skip


def build(shape: str, memory: str, dtype: str) -> tuple[MemoryTransformer, np.ndarray]:
    backbone, tokens, T, S, B = SHAPES[shape]
    fields = {"armt": dict(tokens, value_std=0.02), "none": {}}.get(memory, dict(num_memory_tokens=tokens["num_memory_tokens"]))
    recurrence = RecurrenceConfig(segment_length=T)
    config = ModelConfig(resolve_backbone(backbone), resolve_memory(dict(fields, name=memory)), recurrence, dtype)
    model = MemoryTransformer(config, rngs=nnx.Rngs(0))
    ids = np.random.default_rng(0).integers(0, config.backbone.vocab_size, (B, S * T + 1), dtype=np.int32)
    return model, ids


class Variant:
    """One schedule and strategy, compiled."""

    def __init__(self, model: MemoryTransformer, schedule: str, gradient: str, ids: np.ndarray):
        graphdef, self.params = nnx.split(model.with_recurrence(schedule=schedule, gradient=gradient))
        weights = jnp.ones((ids.shape[0], ids.shape[1] - 1), jnp.float32)

        def loss(params, ids):
            out = nnx.merge(graphdef, params).losses(ids[:, :-1], ids[:, 1:], weights)
            return out.loss_S.sum() / out.weight_S.sum()

        self.name, self.ids = (schedule, gradient), jnp.asarray(ids)
        self.forward = jax.jit(loss).lower(self.params, self.ids).compile()
        start = time.perf_counter()
        self.train = jax.jit(jax.value_and_grad(loss)).lower(self.params, self.ids).compile()
        self.compile_s = time.perf_counter() - start
        self.temp_mb = self.train.memory_analysis().temp_size_in_bytes / 2**20
        self.seconds: dict[str, list[float]] = {"forward": [], "train": []}

    def time(self, kind: str, *, count: bool) -> None:
        start = time.perf_counter()
        jax.block_until_ready(getattr(self, kind)(self.params, self.ids))
        if count:
            self.seconds[kind].append(time.perf_counter() - start)

    def row(self, shape: str) -> dict:
        tokens = self.ids[:, 1:].size
        speed = {kind: tokens / statistics.median(seconds) for kind, seconds in self.seconds.items()}
        return dict(
            shape=shape, schedule=self.name[0], gradient=self.name[1], forward_tokens_per_s=round(speed["forward"], 1),
            tokens_per_s=round(speed["train"], 1), temp_mb=round(self.temp_mb, 1), compile_s=round(self.compile_s, 2),
        )  # fmt: skip


def measure(shape: str, memory: str, dtype: str, runs: int, only: str | None) -> list[dict]:
    model, ids = build(shape, memory, dtype)
    kind = model.config.memory
    local = kind.layer_class.layer_local and kind.token_class.layer_local
    names = [n for n in itertools.product(SCHEDULES, GRADIENTS) if local or n[0] == "sequential"]
    names = [n for n in names if only is None or "/".join(n) in only]
    variants = [Variant(model, *name, ids) for name in names]
    for i in range(runs + 1):
        for variant in variants:
            for timed in ("forward", "train"):
                variant.time(timed, count=i > 0)
        print(f"round {i} of {runs} done (round 0 warms up)", file=sys.stderr, flush=True)
    return [variant.row(shape) for variant in variants]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="ar")
    parser.add_argument("--memory", default="armt")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", help="comma-separated schedule/gradient pairs, for instance sequential/store,diagonal/reversible")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    args = parser.parse_args()
    rows = measure(args.shape, args.memory, args.dtype, args.runs, args.only.split(",") if args.only else None)
    if args.json:
        for row in rows:
            print(json.dumps(row))
        return
    base = next((r["tokens_per_s"] for r in rows if (r["schedule"], r["gradient"]) == ("sequential", "store")), None)
    print(f"{args.shape}, {args.memory}, {args.dtype}, {jax.devices()[0].device_kind}, jax {jax.__version__}, median of {args.runs}")
    print(f"{'schedule':12}{'gradient':12}{'forward tok/s':>15}{'train tok/s':>13}{'x store':>9}{'temp MB':>10}{'compile s':>11}")
    for r in rows:
        ratio = f"{r['tokens_per_s'] / base:.2f}" if base else "-"
        print(
            f"{r['schedule']:12}{r['gradient']:12}{r['forward_tokens_per_s']:15,.0f}{r['tokens_per_s']:13,.0f}{ratio:>9}"
            f"{r['temp_mb']:10,.0f}{r['compile_s']:11.1f}"
        )


if __name__ == "__main__":
    main()
