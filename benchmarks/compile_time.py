"""Compile time of the training step against the number of segments and of layers: both should hardly matter.

    python benchmarks/compile_time.py [--shape=ar] [--runs=3]

Lowering and compiling of loss and gradients (no optimizer), the median of `runs`, all variants taking turns in one process; JAX's caches
are cleared before each. The batch is 2: compile time does not depend on it.
"""

import argparse
import dataclasses
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from train_step import SHAPES, build

from armt_jax.model import MemoryTransformer
from armt_jax.recurrence.gradients import GRADIENTS
from armt_jax.recurrence.schedules import SCHEDULES

# (layers, segments)
SIZES = ((4, 8), (4, 64), (4, 512), (24, 64))


def compile_seconds(shape: str, layers: int, segments: int, schedule: str, gradient: str) -> float:
    config = build(shape, "armt", "float32")[0].config
    recurrence = dataclasses.replace(config.recurrence, schedule=schedule, gradient=gradient)
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, num_layers=layers), recurrence=recurrence)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0))))
    ids = jax.ShapeDtypeStruct((2, segments * recurrence.segment_length + 1), np.int32)

    def loss(params, ids):
        weights = jnp.ones((ids.shape[0], ids.shape[1] - 1), jnp.float32)
        return nnx.merge(graphdef, params).losses(ids[:, :-1], ids[:, 1:], weights).loss_S.sum()

    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(jax.value_and_grad(loss)).lower(params, ids).compile()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="ar")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    names = list(itertools.product(SCHEDULES, GRADIENTS))
    seconds = {(name, size): [] for name in names for size in SIZES}
    for _ in range(args.runs):
        for name, size in seconds:
            seconds[name, size].append(compile_seconds(args.shape, *size, *name))
    print(f"{args.shape}, armt, {jax.devices()[0].device_kind}, jax {jax.__version__}, seconds, median of {args.runs}")
    sizes = "".join(f"{f'{L} x {S}':>12}" for L, S in SIZES)
    print(f"{'schedule':12}{'gradient':12}{sizes}{'24 / 4 layers':>15}{'512 / 8 segs':>14}")
    for name in names:
        row = {size: statistics.median(seconds[name, size]) for size in SIZES}
        ratios = row[24, 64] / row[4, 64], row[4, 512] / row[4, 8]
        shown = "".join(f"{row[size]:12.2f}" for size in SIZES)
        print(f"{name[0]:12}{name[1]:12}{shown}{ratios[0]:15.2f}{ratios[1]:14.2f}")


if __name__ == "__main__":
    main()
