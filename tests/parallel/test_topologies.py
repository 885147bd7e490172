"""A checkpoint goes from mesh to mesh, 1 -> 8 -> 2 processes of 4 -> 1: the same values, and the same next step."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Restores what is there (or makes a first state and takes a step), saves it again under the next number, and takes the next step.
SCRIPT = """
import json, sys
import jax, numpy as np
from armt_jax.checkpoint import Checkpoints, checksums, named_leaves
from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.parallel import processes
from armt_jax.parallel.mesh import MeshConfig, make_mesh, process_rows, put_batch
from armt_jax.tasks import Batch
from armt_jax.training import carried as carry, step as steps
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer
from armt_jax.training.step import TrainState

directory, meshes, job = json.loads(sys.argv[1])
if job:
    processes.initialize(job[0], 2, job[1])
B, S, T, V = 8, 2, 4, 16
rng = np.random.default_rng(0)
tokens, targets = rng.integers(0, V, (2, B, S * T), dtype=np.int32)
batch = Batch(tokens, targets, rng.choice([0.0, 0.5, 1.0], tokens.shape).astype(np.float32), np.zeros_like(tokens))
backbone = dict(name="llama", vocab_size=V, num_layers=2, width=16, num_heads=4, max_positions=16, kernel_std=None, embedding_std=0.5)
memory = dict(name="armt", num_memory_tokens=2, d_mem=8, value_std=0.3, key_norm="l2")
config = ModelConfig(resolve_backbone(backbone), resolve_memory(memory), RecurrenceConfig(T, schedule="diagonal"))
optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.1), 10)

for axes in meshes:
    size = int(np.prod([abs(n) for n in axes]))
    mesh = make_mesh(MeshConfig(*axes), jax.devices()[:size])
    step = steps.make_train_step(config, optimizer, mesh, num_answers=0, accumulate=1, carries=True)
    rows = jax.tree.map(lambda a: a[process_rows(B, mesh)], batch)
    with Checkpoints(directory) as store:
        last = store.latest_step()
        if last is None:
            params = steps.create_params(config, 0, mesh)
            state = TrainState(params, steps.create_opt_state(optimizer, params, mesh), carry.fresh(config, B, mesh))
            state, _ = step(state, put_batch(rows, mesh), jax.random.key(0))
            last = 0
        else:
            state = store.restore(steps.abstract_state(config, optimizer, mesh, B)).state
        store.save(last + 1, state, {}, wait=True)
        values = checksums(named_leaves(state)[0])
        spread = len(state.params["layers"]["block"]["mlp"]["up"]["kernel"].sharding.device_set)
        state, metrics = step(state, put_batch(rows, mesh), jax.random.key(0))
        if processes.is_main():
            print(json.dumps([spread, values, float(metrics.loss), float(metrics.gradient_norm)]), flush=True)
"""


def start(directory, devices: int, meshes, job=None):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_llvm_disable_expensive_passes=true"
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    command = [sys.executable, "-c", SCRIPT, json.dumps([str(directory), meshes, job])]
    return subprocess.Popen(command, env=environ, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(jobs, timeout=1800):
    """What process 0 printed."""
    try:
        texts = [job.communicate(timeout=timeout) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0] * len(jobs), [err[-2000:] for _, err in texts]
    return [json.loads(line) for line in texts[0][0].splitlines() if line.startswith("[") and not line.startswith("[Gloo]")]


def same(found, devices):
    assert [each[0] for each in found] == devices
    for _, values, loss, norm in found:
        assert values == found[0][1], "parameters, moments and carried memory, to the last bit"
        np.testing.assert_allclose(loss, found[0][2], rtol=1e-6)
        np.testing.assert_allclose(norm, found[0][3], rtol=1e-5)


@pytest.mark.multiprocess
def test_from_one_device_to_eight_to_two_processes_of_four_and_back(tmp_path):
    directory = tmp_path / "checkpoints"
    found = finish([start(directory, 8, [(1, 1, 1, 1), (2, 2, 2, 1), (4, 1, 1, 2)])])
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    found += finish([start(directory, 4, [(2, 2, 1, 2)], (address, i)) for i in range(2)])
    found += finish([start(directory, 1, [(1, 1, 1, 1)])])
    same(found, [1, 8, 8, 8, 1])
