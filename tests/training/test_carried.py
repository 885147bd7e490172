"""Memory that goes on from batch to batch: batches one after the other are one long row, on one device, in parts, and on eight."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.parallel.mesh import MeshConfig, make_mesh
from armt_jax.tasks import Batch
from armt_jax.training import carried as carry
from armt_jax.training import step as steps

ROOT = pathlib.Path(__file__).parents[2]
B, S, T, V, STEPS = 4, 2, 4, 12, 3
N = S * T
ARMT = dict(num_memory_tokens=1, d_mem=16, value_std=0.1, key_norm="l2")
MEMORIES = {
    "none": {}, "rmt": dict(num_memory_tokens=2), "armt": ARMT, "transformer_xl": dict(cache_length=6),
    "rmt_xl": dict(num_memory_tokens=2, cache_length=6), "armt_xl": ARMT | dict(cache_length=6), "parallel_rmt": dict(num_memory_tokens=1),
}  # fmt: skip


def model_config(memory, **recurrence):
    backbone = dict(name="transformer_xl", vocab_size=V, num_layers=2, width=16, num_heads=2, kernel_std=None, embedding_std=0.1)
    fields = resolve_memory(dict(name=memory, **MEMORIES[memory]))
    return ModelConfig(resolve_backbone(backbone), fields, RecurrenceConfig(T, **recurrence))


def long_batch(seed=0, resets=False):
    """One row of all the steps; the batches are cut from it."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, V, (2, B, STEPS * N), dtype=np.int32)
    weights = rng.choice([0.0, 0.5, 1.0], (B, STEPS * N)).astype(np.float32)
    reset = rng.random((B, STEPS * S)) < 0.3 if resets else None
    return Batch(tokens, targets, weights, np.zeros_like(tokens), reset_BxS=reset)


def cut(batch, i):
    part = {name: getattr(batch, name)[:, i * N : (i + 1) * N] for name in ("tokens_BxN", "targets_BxN", "weights_BxN", "answers_BxN")}
    return Batch(**part, reset_BxS=None if batch.reset_BxS is None else batch.reset_BxS[:, i * S : (i + 1) * S])


create_params = functools.cache(steps.create_params)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def spoilt(carried):
    """The same marks on a state that is not empty: a fresh row must not look at it."""
    return carried._replace(state=jax.tree.map(lambda leaf: leaf + 3.0, carried.state))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("memory", MEMORIES)
def test_batches_one_after_the_other_are_one_long_row(memory, resets, mesh):
    config, batch = model_config(memory), long_batch(resets=resets)
    params = create_params(config, 0, mesh)
    graphdef, _ = steps.abstract_model(config)
    model = nnx.merge(graphdef, params)
    step = steps.make_evaluation_step(config, mesh, num_answers=0, carries=True)
    carried, loss, weight = spoilt(carry.fresh(config, B, mesh)), 0.0, 0.0
    for i in range(STEPS):
        metrics, carried = step(params, carried, cut(batch, i))
        loss, weight = loss + float(metrics.loss), weight + float(metrics.weight)
        assert not carried.fresh_B.any()
    whole = jax.jit(lambda b: model.losses(b.tokens_BxN, b.targets_BxN, b.weights_BxN, reset_BxS=b.reset_BxS))(batch)
    np.testing.assert_allclose(loss, whole.loss_S.sum(), rtol=1e-5)
    np.testing.assert_allclose(weight, batch.weights_BxN.sum(), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), carried.state, whole.state)
    if memory != "none":
        apart = sum(float(step(params, carry.fresh(config, B, mesh), cut(batch, i))[0].loss) for i in range(STEPS))
        assert abs(apart - loss) > 1e-3, "else nothing was carried"


def test_a_fresh_row_starts_empty_and_the_others_go_on(mesh):
    config, batch = model_config("rmt_xl"), cut(long_batch(), 0)
    params = create_params(config, 0, mesh)
    step = steps.make_evaluation_step(config, mesh, num_answers=0, carries=True)
    other = spoilt(carry.fresh(config, B, mesh))
    mixed = other._replace(fresh_B=jnp.array([True, False, True, False]))
    (_, all_fresh), (_, some), (_, none) = (
        step(params, each, batch) for each in (other, mixed, other._replace(fresh_B=jnp.zeros(B, bool)))
    )
    for row, expected in enumerate((all_fresh, none, all_fresh, none)):
        for got, want in zip(jax.tree.leaves(some.state.layers), jax.tree.leaves(expected.state.layers), strict=True):
            np.testing.assert_allclose(got[:, row], want[:, row], rtol=1e-6)
        np.testing.assert_allclose(some.state.tokens[row], expected.state.tokens[row], rtol=1e-6)


def test_rows_are_renewed_by_share_and_by_seed_and_step_alone(mesh):
    rows = 2000
    carried = carry.fresh(model_config("none"), rows, mesh)
    marked = carried._replace(fresh_B=jnp.arange(rows) < 10)

    def fresh(carried, kept, seed, step):
        return np.asarray(carry.renew_rows(carried, kept, seed, step, rows, mesh).fresh_B)

    assert fresh(carried, 0.9, 0, 0).all(), "what is fresh already stays so"
    drawn = fresh(marked, 0.9, 3, 7)
    assert drawn[:10].all() and abs(drawn[10:].mean() - 0.1) < 0.03
    assert np.array_equal(drawn, fresh(marked, 0.9, 3, 7))
    assert not np.array_equal(drawn, fresh(marked, 0.9, 3, 8)) and not np.array_equal(drawn, fresh(marked, 0.9, 4, 7))


