"""Training speed of several runs, one against the other: their training steps take turns in one process.

    python benchmarks/steps_in_turn.py WORKDIR... [--rounds=7] [--steps=4]

A workdir is one that train.py made (its config.json is read, nothing is written). In every round each run takes `steps` optimizer steps on
real batches; tokens/s is the median over rounds, after one round that is not counted. So whatever else the machine does, it does to all.
temp MB is the compiled step's peak temporary memory (XLA's memory analysis): no parameters, gradients or optimizer state. One JSON object
a run, in the order given: workdir, parameters, state_floats_a_row, temp_mb, device, tokens_per_s, slowest, fastest.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax  # noqa: E402

from armt_jax.config import Config, resolve  # noqa: E402
from armt_jax.evaluation.evaluate import run_config  # noqa: E402
from armt_jax.parallel.mesh import make_mesh, put_batch  # noqa: E402
from armt_jax.parallel.processes import split_cpu  # noqa: E402
from armt_jax.training import carried  # noqa: E402
from armt_jax.training import step as steps  # noqa: E402
from armt_jax.training.optimizer import make_optimizer  # noqa: E402
from armt_jax.training.workdir import WorkdirError  # noqa: E402


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


class Training:
    """The training step of a run's last stage, compiled, from fresh parameters."""

    def __init__(self, workdir: str, config: Config, batches: int):
        self.workdir, self.speeds = workdir, []
        mesh, source, stage = make_mesh(config.mesh), config.tasks[-1], config.train.stages[-1]
        rows, model = config.train.batch_of(stage), config.models[-1]
        optimizer = make_optimizer(config.train.optimizer_of(stage), stage.steps)
        carries, answers = config.carries_memory(len(config.tasks) - 1), source.num_answers
        params = steps.create_params(model, config.seed, mesh)
        memory = carried.fresh(model, rows, mesh) if carries else None
        self.state = steps.TrainState(params, steps.create_opt_state(optimizer, params, mesh), memory)
        self.batches = [put_batch(source.batch(config.seed, i, rows), mesh) for i in range(batches)]
        step = steps.make_train_step(model, optimizer, mesh, num_answers=answers, accumulate=config.train.accumulate, carries=carries)
        self.step = step.lower(self.state, self.batches[0], jax.random.key(0)).compile()
        self.facts = {
            "parameters": count(params), "state_floats_a_row": count(carried.abstract_memory(model, rows)) // rows,
            "temp_mb": round(self.step.memory_analysis().temp_size_in_bytes / 2**20, 1), "device": jax.devices()[0].device_kind,
        }  # fmt: skip

    def round(self, *, counted: bool) -> None:
        start = time.perf_counter()
        for batch in self.batches:
            self.state, metrics = self.step(self.state, batch, jax.random.key(0))
        jax.block_until_ready(metrics)
        if counted:
            tokens = sum(batch.tokens_BxN.size for batch in self.batches)
            self.speeds.append(tokens / (time.perf_counter() - start))

    def row(self) -> dict:
        speed = {"tokens_per_s": statistics.median(self.speeds), "slowest": min(self.speeds), "fastest": max(self.speeds)}
        return {"workdir": self.workdir, **self.facts, **{name: round(value, 1) for name, value in speed.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < 1:
        parser.error(f"--rounds={args.rounds} and --steps={args.steps} must be at least 1")
    try:
        configs = [resolve(run_config(Path(workdir))) for workdir in args.workdirs]
    except (ValueError, WorkdirError) as error:
        sys.exit(f"error: {error}")
    devices = sorted({config.mesh.cpu_devices for config in configs})
    if len(devices) > 1:
        sys.exit(f"error: mesh.cpu_devices is {' in one run and '.join(map(str, devices))} in another: one process cannot have both")
    split_cpu(devices[0])
    trainings = [Training(workdir, config, args.steps) for workdir, config in zip(args.workdirs, configs, strict=True)]
    for i in range(args.rounds + 1):
        for training in trainings:
            training.round(counted=i > 0)
    for training in trainings:
        print(json.dumps(training.row()), flush=True)


if __name__ == "__main__":
    main()
