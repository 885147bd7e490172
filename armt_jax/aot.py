"""Ahead of time: compiles a config's training step for a TPU slice or GPUs that need not be there, and says whether it fits.

    pip install -e '.[aot]'                                                libtpu, which compiles without a TPU
    python -m armt_jax.aot --config=configs/scale.py:llama-pipeline --topology=v5e:4x4 [--table=runs/aot.md]
    pip install -e '.[aot-gpu]'                                            JAX's CUDA plugin, which compiles without a GPU and without CUDA
    python -m armt_jax.aot --config=configs/scale.py:llama-pipeline --topology=h100:2x8

Prints bytes per chip, operations per step, and what chips exchange; of a curriculum, those of the stage with the largest batches. Exit code
1: it does not fit the chip's memory, or the config is wrong. Of a text no data is read, the config says enough; of BABILong a batch is
made, so its background must be there.
"""

import dataclasses
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from armt_jax.parallel.topologies import GIB, chip_memory, compiler_options, topology_devices

# libtpu asks for these on a machine that is not a TPU's; and no other part of JAX shall look for one.
ENVIRONMENT = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, path[:variant].", lock_config=False, accept_new_attributes=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice, like v5e:4x4 or v5p:4x4x4, or GPUs, like h100:8 or h100:4x8.")
_TABLE = flags.DEFINE_string("table", None, "Markdown file that gets a row for this program.")


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one compiled training step. Bytes are per chip, flops over all of them, traffic per chip and step.

    arguments, temporaries, outputs: in bytes; outputs without what the arguments' buffers are reused for. limit: the chip's memory.
    """

    name: str
    topology: str
    mesh: str
    chips: int
    tokens: int
    segments: int
    arguments: int
    temporaries: int
    outputs: int
    limit: int
    flops: int
    traffic: tuple[Any, ...]
    utilisation: float
    seconds: float

    @property
    def bytes(self) -> int:
        return self.arguments + self.temporaries + self.outputs

    @property
    def exchanged_per_token(self) -> float:
        """Bytes that all chips together hold after exchanges, for each token of the step."""
        return sum(each.bytes for each in self.traffic) * self.chips / self.tokens

    @property
    def fits(self) -> bool:
        return self.bytes <= self.limit


class DoesNotFit(RuntimeError):
    """The compiler found no way to run the program in the chip's memory."""


def abstract_batch(source, rows: int, sharding):
    """Shapes of a batch."""
    import jax
    import numpy as np

    from armt_jax.data import TextSource
    from armt_jax.tasks import Batch

    if not isinstance(source, TextSource):
        made = source.largest().batch(0, 0, rows)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), made)
    shape = (rows, source.row_length(source.size))
    kinds = dict(tokens_BxN=np.int32, targets_BxN=np.int32, weights_BxN=np.float32, answers_BxN=np.int32)
    batch = {name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for name, kind in kinds.items()}
    if source.has_resets:
        batch["reset_BxS"] = jax.ShapeDtypeStruct((rows, source.segments), bool, sharding=sharding)
    return Batch(**batch)


def compile_step(raw: Mapping[str, Any], devices, options: Mapping[str, Any] | None = None):
    """(compiled training step, its config, mesh, abstract state, abstract batch) of a plain config over `devices`.

    It is that of the stage with the most tokens in a batch, whose model and task stand in the config returned. options: the compiler's.
    """
    import jax

    from armt_jax.config import resolve_without_data
    from armt_jax.parallel.mesh import batch_sharding, make_mesh, replicated
    from armt_jax.training import step as steps
    from armt_jax.training.optimizer import make_optimizer

    config = resolve_without_data(raw)
    mesh, train = make_mesh(config.mesh, devices), config.train
    batches = [
        abstract_batch(task, train.batch_of(stage), batch_sharding(mesh)) for task, stage in zip(config.tasks, train.stages, strict=True)
    ]
    largest = max(range(len(batches)), key=lambda i: batches[i].tokens_BxN.size)
    config = dataclasses.replace(config, model=config.models[largest], task=config.tasks[largest])
    batch, stage, carries = batches[largest], train.stages[largest], config.carries_memory(largest)
    optimizer, rows = make_optimizer(train.optimizer_of(stage), stage.steps), train.batch_of(stage)
    state = steps.abstract_state(config.model, optimizer, mesh, rows if carries else None)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    step = steps.make_train_step(
        config.model, optimizer, mesh, num_answers=config.task.num_answers, accumulate=train.accumulate, carries=carries
    )
    try:
        return step.lower(state, batch, key).compile(dict(options or {})), config, mesh, state, batch
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(" ".join(str(error).split())[:600]) from error


def utilisation(model, segments: int, stages: int) -> float:
    """Share of the cells computed that are in the grid: S / (S + L - 1) under the diagonal schedule, which computes all L layers on each of
    S + L - 1 diagonals, on however many stages they lie. The sequential schedule computes no other cells, but its stages take turns."""
    if model.recurrence.schedule == "diagonal":
        return segments / (segments + model.backbone.num_layers - 1)
    return 1 / stages


