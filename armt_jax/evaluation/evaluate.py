"""Evaluation of a trained run: any task size, any number of batches of the test split, sums before the one division."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from armt_jax.checkpoint import Checkpoints
from armt_jax.config import Config, override, plain, resolve
from armt_jax.data.babilong import BabilongBatches
from armt_jax.model import ModelConfig
from armt_jax.parallel.mesh import MeshConfig, make_mesh, process_rows
from armt_jax.parallel.rules import shardings
from armt_jax.recurrence.segments import num_segments
from armt_jax.tasks import Batch, Task
from armt_jax.training import step as steps
from armt_jax.training.restore import restore_target
from armt_jax.training.workdir import read_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's best checkpoint, ready to evaluate. `raw` is the plain config it was trained with."""

    workdir: Path
    raw: dict[str, Any]
    config: Config
    mesh: Any
    params: Any
    step: int

    @property
    def trained_to(self) -> int:
        """The largest task size it was trained on."""
        return max(task.size for task in self.config.tasks)

    def on(self, mesh: Mesh) -> "Trained":
        """The same run with its parameters on another mesh of this process's devices."""
        if mesh == self.mesh:
            return self
        return dataclasses.replace(self, mesh=mesh, params=jax.device_put(self.params, shardings(self.params, mesh)))


def run_config(workdir: Path, data_path: str | None = None, stories: str | None = None) -> dict[str, Any]:
    """The plain config a run was trained with. data_path: where its text lies now; None: where it lay. stories: the same of the bAbI files
    of a run that was trained on them.

    Raises:
        WorkdirError: not a run's folder. ValueError: a path for a run without a text.
    """
    raw = plain(read_config(workdir))
    is_babilong = raw.get("task", {}).get("name") == BabilongBatches.name
    if data_path is not None:
        if "data" not in raw and not is_babilong:
            raise ValueError(f"--data_path={data_path}: the run in {workdir} has no text, its task is {raw['task']['name']!r}")
        raw = override(raw, {"task.background.path" if is_babilong else "data.path": data_path})
    if stories is not None:
        if not is_babilong:
            raise ValueError(f"--stories={stories}: the run in {workdir} is not of task {BabilongBatches.name!r}")
        if raw["task"].get("stories") is not None:
            raw = override(raw, {"task.stories": stories})
    return raw


def checkpoint_choice(text: str) -> int | str:
    """What --checkpoint names: "best", "last", or a step. ValueError for anything else."""
    if text in ("best", "last"):
        return text
    if not text.isdecimal():
        raise ValueError(f"--checkpoint={text} must be best, last, or a step number")
    return int(text)


def load(workdir: str | Path, checkpoint: str | int = "best", data_path: str | None = None, stories: str | None = None) -> Trained:
    """Restores a run's best (or "last", or a numbered) checkpoint, on a mesh of the devices here. data_path, stories: as in `run_config`.

    Raises:
        WorkdirError: not a run's folder. CheckpointError: no usable checkpoint in it.
    """
    workdir = Path(workdir).absolute()
    raw = run_config(workdir, data_path, stories)
    config = resolve(raw)
    mesh = mesh_here(config)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(restore_target(config, raw, mesh), step=checkpoint)
    return Trained(workdir, raw, config, mesh, restored.state.params, restored.step)


def mesh_here(config: Config) -> Mesh:
    """The run's mesh; where that does not fit the devices here, as many of them as fit, all on `data`, and a warning.

    Raises:
        ValueError: it does not fit, and several processes share the devices.
    """
    # Rows that carry memory are part of a checkpoint, and lie on the mesh as a batch does.
    carried = [config.train.batch_of(stage) for i, stage in enumerate(config.train.stages) if config.carries_memory(i)]
    try:
        mesh = make_mesh(config.mesh)
        for rows in carried:
            process_rows(rows, mesh)
        return mesh
    except ValueError as error:
        return _data_mesh(jax.devices(), math.gcd(config.evaluation.batch_size, *carried), error)


def mesh_for(mesh: Mesh, rows: int) -> Mesh:
    """`mesh`, if batches of `rows` divide over it; else as many of its devices as fit, all on `data`, and a warning.

    Raises:
        ValueError: they do not divide, and several processes share the mesh.
    """
    try:
        process_rows(rows, mesh)
        return mesh
    except ValueError as error:
        return _data_mesh(list(mesh.devices.flat), rows, error)


def _data_mesh(devices: Sequence[jax.Device], rows: int, reason: ValueError) -> Mesh:
    """A mesh of copies of the model, over the most devices that `rows` divide over."""
    if jax.process_count() > 1:
        raise reason
    count = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
    logging.warning("%s. Evaluated with mesh data=%d, on %d of %d devices", reason, count, count, len(devices))
    return make_mesh(MeshConfig(data=count), devices[:count])


def identity(trained: Trained, point: Mapping[str, Any]) -> str:
    """Names a result: same checkpoint, same config, same overrides."""
    text = json.dumps([trained.step, trained.raw, dict(point)], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=8)
def _step(model: ModelConfig, mesh, num_answers: int):
    return steps.make_evaluation_step(model, mesh, num_answers=num_answers)


def evaluate(
    trained: Trained, model: ModelConfig, task: Task, *, batch_size: int, batches: int, split: str = "test", memory: str = "on"
) -> dict[str, float]:
    """Exact match and mean loss over `batches` batches of the task at its largest size, with the number of answers they rest on.

    memory: "off" empties it before every segment.
    """
    task = task.largest()
    batches = steps.read_batches(
        task, trained.mesh, seed=trained.config.seed, split=split, batch_size=batch_size, batches=batches
    )  # fmt: skip
    batches = map(functools.partial(MEMORY[memory], segment_length=model.recurrence.segment_length), batches)
    total = steps.measure(_step(model, trained.mesh, task.num_answers), trained.params, None, batches, trained.mesh)
    loss, exact = total.loss / max(total.weight, 1e-9), total.right / max(total.answers, 1.0)
    return {"exact_match": exact, "loss": loss, "answers": int(total.answers)}


def without_memory(batch: Batch, segment_length: int) -> Batch:
    """The same rows, with the memory emptied before every segment."""
    rows, length = batch.tokens_BxN.shape
    return dataclasses.replace(batch, reset_BxS=np.ones((rows, num_segments(length, segment_length)), bool))


# How a batch is read, by `evaluation.memory`.
MEMORY = {"on": lambda batch, segment_length: batch, "off": without_memory}
