"""What devices exchange in a training step as their number grows, read off the compiled program: bytes against the parameters' bytes.

    python benchmarks/communication.py --shape=lm|tiny [--json]                   all meshes of one and two devices in one process
    python benchmarks/communication.py --shape=lm --processes=2 [--json]          two devices in two processes, joined by a coordinator

Weak scaling: every device of `data` and `fsdp` gets the shape's own batch, so tokens grow with the devices; `tensor` and `stage` split one
batch's work. The training step is the real one, with AdamW and clipping; nothing runs, so no clock is read. Bytes are of what each device
holds after an exchange, all runs of a loop counted. Shapes are those of train_step.py; the schedule is sequential, on `stage` diagonal.
"""

import argparse
import dataclasses
import json
import socket
import sys

import jax
import numpy as np
from train_step import SHAPES, build

from armt_jax.launch.local import run_all
from armt_jax.parallel.collectives import collectives, traffic
from armt_jax.parallel.mesh import AXES, MeshConfig, batch_sharding, make_mesh, replicated
from armt_jax.parallel.processes import initialize, is_main, split_cpu
from armt_jax.tasks import Batch
from armt_jax.training import step as steps
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer

# By the number of devices.
MESHES = {1: [dict(data=1)], 2: [dict(data=2), dict(data=1, fsdp=2), dict(data=1, tensor=2), dict(data=1, stage=2)]}


def shape_config(shape: str, schedule: str):
    """(model config, rows per device, tokens per row) of a shape of train_step.py."""
    model, ids = build(shape, "armt", "float32")
    recurrence = dataclasses.replace(model.config.recurrence, schedule=schedule, gradient="reversible")
    return dataclasses.replace(model.config, recurrence=recurrence), ids.shape[0], ids.shape[1] - 1


def compiled_step(config, mesh, rows: int, tokens: int):
    """(compiled training step, its abstract state)."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, clip="norm"), 1)
    state = steps.abstract_state(config, optimizer, mesh)
    kinds = dict(tokens_BxN=np.int32, targets_BxN=np.int32, weights_BxN=np.float32, answers_BxN=np.int32)
    placed = batch_sharding(mesh)
    batch = Batch(**{name: jax.ShapeDtypeStruct((rows, tokens), kind, sharding=placed) for name, kind in kinds.items()})
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
    step = steps.make_train_step(config, optimizer, mesh, num_answers=0, accumulate=1)
    return step.lower(state, batch, key).compile(), state


def row(shape: str, axes: dict[str, int]) -> dict:
    schedule = "diagonal" if axes.get("stage", 1) > 1 else "sequential"
    config, rows, tokens = shape_config(shape, schedule)
    devices = np.prod(list(axes.values()))
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[:devices])
    rows *= mesh.shape["data"] * mesh.shape["fsdp"]
    compiled, state = compiled_step(config, mesh, rows, tokens)
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    sums = traffic(collectives(compiled.as_text()))
    exchanged = sum(each.bytes for each in sums)
    return dict(
        shape=shape, mesh={axis: mesh.shape[axis] for axis in AXES if mesh.shape[axis] > 1}, devices=int(devices),
        processes=jax.process_count(), schedule=schedule, tokens=rows * tokens, parameter_bytes=parameters, exchanged_bytes=exchanged,
        ratio=round(exchanged / parameters, 4), bytes_per_token=round(exchanged / (rows * tokens), 1),
        kinds={each.kind: dict(number=each.number, bytes=each.bytes, in_loops=each.in_loops) for each in sums},
    )  # fmt: skip


def show(rows: list[dict]) -> None:
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {jax.process_count()} process(es)")
    print(f"{'mesh':12}{'schedule':12}{'tokens':>8}{'parameters':>13}{'exchanged':>14}{'ratio':>9}  of it, by kind (in loops)")
    for r in rows:
        mesh = " x ".join(f"{axis} {size}" for axis, size in r["mesh"].items()) or "1 device"
        kinds = ", ".join(f"{kind} {k['bytes']:,} ({k['in_loops']:,})" for kind, k in r["kinds"].items()) or "nothing"
        print(f"{mesh:12}{r['schedule']:12}{r['tokens']:8,}{r['parameter_bytes']:13,}{r['exchanged_bytes']:14,}{r['ratio']:9.4f}  {kinds}")


def start_processes(number: int) -> int:
    """Starts this script once for each process of a job. Returns the exit code of the first that failed, else 0."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, *sys.argv, f"--coordinator=localhost:{port}"]
    return run_all([[*command, f"--process={i}"] for i in range(number)], [{}] * number, together=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="lm")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--axes", default=",".join(AXES), help="of the meshes of two devices, those over one of these")
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    args = parser.parse_args()
    if args.processes > 1 and args.coordinator is None:
        sys.exit(start_processes(args.processes))
    if args.processes > 1:
        initialize(args.coordinator, args.processes, args.process)
    else:
        split_cpu(2)
    counts = [args.processes] if args.processes > 1 else sorted(MESHES)
    axes = args.axes.split(",")
    if unknown := sorted(set(axes) - set(AXES)):
        parser.error(f"--axes: {unknown[0]} is unknown, use some of {', '.join(AXES)}")
    meshes = [mesh for count in counts for mesh in MESHES[count] if count == 1 or any(mesh.get(axis, 1) > 1 for axis in axes)]
    rows = [row(args.shape, mesh) for mesh in meshes]
    if not is_main():
        return
    if not args.json:
        return show(rows)
    for each in rows:
        print(json.dumps(each))


if __name__ == "__main__":
    main()