def report(name: str, topology: str, raw: Mapping[str, Any]) -> Report:
    """Compiles the training step of a plain config for a topology. Raises DoesNotFit, and ValueError for a wrong config or topology."""
    from armt_jax.parallel.collectives import collectives, traffic
    from armt_jax.training.step import model_flops

    devices = topology_devices(topology)
    began = time.monotonic()
    compiled, config, mesh, state, batch = compile_step(raw, devices, compiler_options(topology))
    seconds, memory = time.monotonic() - began, compiled.memory_analysis()
    segments = math.ceil(batch.tokens_BxN.shape[1] / config.model.recurrence.segment_length)
    return Report(
        name=name, topology=topology, mesh=" x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "1 chip",
        chips=mesh.size, tokens=batch.tokens_BxN.size, segments=segments, arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes, outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        limit=chip_memory(topology), flops=model_flops(config.model, config.task.num_answers, state, batch),
        traffic=tuple(traffic(collectives(compiled.as_text()))),
        utilisation=utilisation(config.model, segments, mesh.shape["stage"]), seconds=seconds,
    )  # fmt: skip


def _gigabytes(size: int) -> str:
    return f"{size / GIB:.2f}"


def describe(found: Report) -> str:
    lines = [
        f"{found.name} on {found.topology}: mesh {found.mesh}, {found.tokens:,} tokens a step in rows of {found.segments} segments",
        f"GiB per chip: arguments {_gigabytes(found.arguments)}, temporaries {_gigabytes(found.temporaries)}, other outputs "
        f"{_gigabytes(found.outputs)}; together {_gigabytes(found.bytes)} of {_gigabytes(found.limit)}",
        f"model operations per step, all chips: {found.flops:.3e}; busy with cells of the grid: {found.utilisation:.1%}; compiled in "
        f"{found.seconds:.0f} s",
    ]
    for kind in found.traffic:
        sizes = f"{_gigabytes(kind.bytes)} GiB per chip and step, {_gigabytes(kind.in_loops)} of them in loops"
        lines.append(f"{kind.kind}: {kind.number} in the program, {sizes}")
    total = f"exchanged for each token: {found.exchanged_per_token:,.0f} bytes, all chips together"
    return "\n".join([*lines, total if found.traffic else "no exchange between chips"])


HEADER = (
    "| config | slice | mesh | tokens a step | arguments | temporaries | of | fits | operations | busy | bytes a token | "
    "exchanged a step (in loops) |\n"
    "|---|---|---|---:|---:|---:|---:|---|---:|---:|---:|---|\n"
)


def row(found: Report) -> str:
    traffic = ", ".join(f"{t.kind} {_gigabytes(t.bytes)} ({_gigabytes(t.in_loops)})" for t in found.traffic) or "nothing"
    cells = (
        found.name, found.topology, found.mesh, f"{found.tokens:,}", _gigabytes(found.arguments), _gigabytes(found.temporaries),
        _gigabytes(found.limit), "yes" if found.fits else "no", f"{found.flops:.2e}", f"{found.utilisation:.0%}",
        f"{found.exchanged_per_token:,.0f}", traffic,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def refused_row(name: str, topology: str, error: DoesNotFit) -> str:
    """Of a program that the compiler gave up on. Its message says how much memory the program asked for."""
    asked = re.search(r"temporaries \(([\d.]+[KMGT]?)\)", str(error))
    needs = asked[1] if asked else "too much to compile"
    return f"| {name} | {topology} | | | | {needs} | {_gigabytes(chip_memory(topology))} | no | | | | |\n"


def add_row(path: Path, line: str) -> None:
    """Appends a row; the first one of a file comes after a header."""
    text = path.read_text() if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + ("" if HEADER in text else HEADER) + line)


def run(argv) -> None:
    for name in ("config", "topology"):
        if flags.FLAGS[name].value is None:
            raise app.UsageError(f"--{name} is missing; for instance --config=configs/scale.py:gpt2-pipeline --topology=v5e:4x4")
    from armt_jax.config import plain

    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = Path(path).stem + (f":{variant}" if variant else "")
    write = (lambda line: add_row(Path(_TABLE.value), line)) if _TABLE.value else (lambda line: None)
    try:
        found = report(name, _TOPOLOGY.value, plain(_CONFIG.value))
    except DoesNotFit as error:
        write(refused_row(name, _TOPOLOGY.value, error))
        sys.exit(f"{name} does not fit a chip of {_TOPOLOGY.value}: {error}")
    print(describe(found))
    write(row(found))
    if not found.fits:
        sys.exit(f"{name} does not fit: {_gigabytes(found.bytes)} GiB per chip, and one of {found.topology} has {_gigabytes(found.limit)}")


def main(argv) -> None:
    from armt_jax.telemetry.failures import one_line_errors

    one_line_errors(run)(argv)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    app.run(main)
