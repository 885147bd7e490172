"""One training step: the loss, the sums behind it, accumulation, donation, and the same numbers on eight devices."""

import dataclasses
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
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.layers import row_keys
from armt_jax.parallel.mesh import MeshConfig, make_mesh, put_batch
from armt_jax.parallel.rules import path_string
from armt_jax.tasks import Batch
from armt_jax.training import step as steps
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer
from armt_jax.training.step import TrainState

ROOT = pathlib.Path(__file__).parents[2]
B, S, T, V = 6, 3, 4, 12
N = S * T


def model_config(memory="armt", **backbone):
    fields = dict(name="gpt2", vocab_size=V, num_layers=2, width=16, num_heads=2, max_positions=16, kernel_std=None, embedding_std=0.5)
    tokens = {} if memory == "none" else dict(num_memory_tokens=1)
    if memory == "armt":
        tokens |= dict(d_mem=16, value_std=0.1, key_norm="l2")  # others divide by nearly nothing: rounding grows to 1e-3
    return ModelConfig(resolve_backbone({**fields, **backbone}), resolve_memory(dict(name=memory, **tokens)), RecurrenceConfig(T))


def random_batch(seed=0, rows=B):
    """Weights differ from row to row and from position to position; whole rows and segments weigh nothing."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, V, (2, rows, N), dtype=np.int32)
    weights = rng.choice([0.0, 0.25, 1.0, 3.0], (rows, N)).astype(np.float32) * np.arange(rows)[:, None].astype(np.float32)
    weights[:, T : 2 * T] = 0.0
    answers = np.where(np.arange(N) < 2, 1, np.where(np.arange(N) >= N - 2, 2, 0)).astype(np.int32)
    return Batch(tokens, targets, weights, np.tile(answers, (rows, 1)))


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def setup(mesh):
    """(config, graphdef, params) of a tiny ARMT."""
    config = model_config()
    return config, steps.abstract_model(config)[0], steps.create_params(config, 0, mesh)


@pytest.fixture(scope="module")
def gradients(setup, mesh):
    """{parts: compiled `gradients`}."""
    _, graphdef, _ = setup
    return {accumulate: jax.jit(functools.partial(steps.gradients, graphdef, 2, accumulate, mesh)) for accumulate in (1, 3)}


@pytest.fixture(scope="module")
def computed(setup, gradients):
    """{parts: (gradients, metrics)} of one batch."""
    _, _, params = setup
    return {accumulate: grads(params, None, random_batch(), None)[:2] for accumulate, grads in gradients.items()}


def test_loss_is_the_cross_entropy_computed_by_hand(setup, computed):
    _, graphdef, params = setup
    batch, metrics = random_batch(), computed[1][1]
    logits, _ = nnx.merge(graphdef, params)(jnp.asarray(batch.tokens_BxN))
    logits = np.asarray(logits, np.float64)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probability = np.take_along_axis(shifted / shifted.sum(-1, keepdims=True), batch.targets_BxN[..., None], -1)[..., 0]
    by_hand = -(batch.weights_BxN * np.log(probability)).sum()
    assert by_hand > 1.0
    np.testing.assert_allclose(metrics.loss, by_hand, rtol=1e-5)
    np.testing.assert_allclose(metrics.weight, batch.weights_BxN.sum(), rtol=1e-6)
    correct = logits.argmax(-1) == batch.targets_BxN
    groups = [correct[batch.answers_BxN == g].reshape(B, -1).all(1) for g in (1, 2)]
    assert float(metrics.right) == np.sum(groups) and float(metrics.answers) == 2 * B


def test_an_answer_counts_as_right_only_as_a_whole(setup):
    _, graphdef, params = setup
    batch = random_batch()
    logits, _ = nnx.merge(graphdef, params)(jnp.asarray(batch.tokens_BxN))
    perfect = dataclasses.replace(batch, targets_BxN=np.asarray(logits.argmax(-1), np.int32))
    last = perfect.targets_BxN.copy()
    last[0, -1] = (last[0, -1] + 1) % V  # the second answer of the first row, in one of its two places
    spoilt = dataclasses.replace(perfect, targets_BxN=last)
    loss = jax.jit(functools.partial(steps._loss, graphdef, 2))
    assert float(loss(params, None, perfect, None)[1][0].right) == 2 * B
    assert float(loss(params, None, spoilt, None)[1][0].right) == 2 * B - 1


def test_the_gradient_is_that_of_the_weighted_mean(setup, computed):
    """Against autodiff of the formula, over the logits of the whole row."""
    _, graphdef, params = setup
    batch = random_batch()

    def mean(params):
        log_probability = jax.nn.log_softmax(nnx.merge(graphdef, params)(batch.tokens_BxN)[0])
        picked = jnp.take_along_axis(log_probability, batch.targets_BxN[..., None], -1)[..., 0]
        return -jnp.average(picked, weights=batch.weights_BxN)

    expected = jax.jit(jax.grad(mean))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), computed[1][0], expected)


def test_accumulation_with_unequal_weights_equals_the_whole_batch(computed):
    batch = random_batch()
    weights = [batch.weights_BxN[part::3].sum() for part in range(3)]
    assert max(weights) > 1.5 * min(weights), "the parts must differ for this to show a mean of means"
    (whole, whole_metrics), (parts, parts_metrics) = computed[1], computed[3]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts_metrics, whole_metrics)


def test_a_part_without_any_weight_does_no_harm(setup, gradients):
    params, batch = setup[2], random_batch()
    weights = np.where(np.arange(B)[:, None] % 3 == 1, batch.weights_BxN, 0).astype(np.float32)  # all in one part
    batch = dataclasses.replace(batch, weights_BxN=weights)
    (whole, _), (parts, metrics) = (gradients[accumulate](params, None, batch, None)[:2] for accumulate in (1, 3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)
    np.testing.assert_allclose(metrics.weight, weights.sum(), rtol=1e-6)
    nothing = dataclasses.replace(batch, weights_BxN=np.zeros_like(weights))
    grads, metrics, _ = gradients[3](params, None, nothing, None)
    assert float(metrics.loss) == float(metrics.weight) == 0.0 and not any(np.any(g) for g in jax.tree.leaves(grads))


def test_a_nan_is_traced_to_its_segment(mesh):
    config = model_config("none", tie_embeddings=False, num_layers=1)
    graphdef, params = nnx.split(MemoryTransformer(config, rngs=nnx.Rngs(0)))
    batch = random_batch()
    tokens = np.where(batch.tokens_BxN == 7, 8, batch.tokens_BxN)
    tokens[4, 2 * T + 1] = 7  # one token, in segment 2 alone
    weights = np.ones_like(batch.weights_BxN)
    batch = dataclasses.replace(batch, tokens_BxN=tokens, weights_BxN=weights)
    metrics = {
        parts: jax.jit(lambda params, batch, parts=parts: steps.gradients(graphdef, 2, parts, mesh, params, None, batch, None)[1])
        for parts in (1, 3)
    }
    bad = jax.tree_util.tree_map_with_path(lambda path, p: p.at[7].set(np.nan) if path_string(path) == "embed/table" else p, params)
    for name, compute in metrics.items():
        good, found = compute(params, batch), compute(bad, batch)
        assert int(good.bad_segment) == -1 and np.isfinite(good.loss), name
        assert int(found.bad_segment) == 2 and np.isnan(found.loss), name


def test_a_row_drops_the_same_entries_in_every_part(mesh):
    config = model_config()
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, dropout=0.3))
    params, batch, (graphdef, _) = steps.create_params(config, 0, mesh), random_batch(), steps.abstract_model(config)
    run = {n: jax.jit(functools.partial(steps.gradients, graphdef, 2, n, mesh)) for n in (1, 3)}
    whole, parts, other = (run[n](params, None, batch, jax.random.key(k))[0] for n, k in ((1, 0), (3, 0), (3, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)
    distance = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), parts, other)
    assert max(jax.tree.leaves(distance)) > 1e-3


def test_a_step_donates_the_old_state_and_moves_the_parameters(setup, computed, mesh):
    config, before, grads = setup[0], jax.tree.map(np.array, setup[2]), computed[1][0]
    params = jax.tree.map(jnp.copy, setup[2])
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 1)
    step = steps.make_train_step(config, optimizer, mesh, num_answers=2, accumulate=1)
    state = TrainState(params, steps.create_opt_state(optimizer, params, mesh))
    batch = put_batch(random_batch(), mesh)
    new, metrics = step(state, batch, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))
    norm = np.sqrt(sum(np.square(g).sum() for g in map(np.asarray, jax.tree.leaves(grads))))
    np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-5)
    # Adam's first step is the rate against the sign of the gradient.
    table = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path((before, grads, new.params))}
    gradient = np.asarray(table["1/embed/table"])
    large = np.abs(gradient) > 1e-4
    moved = np.asarray(table["2/embed/table"] - table["0/embed/table"])
    assert large.any()
    np.testing.assert_allclose(moved[large], -1e-2 * np.sign(gradient[large]), rtol=1e-3)


def test_the_evaluation_step_agrees_and_drops_nothing(setup, mesh, computed):
    """The same sums as training without dropout; and with a dropout configured, no dropout."""
    config, _, params = setup
    batch = put_batch(random_batch(), mesh)
    metrics, _ = steps.make_evaluation_step(config, mesh, num_answers=2)(params, None, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, computed[1][1])
    with_dropout = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, dropout=0.5))
    evaluated, _ = steps.make_evaluation_step(with_dropout, mesh, num_answers=2)(params, None, batch)
    np.testing.assert_allclose(evaluated.loss, metrics.loss, rtol=1e-6)
    graphdef, _ = steps.abstract_model(with_dropout)
    keys = jnp.stack([row_keys(jax.random.key(seed), B) for seed in (0, 0, 1)])
    losses = jax.jit(jax.vmap(lambda keys_B: steps._loss(graphdef, 2, params, None, batch, keys_B)[0]))(keys)
    assert losses[0] == losses[1] and abs(losses[0] - losses[2]) > 1e-3 and abs(losses[0] - metrics.loss) > 1e-3


# -- eight devices ---------------------------------------------------------------------------------------------------------

EIGHT = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.parallel.mesh import MeshConfig, make_mesh, put_batch
from armt_jax.parallel.rules import path_string, shardings
from armt_jax.tasks import AssociativeRetrieval
from armt_jax.training import step as steps
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer
from armt_jax.training.step import StepMetrics, TrainState

assert jax.device_count() == 8
memory = dict(name="armt", num_memory_tokens=1, d_mem=16, value_std=0.1, key_norm="l2")
backbone = dict(name="gpt2", vocab_size=128, num_layers=2, width=16, num_heads=2, max_positions=16, kernel_std=None, embedding_std=0.5)
backbone["dropout"] = 0.1
config = ModelConfig(resolve_backbone(backbone), resolve_memory(memory), RecurrenceConfig(4))
task = AssociativeRetrieval(mode="rewrite", pairs=3, num_keys=4, queries=2)
# A large epsilon: Adam's first steps are else the sign of gradients that may be rounding noise.
optimizer = make_optimizer(OptimizerConfig(learning_rate=0.02, eps=2e-2, clip="norm", clip_at=0.5), 2)


def named(tree):
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def train(mesh, accumulate=1):
    params = steps.create_params(config, 0, mesh)
    start = jax.tree.map(np.asarray, params)
    state = TrainState(params, steps.create_opt_state(optimizer, params, mesh))
    step = steps.make_train_step(config, optimizer, mesh, num_answers=2, accumulate=accumulate)
    losses = []
    for i in range(2):
        state, metrics = step(state, put_batch(task.batch(0, i, 16), mesh), jax.random.key(i))
        losses.append([float(x) for x in metrics])
    return start, state, np.array(losses)


def columns(losses):
    return losses[:, [StepMetrics._fields.index(name) for name in ("loss", "weight", "right", "answers")]]


start, reference, losses = train(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), reference.params, start)
assert max(jax.tree.leaves(moved)) > 5e-3, moved
assert losses[0, 0] != losses[1, 0] and losses[0, 1] == 16 * 4, losses
up = "layers/block/mlp/up/kernel"
meshes = [
    (dict(data=8), P("stage", "fsdp", "tensor"), (2, 16, 64)),
    (dict(data=2, fsdp=2, tensor=2), P("stage", "fsdp", "tensor"), (2, 8, 32)),
    (dict(data=1, fsdp=8), P("stage", "fsdp", "tensor"), (2, 2, 64)),
]
for axes, spec, shard in meshes:
    mesh = make_mesh(MeshConfig(**axes))
    first, state, found = train(mesh)
    jax.tree.map(np.testing.assert_array_equal, first, start)  # placement does not change the initial values
    np.testing.assert_allclose(columns(found), columns(losses), rtol=1e-5, err_msg=str(axes))
    np.testing.assert_allclose(found, losses, rtol=1e-3, err_msg=str(axes))  # with the norms, whose rounding a division by little raises
    for name, leaf in named(state.params).items():  # atol: a thousandth of a step; the gradient of a key's bias is nothing but rounding
        np.testing.assert_allclose(leaf, named(reference.params)[name], rtol=1e-5, atol=5e-6, err_msg=f"{axes} {name}")
    # Still where the rules say, after two steps; and the moments with them.
    placed = named(shardings(state.params, mesh))
    moments = [named(part) for s in state.opt_state for part in (getattr(s, "mu", {}), getattr(s, "nu", {})) if part]
    assert len(moments) == 2
    for name, leaf in named(state.params).items():
        for each in (leaf, *(m[name] for m in moments)):
            assert each.sharding.is_equivalent_to(placed[name], each.ndim), (axes, name, each.sharding)
    kernel = named(state.params)[up]
    assert kernel.sharding.spec == spec and {s.data.shape for s in kernel.addressable_shards} == {shard}, (axes, kernel.sharding)
    table = named(state.params)["embed/table"].addressable_shards[0].data.shape
    assert table == (128 // axes.get("tensor", 1), 16 // axes.get("fsdp", 1)), (axes, table)
    norm = named(state.params)["final_norm/scale"]
    assert norm.sharding.is_fully_replicated
    if axes == dict(data=8):  # parts of a batch, each over all devices
        _, state, found = train(mesh, accumulate=2)
        np.testing.assert_allclose(columns(found), columns(losses), rtol=1e-5)
    if axes == dict(data=8):  # gradients are added up once per step, not once per segment: no sum over devices inside a loop
        step = steps.make_train_step(config, optimizer, mesh, num_answers=2, accumulate=1)
        text = step.lower(state, put_batch(task.batch(0, 0, 16), mesh), jax.random.key(0)).compile().as_text()
        sums = [part for part in text.split("\\n\\n") if " all-reduce(" in part]
        assert sums and all("ENTRY" in part for part in sums), [part[:200] for part in sums]
"""


def test_eight_devices_train_like_one():
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environ, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
