"""Real placement on eight CPU devices: one process with eight, two processes with four; each a script of its own."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

IMPORTS = """
import jax, numpy as np, optax, sys
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from armt_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, process_rows, put_batch, replicated
from armt_jax.parallel import processes
from armt_jax.parallel.rules import shardings, shardings_like
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer
"""

ONE_PROCESS = (
    IMPORTS
    + """
mesh = make_mesh(MeshConfig(fsdp=2, tensor=2, stage=2))
assert dict(mesh.shape) == {"data": 1, "stage": 2, "fsdp": 2, "tensor": 2}, mesh
assert make_mesh(MeshConfig()).shape["data"] == 8
assert make_mesh(MeshConfig(data=2), jax.devices()[:2]).devices.size == 2

# Parameters and optimizer state land where the rules say, and stay there through a step.
shapes = {
    "embed": {"table": (16, 8)},
    "final_norm": {"scale": (8,)},
    "layers": {"block": {"mlp": {"up": {"kernel": (4, 8, 12), "bias": (4, 12)}}}, "memory": {"beta": {"bias": (4, 1)}}},
}
make_params = lambda: jax.tree.map(lambda shape: jnp.ones(shape), shapes, is_leaf=lambda node: isinstance(node, tuple))
placement = shardings(jax.eval_shape(make_params), mesh)
params = jax.jit(make_params, out_shardings=placement)()
assert all(jax.tree.leaves(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, params, placement)))
kernel = params["layers"]["block"]["mlp"]["up"]["kernel"]
assert kernel.sharding.spec == P("stage", "fsdp", "tensor") and kernel.addressable_shards[0].data.shape == (2, 4, 6)

optimizer = optax.MultiSteps(make_optimizer(OptimizerConfig(memory_learning_rate=1e-2, weight_decay=0.1), 5), 2)
state_placement = shardings_like(jax.eval_shape(optimizer.init, params), params, placement, mesh)
state = jax.jit(optimizer.init, out_shardings=state_placement)(params)
for moments in (optax.tree.get(state, "mu"), optax.tree.get(state, "nu"), state.acc_grads):
    assert jax.tree.map(lambda leaf: leaf.sharding, moments) == placement
for count in (state.mini_step, state.gradient_step, *dict(optax.tree.get_all_with_path(state, "count")).values()):
    assert count.sharding == replicated(mesh)

def step(params, state):
    updates, state = optimizer.update(params, state, params)
    return optax.apply_updates(params, updates), state

step = jax.jit(step, out_shardings=(placement, state_placement), donate_argnums=(0, 1))
for _ in range(2):
    params, state = step(params, state)
assert jax.tree.map(lambda leaf: leaf.sharding, params) == placement
np.testing.assert_allclose(params["final_norm"]["scale"], 1 - 1e-3, rtol=1e-6)
np.testing.assert_allclose(params["layers"]["memory"]["beta"]["bias"], 1 - 1e-2, rtol=1e-6)

# Same shape, different paths; same path, different shape; and the longest path counts.
tree = {"mu": {"a": {"k": jnp.ones(4)}, "k": jnp.ones(4), "row": {"k": jnp.ones(2)}, "xk": jnp.ones(4)}}
owners = {"a": {"k": jnp.ones(4)}, "k": jnp.ones(4)}
split, whole = batch_sharding(mesh), replicated(mesh)
assert shardings_like(tree, owners, {"a": {"k": split}, "k": whole}, mesh)["mu"] == {
    "a": {"k": split}, "k": whole, "row": {"k": whole}, "xk": whole}
assert shardings_like(tree, owners, {"a": {"k": whole}, "k": split}, mesh)["mu"] == {
    "a": {"k": whole}, "k": split, "row": {"k": whole}, "xk": whole}

# Batches: rows over data and fsdp, and what does not divide is refused.
mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
rows = np.arange(24).reshape(8, 3)
batch = put_batch({"x": rows, "mask": rows[:, 0] > 3}, mesh)
assert batch["x"].sharding == batch_sharding(mesh) and batch["mask"].shape == (8,)
assert batch["x"].addressable_shards[0].data.shape == (2, 3)
np.testing.assert_array_equal(batch["x"], rows)
assert process_rows(8, mesh) == slice(0, 8)
for refused in (lambda: process_rows(6, mesh), lambda: put_batch(rows[:6], mesh)):
    try:
        refused()
    except ValueError as error:
        assert "6 rows" in str(error) and "data=2 * fsdp=2" in str(error) and "multiple of 4" in str(error), error
    else:
        raise AssertionError("6 rows over 4 parts were accepted")
"""
)

TWO_PROCESSES = (
    IMPORTS
    + """
process = int(sys.argv[2])
assert processes.initialize(sys.argv[1], 2, process)
assert processes.is_main() == (process == 0) and jax.device_count() == 8
rows = np.arange(16).reshape(8, 2)
halves, everything = [slice(0, 4), slice(4, 8)], [slice(0, 8)] * 2
for config, expected in (
    (MeshConfig(), halves),
    (MeshConfig(data=1, fsdp=4, tensor=2), halves),
    (MeshConfig(data=2, fsdp=2, tensor=2), halves),
    (MeshConfig(data=1, fsdp=4, stage=2), everything),
    (MeshConfig(data=1, tensor=8), everything),
):
    mesh = make_mesh(config)
    mine = process_rows(8, mesh)
    assert mine == expected[process], (config, mine)
    batch = put_batch(rows[mine], mesh)
    assert batch.shape == (8, 2) and batch.sharding == batch_sharding(mesh)
    for shard in batch.addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])
    total = jax.jit(lambda x: (x * jnp.arange(8)[:, None]).sum(), out_shardings=replicated(mesh))(batch)
    assert int(total.addressable_data(0)) == int((rows * np.arange(8)[:, None]).sum())
jax.distributed.shutdown()
"""
)


def start(script, devices, *arguments):
    environ = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if devices:
        environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environ,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(jobs, timeout=120):
    try:
        for job in jobs:
            output, _ = job.communicate(timeout=timeout)
            assert job.returncode == 0, output
    finally:
        for job in jobs:
            job.kill()


def test_eight_devices_in_one_process():
    finish([start(ONE_PROCESS, 8)])


def test_two_processes_of_four_devices():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    finish([start(TWO_PROCESSES, 4, f"localhost:{port}", str(process)) for process in range(2)])
