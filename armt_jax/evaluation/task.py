"""Evaluation of a run on a generated task: exact match against the task's size."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armt_jax.config import override, resolve_point
from armt_jax.evaluation import report
from armt_jax.evaluation.evaluate import Trained, evaluate, identity, mesh_for
from armt_jax.evaluation.shares import ALL, Results, Share
from armt_jax.parallel.processes import is_main
from armt_jax.telemetry.progress import Progress


def run(
    trained: Trained, points: Sequence[Mapping[str, Any]], directory: Path, label: str, share: Share = ALL
) -> list[dict[str, Any]] | None:
    """Every point of the share that `directory` does not hold yet; when no share misses a point, CSV, JSONL and a plot of all, and the
    rows in order; else None."""
    # Every point is resolved before the first is run: a typo in the last one must not cost an hour.
    planned = [(dict(point), resolve_point(override(trained.raw, point)), identity(trained, point)) for point in points]
    sizes = [config.task.size for _, config, _ in planned]
    if len(set(sizes)) < len(sizes):
        repeated = next(size for size in sizes if sizes.count(size) > 1)
        name = trained.config.task.size_name
        raise ValueError(f"two points of the sweep have {name} = {repeated}, and one curve has one value per size: make two sweeps of it")
    meshes = {rows: mesh_for(trained.mesh, rows) for rows in sorted({config.evaluation.batch_size for _, config, _ in planned})}
    results, mine = Results(directory, share), share.of(planned)
    progress = Progress(len(mine), "point", enabled=is_main())
    for i, (point, config, name) in enumerate(mine):
        if name not in results.done:
            settings = config.evaluation
            found = evaluate(
                trained.on(meshes[settings.batch_size]), config.model, config.task, batch_size=settings.batch_size,
                batches=settings.batches, memory=settings.memory,
            )  # fmt: skip
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


def show(trained: Trained, rows: Sequence[Mapping[str, Any]], directory: Path) -> str:
    """What a terminal shows of the rows."""
    size = trained.config.task.size_name
    head = f"{trained.workdir.name}, checkpoint of step {trained.step}, trained to {trained.trained_to} {size}"
    found = table({rows[0]["label"]: rows}, size)
    return f"{head}\n{found}\nresults: {directory}/results.csv, results.jsonl, results.png"


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
