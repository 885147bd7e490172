"""Which segments of mere text write into a memory, layer by layer: what wears facts off, and by what text.

    python -m armt_jax.evaluation.babilong_writes RUN [--checkpoint=last] [--rows=32] [--segments=128] [--facts_within=4096] [--show=3]

Rows read a story of the test split within `facts_within` tokens, and then segments of its text without a fact. A change of a layer's memory
is counted in the size (Euclidean norm) that it had when the facts were read. A memory that keeps its facts over millions of tokens hardly
writes here: of the segments that it does write at, a number of the largest of each layer are printed, to see what its gates fell for.

    [--stories=DIR] [--data_path=DIR]  where bAbI's files, and the text, lie now (as in eval.py)
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from armt_jax.checkpoint import CheckpointError
from armt_jax.config import resolve
from armt_jax.data.babilong import BabilongBatches
from armt_jax.evaluation.babilong import SAMPLES_SEED
from armt_jax.evaluation.evaluate import checkpoint_choice, load, mesh_for, run_config
from armt_jax.evaluation.report import format_table
from armt_jax.evaluation.streaming import Reader
from armt_jax.parallel.processes import split_cpu
from armt_jax.recurrence.schedules import GridState
from armt_jax.training.workdir import WorkdirError


class Writes(NamedTuple):
    """What segments of text did. By the place a memory is in: "layer 1", ..., and "tokens" for one that passes from segment to segment.

    changes: [S, B], of each segment, in the size of the memory that the facts left. moved: [B], of all of them together.
    text_BxN: the segments.
    """

    changes: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]
    text_BxN: np.ndarray


def observe(reader: Reader, facts_BxN: np.ndarray, text_BxN: np.ndarray) -> Writes:
    """Reads facts, then the text segment by segment. Both are whole segments. Places that hold nothing behind the facts are left out."""
    T = reader.segment_length
    state = reader.ingest(reader.empty(), facts_BxN)
    after_facts = before = _by_place(state)
    size = {place: _norm_B(memory) for place, memory in after_facts.items()}
    size = {place: norm_B for place, norm_B in size.items() if np.all(norm_B > 0)}
    changes = {place: [] for place in size}
    for start in range(0, text_BxN.shape[1], T):
        state = reader.ingest(state, text_BxN[:, start : start + T])
        now = _by_place(state)
        for place, found in changes.items():
            found.append(_norm_B(now[place] - before[place]) / size[place])
        before = now
    moved = {place: _norm_B(before[place] - after_facts[place]) / size[place] for place in size}
    return Writes({place: np.stack(found) for place, found in changes.items()}, moved, text_BxN)


def _by_place(state: GridState) -> dict[str, np.ndarray]:
    """[B, everything that is held there], on the host: `ingest` uses up the state's buffers."""
    layers, tokens = (jax.tree.leaves(jax.device_get(part)) for part in (state.layers, state.tokens))
    out = {}
    for number in range(len(layers[0]) if layers else 0):
        out[f"layer {number + 1}"] = _joined(leaf[number] for leaf in layers)
    if tokens:
        out["tokens"] = _joined(tokens)
    return out


def _joined(leaves) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float32).reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _norm_B(memory_BxX: np.ndarray) -> np.ndarray:
    return np.linalg.norm(memory_BxX, axis=1)


def table(writes: Writes) -> str:
    """A line for each place."""
    lines = []
    for place, changes_SxB in writes.changes.items():
        wrote = changes_SxB > 0
        lines.append(
            {
                "memory": place,
                "segments that write": f"{wrote.sum():,} of {wrote.size:,}",
                "share": f"{wrote.mean():.3f}",
                "their mean change": f"{changes_SxB[wrote].mean():.3f}" if wrote.any() else "-",
                "largest": f"{changes_SxB.max():.3f}",
                "all together": f"{writes.moved[place].mean():.3f}",
            }
        )
    return format_table(lines, list(lines[0])) if lines else "the facts left nothing in memory"


def largest(writes: Writes, count: int, T: int) -> list[tuple[str, float, np.ndarray]]:
    """(place, change, ids of the segment) of those that changed each place most, the largest first; fewer where fewer wrote."""
    found = []
    for place, changes_SxB in writes.changes.items():
        for at in np.argsort(-changes_SxB, axis=None, kind="stable")[:count]:
            segment, row = np.unravel_index(at, changes_SxB.shape)
            if changes_SxB[segment, row] > 0:
                ids = writes.text_BxN[row, segment * T : (segment + 1) * T]
                found.append((place, float(changes_SxB[segment, row]), ids))
    return found


def read(task: BabilongBatches, rows: int, segments: int, facts_within: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """(stories, text behind them), [rows, N] each, in whole segments."""
    first = -(-facts_within // T) * T
    end, samples = first + segments * T, task.samples("test", facts_within, SAMPLES_SEED)
    contexts = np.stack([dataclasses.replace(samples.sample(index), context_length=end).read(0, end) for index in range(rows)])
    return contexts[:, :first], contexts[:, first:]


def run(
    workdir: Path,
    checkpoint: str | int,
    *,
    rows: int,
    segments: int,
    facts_within: int,
    show: int,
    stories: str | None,
    data_path: str | None,
) -> str:
    """What the command prints.

    Raises:
        ValueError: the run is of another task, or has no memory.
    """
    config = resolve(run_config(workdir, data_path, stories))
    task = config.task
    if not isinstance(task, BabilongBatches):
        raise ValueError(f"the run in {workdir} is not of task {BabilongBatches.name!r}")
    split_cpu(config.mesh.cpu_devices)
    trained = load(workdir, checkpoint, data_path, stories)
    T = config.model.recurrence.segment_length
    mesh = mesh_for(trained.mesh, rows)
    reader = Reader(
        config.model, trained.on(mesh).params, mesh, rows=rows, schedule="sequential", new_tokens=1, end_id=task.codec.end_id,
        question=task.question,
    )  # fmt: skip
    if not jax.tree.leaves(reader.empty()):
        raise ValueError(f"the run in {workdir} has no memory that could write")
    writes = observe(reader, *read(task, rows, segments, facts_within, T))
    shown = [f"{place}, {change:.3f}: {task.codec.decode_answer(ids)}" for place, change, ids in largest(writes, show, T)]
    head = f"{workdir.name}, step {trained.step}: {rows} rows of {segments} segments of {T} tokens, behind facts within {facts_within:,}"
    return "\n".join([head, table(writes), *shown])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--checkpoint", default="best", help="best, last, or a step")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--segments", type=int, default=128)
    parser.add_argument("--facts_within", type=int, default=4096)
    parser.add_argument("--show", type=int, default=3)
    parser.add_argument("--stories")
    parser.add_argument("--data_path")
    args = parser.parse_args(argv)
    for name, least in (("rows", 1), ("segments", 1), ("facts_within", 1), ("show", 0)):
        if getattr(args, name) < least:
            sys.exit(f"error: --{name}={getattr(args, name)} must be at least {least}")
    settings = dict(vars(args))
    workdir, checkpoint = settings.pop("workdir"), settings.pop("checkpoint")
    try:
        print(run(workdir, checkpoint_choice(checkpoint), **settings))
    except (ValueError, WorkdirError, CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