@functools.cache
def compiled(config, mesh, accumulate):
    graphdef, _ = steps.abstract_model(config)
    return jax.jit(functools.partial(steps.gradients, graphdef, 0, accumulate, mesh))


def gradient(config, mesh, accumulate, params, carried, batch):
    return compiled(config, mesh, accumulate)(params, carried, batch, None)



@pytest.mark.parametrize("memory", ["rmt_xl", "armt_xl"])
def test_the_gradient_stops_at_the_batch_and_reaches_the_first_memory(memory, mesh):
    config, batch = model_config(memory), long_batch()
    params = create_params(config, 0, mesh)
    graphdef, _ = steps.abstract_model(config)

    def mean(params, state, batch):
        out = nnx.merge(graphdef, params).losses(batch.tokens_BxN, batch.targets_BxN, batch.weights_BxN, state)
        return out.loss_S.sum() / out.weight_S.sum()

    alone = jax.jit(jax.grad(mean))
    first, _, carried = gradient(config, mesh, 1, params, carry.fresh(config, B, mesh), cut(batch, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), first, alone(params, None, cut(batch, 0)))
    second, _, _ = gradient(config, mesh, 1, params, carried, cut(batch, 1))
    expected = alone(params, carried.state, cut(batch, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), second, expected)
    if memory == "rmt_xl":
        tokens = [g["token_memory"]["tokens"][...] for g in (first, second)]
        assert jnp.abs(tokens[0]).max() > 1e-4 and not tokens[1].any()


@pytest.mark.parametrize("memory", ["rmt_xl", "armt_xl"])
def test_parts_of_a_batch_keep_their_own_rows(memory, mesh):
    config, batch = model_config(memory), long_batch(resets=True)
    params = create_params(config, 0, mesh)
    state = {1: carry.fresh(config, B, mesh), 2: carry.fresh(config, B, mesh)}
    for i in range(STEPS):
        found = {}
        for parts in state:
            *found[parts], state[parts] = gradient(config, mesh, parts, params, state[parts], cut(batch, i))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[2], found[1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state[2], state[1])


EIGHT = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.parallel.mesh import MeshConfig, make_mesh, put_batch
from armt_jax.tasks import Batch
from armt_jax.training import carried as carry, step as steps
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer
from armt_jax.training.step import TrainState

assert jax.device_count() == 8
memory = dict(name="rmt_xl", num_memory_tokens=2, cache_length=6)
backbone = dict(name="transformer_xl", vocab_size=16, num_layers=2, width=16, num_heads=2, kernel_std=None, dropout=0.1)
config = ModelConfig(resolve_backbone(backbone), resolve_memory(memory), RecurrenceConfig(4))
optimizer = make_optimizer(OptimizerConfig(learning_rate=0.02, eps=2e-2), 2)
rng = np.random.default_rng(0)


def batch(i):
    tokens, targets = np.random.default_rng(i).integers(0, 16, (2, 16, 8), dtype=np.int32)
    weights = np.random.default_rng(i).random((16, 8), dtype=np.float32)
    return Batch(tokens, targets, weights, np.zeros_like(tokens), reset_BxS=np.random.default_rng(i).random((16, 2)) < 0.2)


def train(mesh, accumulate=1):
    params = steps.create_params(config, 0, mesh)
    state = TrainState(params, steps.create_opt_state(optimizer, params, mesh), carry.fresh(config, 16, mesh))
    step = steps.make_train_step(config, optimizer, mesh, num_answers=0, accumulate=accumulate, carries=True)
    evaluate = steps.make_evaluation_step(config, mesh, num_answers=0, carries=True)
    losses = []
    for i in range(3):
        state, metrics = step(state, put_batch(batch(i), mesh), jax.random.key(i))
        losses.append(float(metrics.loss))
    metrics, carried = evaluate(state.params, state.carried, put_batch(batch(9), mesh))
    return state, [*losses, float(metrics.loss)], carried


reference, losses, after = train(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
for axes, shard, accumulate in ((dict(data=4, fsdp=2), 2, 1), (dict(data=4, stage=2), 4, 2)):
    mesh = make_mesh(MeshConfig(**axes))
    state, found, carried = train(mesh, accumulate)
    np.testing.assert_allclose(found, losses, rtol=2e-4, err_msg=str(axes))
    for got, want in ((state.carried, reference.carried), (carried, after)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=str(axes)), got, want)
        hidden = jax.tree.leaves(got.state.layers)[0]
        layers = 2 // axes.get("stage", 1)
        assert hidden.addressable_shards[0].data.shape[:2] == (layers, shard), (axes, hidden.sharding)
        assert got.state.tokens.addressable_shards[0].data.shape[0] == shard
"""


def test_eight_devices_carry_what_one_does():
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environ, cwd=ROOT, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
