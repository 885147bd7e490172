"""A sweep: a list of config overrides, each one evaluated and written down at once, so that a stopped sweep goes on where it was."""

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armt_jax.config import override, resolve
from armt_jax.data import TextSource
from armt_jax.data.babilong import BabilongBatches
from armt_jax.evaluation import babilong, report, text
from armt_jax.evaluation.evaluate import Trained, evaluate
from armt_jax.evaluation.shares import ALL, Results, Share
from armt_jax.parallel.processes import is_main
from armt_jax.telemetry.progress import Progress

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


def identity(trained: Trained, point: Mapping[str, Any]) -> str:
    """Names a result: same checkpoint, same config, same overrides."""
    text = json.dumps([trained.step, trained.raw, dict(point)], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_sweep(
    trained: Trained, points: Sequence[Mapping[str, Any]], directory: Path, label: str | None = None, share: Share = ALL
) -> list[dict[str, Any]] | None:
    """Evaluates every point of the share that `directory` does not hold yet; when no share misses a point, writes CSV, JSONL and a plot,
    and returns the rows in order; else None."""
    label = label or memory_name(trained)
    if isinstance(trained.config.task, TextSource):
        return text.run(trained, points, directory, identity, label, share)
    if isinstance(trained.config.task, BabilongBatches):
        if share is not ALL:
            raise ValueError("--share, --merge: an evaluation on BABILong is not shared yet; run it in one process")
        return babilong.run(trained, points, directory, label)
    # Every point is resolved before the first is run: a typo in the last one must not cost an hour.
    planned = [(dict(point), resolve(override(trained.raw, point)), identity(trained, point)) for point in points]
    sizes = [config.task.size for _, config, _ in planned]
    if len(set(sizes)) < len(sizes):
        repeated = next(size for size in sizes if sizes.count(size) > 1)
        name = trained.config.task.size_name
        raise ValueError(f"two points of the sweep have {name} = {repeated}, and one curve has one value per size: make two sweeps of it")
    results, mine = Results(directory, share), share.of(planned)
    progress = Progress(len(mine), "point", enabled=is_main())
    for i, (point, config, name) in enumerate(mine):
        if name not in results.done:
            settings = config.evaluation
            found = evaluate(
                trained, config.model, config.task, batch_size=settings.batch_size, batches=settings.batches, memory=settings.memory
            )
            size = {config.task.size_name: config.task.size}
            facts = {"seed": config.seed, "step": trained.step, "overrides": json.dumps(point), "id": name}
            results.add({"label": label, **size, **found, **facts})
        progress.update(i + 1, **{config.task.size_name: config.task.size}, exact_match=results.done[name]["exact_match"])
    progress.close()
    rows = results.complete([name for _, _, name in planned])
    if rows is not None and is_main():
        x = trained.config.task.size_name
        report.write_results(rows, directory, x=x, y="exact_match", title=title(trained), trained_to=trained.trained_to)
    return rows


def memory_name(trained: Trained) -> str:
    return trained.raw.get("memory", {"name": "none"})["name"]


def title(trained: Trained) -> str:
    task = trained.raw["task"]
    return f"{task['name'].replace('_', ' ').capitalize()}{', ' + task['mode'] if 'mode' in task else ''}: beyond the trained size"


def compare(results: Mapping[str, Sequence[Mapping[str, Any]]], directory: Path, trained: Trained) -> None:
    """One table and plot over several runs: results.csv, results.jsonl, results.png."""
    rows = [dict(row, label=label) for label, part in results.items() for row in part]
    x = trained.config.task.size_name
    report.write_results(rows, directory, x=x, y="exact_match", title=title(trained), trained_to=trained.trained_to)


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], x: str, y: str = "exact_match") -> str:
    """Rows: runs. Columns: sizes."""
    sizes = sorted({row[x] for part in results.values() for row in part})
    rows = []
    for label, part in results.items():
        found = {row[x]: row[y] for row in part}
        rows.append({x: label} | {str(size): f"{found[size]:.3f}" if size in found else "-" for size in sizes})
    return report.format_table(rows, [x, *map(str, sizes)])
