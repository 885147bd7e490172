"""Evaluation of a run on its text: nats per token by segment and by position, and every figure they convert to.

A reading is one way through a split, as the sections `data` and `evaluation` say it:

    contiguous streams                      stateful: the memory is carried through the text, row by row of `evaluation.batch_size`
    windows, one block each                 from an empty memory: what a row has read tells its segments apart
    windows with overlap                    sliding: the loss is on the block, after the history before it
    evaluation.memory = "off"               the same, with the memory emptied before every segment

Every target of the split counts once, unless `evaluation.batches` stops the reading early.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from armt_jax.config import CORPUS_FIELDS, Config, override, resolve_point, stream_fields
from armt_jax.data import STREAMS, ContiguousStreams, DataError, check_fingerprint, text_metrics
from armt_jax.data.metrics import PUBLISHED_AS
from armt_jax.evaluation import report
from armt_jax.evaluation.evaluate import MEMORY, Trained, identity, mesh_for
from armt_jax.evaluation.shares import ALL, Results, Share
from armt_jax.model import ModelConfig
from armt_jax.parallel.mesh import put_batch, replicated, sum_over_data
from armt_jax.parallel.processes import is_main
from armt_jax.telemetry.progress import Progress
from armt_jax.training import carried as carry
from armt_jax.training import step as steps


class Reading(NamedTuple):
    """Sums of -ln p and of weights, by segment of a row and position in it."""

    loss_SxT: np.ndarray
    weight_SxT: np.ndarray


@functools.lru_cache(maxsize=16)
def _step(model: ModelConfig, mesh, carries: bool):
    """step(params, carried, batch) -> (Reading of the batch, carried)."""
    graphdef, _ = steps.abstract_model(model)
    T = model.recurrence.segment_length

    def read(params, carried, batch):
        module = nnx.merge(graphdef, params)
        start = carry.begin(module, carried)
        nll_BxN, state = module.token_losses(batch.tokens_BxN, batch.targets_BxN, start, reset_BxS=batch.reset_BxS)
        w_BxN = batch.weights_BxN
        loss_BxN = jnp.where(w_BxN > 0, nll_BxN * w_BxN, 0.0)
        return Reading(*(a.sum(axis=0).reshape(-1, T) for a in (loss_BxN, w_BxN))), carry.end(carried, state)

    @functools.partial(jax.jit, out_shardings=(replicated(mesh), carry.carried_shardings(mesh) if carries else None))
    def step(params, carried, batch):
        return sum_over_data(read, mesh, carry.ROWS if carries else P())(params, carried, batch)

    return step


def read(trained: Trained, config: Config) -> Reading:
    """Reads config's split, once, with the trained parameters."""
    source, model, settings, mesh = config.task, config.model, config.evaluation, trained.mesh
    rows = settings.batch_size
    carried = carry.fresh(model, rows, mesh) if source.carries_state else None
    step, total = _step(model, mesh, source.carries_state), None
    for batch in steps.read_batches(
        source, mesh, seed=config.seed, split=settings.split, batch_size=rows, batches=settings.batches
    ):  # fmt: skip
        batch = MEMORY[settings.memory](batch, segment_length=source.segment_length)
        found, carried = step(trained.params, carried, put_batch(batch, mesh))
        found = jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(found))
        total = found if total is None else jax.tree.map(np.add, total, found)
    return total


# -- points --------------------------------------------------------------------------------------------------------------------

# Of the sections of a point; besides these, what `sweep.CHANGEABLE` allows.
CORPUS_KEYS = tuple(f"data.{name}" for name in CORPUS_FIELDS)


