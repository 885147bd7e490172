"""A small run of two stages, and what it leaves in its workdir."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from armt_jax.checkpoint import Checkpoints
from armt_jax.config import resolve
from armt_jax.parallel.mesh import make_mesh
from armt_jax.parallel.rules import path_string
from armt_jax.telemetry.jsonl import read_lines
from armt_jax.training import loop
from armt_jax.training import step as steps
from armt_jax.training.restore import restore_target

TIMING = {"tokens_per_s", "data_wait", "seconds_per_step", "mfu"}

# Stages of 8 steps; the second keeps memories from batch to batch. Checkpoints at multiples of 3, at validations (4, 8, ...) that are the
# best so far, and at the ends of stages.
CONFIG = {
    "seed": 3,
    "backbone": {
        "name": "gpt2", "vocab_size": 128, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 16, "kernel_std": None,
        "dropout": 0.1,
    },
    "memory": {"name": "armt", "num_memory_tokens": 1, "d_mem": 4, "key_norm": "l2"},
    "recurrence": {"segment_length": 4},
    "task": {"name": "associative_retrieval", "mode": "remember", "pairs": 2, "num_keys": 4},
    "train": {
        "batch_size": 4, "log_every": 5, "validate_every": 4, "validation_batches": 1, "checkpoint_every": 3, "keep_last": 3,
        "keep_optimizer": True, "tensorboard": False,
        "optimizer": {"learning_rate": 0.01, "clip": "norm"},
        "stages": [{"steps": 8}, {"steps": 8, "task": {"pairs": 3}, "schedule": "cosine", "keep_memory": 0.5}],
    },
    "evaluation": {"batch_size": 4, "batches": 1},
    "mesh": {"data": 1},
}  # fmt: skip


@contextmanager
def programs_shared() -> Iterator[None]:
    """Runs within it compile each step once for all of them: else that is most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_optimizer", functools.cache(loop.make_optimizer))
        for name in ("make_train_step", "make_evaluation_step"):
            patch.setattr(steps, name, functools.cache(getattr(steps, name)))
        yield


def metrics(workdir):
    """metrics.jsonl without what a clock says."""
    return [{key: value for key, value in row.items() if key not in TIMING} for row in read_lines(workdir / "metrics.jsonl")]


def saved(workdir):
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def restore(workdir, raw=CONFIG):
    config = resolve(raw)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(restore_target(config, raw, make_mesh(config.mesh)))


def named(tree):
    return {path_string(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def steps_behind(state, start):
    """How many steps the parameters went through."""
    start = named(start)
    counts = {int(np.rint(np.mean(leaf - start[name]))) for name, leaf in named(state.params).items()}
    assert len(counts) == 1
    return counts.pop()
