"""A sweep: a list of config overrides, each one evaluated and written down at once, so that a stopped sweep goes on where it was."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armt_jax.data import TextSource
from armt_jax.data.babilong import BabilongBatches
from armt_jax.evaluation import babilong, task, text
from armt_jax.evaluation.evaluate import Trained
from armt_jax.evaluation.shares import ALL, Share
from armt_jax.tasks import BatchSource

# What an evaluation may change: the rest belongs to the checkpoint. Single keys are those that change no parameter.
CHANGEABLE = ("task", "data", "evaluation", "recurrence", "memory.cache_length", "memory.same_length", "backbone.clamp_len")


def read_sweep(path: str | Path) -> list[dict[str, Any]]:
    """The overrides of a sweep file: `get_sweep() -> [{"task.pairs": 500}, ...]`.

    Raises:
        ValueError: the file is missing, has no get_sweep, or lists something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"sweep {path} does not exist; see configs/sweeps/")
    spec = importlib.util.spec_from_file_location("sweep", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"sweep {path} defines no get_sweep(): it must return a list of overrides, like [{{'task.pairs': 500}}]")
    points = list(module.get_sweep())
    for point in points:
        if not isinstance(point, Mapping):
            raise ValueError(f"sweep {path}: {point!r} is not a dict of dotted keys, like {{'task.pairs': 500}}")
        for key in point:
            if key not in CHANGEABLE and key.split(".")[0] not in CHANGEABLE:
                raise ValueError(f"sweep {path}: {key} cannot be changed after training; a sweep may change {', '.join(CHANGEABLE)}")
    if not points:
        raise ValueError(f"sweep {path} is empty")
    return points


def memory_name(trained: Trained) -> str:
    return trained.raw.get("memory", {"name": "none"})["name"]


# How a run on a kind of source is evaluated: a module with `run` and `show`. The first that fits.
KINDS = ((TextSource, text), (BabilongBatches, babilong), (BatchSource, task))


def kind_of(trained: Trained):
    """The module that evaluates such a run."""
    return next(module for source, module in KINDS if isinstance(trained.config.task, source))


def run_sweep(
    trained: Trained, points: Sequence[Mapping[str, Any]], directory: Path, label: str | None = None, share: Share = ALL
) -> list[dict[str, Any]] | None:
    """Evaluates every point of the share that `directory` does not hold yet; when no share misses a point, writes tables and plots of all,
    and returns the rows; else None."""
    return kind_of(trained).run(trained, points, directory, label or memory_name(trained), share)


def show(trained: Trained, rows: Sequence[Mapping[str, Any]], directory: Path) -> str:
    """What a terminal shows of a sweep's rows."""
    return kind_of(trained).show(trained, rows, directory)