def point_config(raw: Mapping[str, Any], point: Mapping[str, Any]) -> Config:
    """The config of a point. What belonged to the trained stream alone is dropped where the point names another stream."""
    if fixed := [key for key in point if key in CORPUS_KEYS]:
        raise ValueError(f"config: override {fixed[0]} = {point[fixed[0]]!r}: a run is evaluated on the corpus it was trained on")
    changed = override(raw, point)
    data = changed["data"]
    own = (*CORPUS_FIELDS, "stream", *stream_fields(STREAMS[data.get("stream", "contiguous")]))
    data = {name: value for name, value in data.items() if name in own or f"data.{name}" in point}
    return resolve_point({**changed, "data": data})


# A window of the default readings has at least so many segments.
LEAST_SEGMENTS = 8


def default_points(trained: Trained) -> list[dict[str, Any]]:
    """The readings of a run that names no sweep: stateful, from an empty memory over 2 n segments, and sliding over n by half of it.

    n is the trained row, at least 8: systems that train on single segments are read as the others are. The split may hold fewer.
    """
    source = trained.config.task
    T, held = source.segment_length, source.num_targets(trained.config.evaluation.split) // source.segment_length
    n = max(LEAST_SEGMENTS, source.segments)
    empty, slid = min(2 * n, held), min(n, held)
    readings = [{"data.stream": "contiguous"}]
    if held:
        readings.append({"data.stream": "windows", "data.segments": empty, "data.stride": empty * T})
    if carry.remembers(trained.config.model):
        other = {"evaluation.memory": "off" if trained.config.evaluation.memory == "on" else "on"}
        readings = [{**point, **memory} for point in readings for memory in ({}, other)]
    if held:
        readings.append({"data.stream": "windows", "data.segments": slid, "data.stride": max(1, slid * T // 2)})
    return readings


def describe(config: Config, point: Mapping[str, Any]) -> str:
    """A reading's name: how the text is read, then what else the point changes."""
    source, settings = config.task, config.evaluation
    if isinstance(source, ContiguousStreams):
        name = "stateful"
    elif source.block == source.row_length(source.segments):
        name = f"from empty, {source.segments} segments"
    else:
        name = f"sliding, {source.row_length(source.segments) - source.block} + {source.block}"
    shown = ("data.stream", "data.stride", "evaluation.memory")
    windows = () if isinstance(source, ContiguousStreams) else ("data.segments",)
    more = [f"{key.rpartition('.')[2]} {value}" for key, value in point.items() if key not in (*shown, *windows)]
    return ", ".join([name, *(["memory off"] if settings.memory == "off" else []), *more])


def row(trained: Trained, config: Config, point: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """A reading as a result: figures, then the curves as lists (None where nothing counted)."""
    source = config.task
    nats, tokens = float(reading.loss_SxT.sum()), float(reading.weight_SxT.sum())
    figures = text_metrics(nats, tokens, source.counts(config.evaluation.split))
    published = {"published_as": PUBLISHED_AS[source.corpus.name]}
    curves = {}
    for name, axis in (("segment", 1), ("position", 0)):
        loss, weight = reading.loss_SxT.sum(axis=axis), reading.weight_SxT.sum(axis=axis)
        curves[f"nats_by_{name}"] = [float(a / b) if b else None for a, b in zip(loss, weight)]
        curves[f"tokens_by_{name}"] = [int(b) for b in weight]
    return {"reading": describe(config, point), "split": config.evaluation.split, "tokens": int(tokens), **figures, **published, **curves}


# -- a run's evaluation --------------------------------------------------------------------------------------------------------

def run(
    trained: Trained, points: Sequence[Mapping[str, Any]], directory: Path, label: str, share: Share = ALL
) -> list[dict[str, Any]] | None:
    """Every reading of the share that `directory` does not hold yet; when no share misses one, CSV, JSONL and plots of all, and the rows
    in order; else None. One point that changes nothing stands for the `default_points`.
    """
    points = default_points(trained) if list(points) == [{}] else points
    # Every point is resolved before the first is run: a typo in the last one must not cost an hour.
    planned = [(dict(point), point_config(trained.raw, point), identity(trained, point)) for point in points]
    for point, config, _ in planned:
        check_point(trained, point, config)
    names = [(describe(config, point), config.seed) for point, config, _ in planned]
    if twice := next((pair for pair in names if names.count(pair) > 1), None):
        raise ValueError(f"two points of the sweep are {twice[0]!r}, and a plot has one curve for them: leave one out, or make two sweeps")
    meshes = {rows: mesh_for(trained.mesh, rows) for rows in sorted({config.evaluation.batch_size for _, config, _ in planned})}
    results, mine = Results(directory, share), share.of(planned)
    progress = Progress(len(mine), "reading", enabled=is_main())
    for i, (point, config, name) in enumerate(mine):
        if name not in results.done:
            found = row(trained, config, point, read(trained.on(meshes[config.evaluation.batch_size]), config))
            facts = {"seed": config.seed, "step": trained.step, "overrides": json.dumps(point), "id": name}
            results.add({"label": label, **found, **facts})
        progress.update(i + 1, reading=results.done[name]["reading"], nats_per_token=results.done[name]["nats_per_token"])
    progress.close()
    rows = results.complete([name for _, _, name in planned])
    if rows is not None and is_main():
        write(rows, directory, f"{label}, {trained.config.task.corpus.name}, {rows[0]['split']} split")
    return rows


def check_point(trained: Trained, point: Mapping[str, Any], config: Config) -> None:
    """Whether a point can be read, before any is.

    Raises:
        DataError: other data than in training, a split that was left out, or one shorter than a window.
    """
    source, settings = config.task, config.evaluation
    check_fingerprint(source.fingerprint, trained.config.task.fingerprint, f"the data of the point {point}")
    try:
        steps_there = source.num_steps(settings.batch_size, settings.split)
    except DataError as error:
        raise DataError(f"the point {point}: {error}") from error
    if not steps_there:
        raise DataError(f"the point {point}: split {settings.split!r} has no token to predict: evaluate another split")


def write(rows: Sequence[Mapping[str, Any]], directory: Path, title: str) -> None:
    """results.csv and results.jsonl, and the curves."""
    report.write_table([{k: v for k, v in each.items() if not isinstance(v, list)} for each in rows], rows, directory)
    write_curves(rows, directory, title)


def write_curves(rows: Sequence[Mapping[str, Any]], directory: Path, title: str, key: str = "reading") -> None:
    """by_segment and by_position as csv and png, one line a value of `key`; rows that share it differ in their seed. Where the rows have
    no such curve, those of an earlier evaluation go."""
    for name in ("segment", "position"):
        shown = [each for each in rows if name == "position" or sum(n > 0 for n in each["tokens_by_segment"]) > 1]
        # Of a stream that goes on, the number within a row says nothing.
        shown = [each for each in shown if name == "position" or not each["reading"].startswith("stateful")]
        curve = [
            {key: each[key], "seed": each["seed"], name: i, "nats_per_token": value, "tokens": count}
            for each in shown
            for i, (value, count) in enumerate(zip(each[f"nats_by_{name}"], each[f"tokens_by_{name}"]))
            if count
        ]
        if curve:
            report.write_curves(curve, directory / f"by_{name}", x=name, y="nats_per_token", title=title, label=key)
        else:
            for kind in ("csv", "png"):
                (directory / f"by_{name}.{kind}").unlink(missing_ok=True)


def show(trained: Trained, rows: Sequence[Mapping[str, Any]], directory: Path) -> str:
    """What a terminal shows of the rows."""
    source = trained.config.task
    head = f"{trained.workdir.name}, checkpoint of step {trained.step}, {source.segments} segments of {source.segment_length} tokens"
    files = [name for name in ("results.csv", "results.jsonl", "by_segment.png", "by_position.png") if (directory / name).exists()]
    return f"{head}\n{source.corpus.open().report()}\n{table(rows)}\nresults: {directory}/{', '.join(files)}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    figures = dict.fromkeys(("nats_per_token", "perplexity", rows[0]["published_as"]))
    return report.format_table(rows, ("reading", "tokens", *figures))

