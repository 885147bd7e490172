"""What stays float32 when the computation is bfloat16: read off the shapes, nothing is computed."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.config import resolve_backbone, resolve_memory
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.parallel.mesh import MeshConfig, make_mesh
from armt_jax.tasks import Batch
from armt_jax.training import step as steps
from armt_jax.training.optimizer import OptimizerConfig, make_optimizer

B, S, T, V = 4, 3, 4, 12
ARMT = dict(num_memory_tokens=1, d_mem=4, value_std=0.1)
MEMORIES = {
    "none": {}, "armt": ARMT, "rmt": dict(num_memory_tokens=1), "parallel_rmt": dict(num_memory_tokens=1),
    "transformer_xl": dict(cache_length=3), "armt_xl": ARMT | dict(cache_length=3), "rmt_xl": dict(num_memory_tokens=1, cache_length=3),
}  # fmt: skip
GRADIENTS = ("store", "remat", "reversible")


def model_config(memory, **recurrence):
    backbone = dict(name="llama", vocab_size=V, num_layers=2, width=8, num_heads=2, max_positions=16)
    return ModelConfig(
        resolve_backbone(backbone), resolve_memory(dict(name=memory, **MEMORIES[memory])), RecurrenceConfig(T, **recurrence), "bfloat16"
    )


def kinds(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def scans(jaxpr):
    """Every scan in a jaxpr, however deep."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from scans(inner)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_training_step_keeps_state_parameters_moments_and_sums_in_float32(memory, gradient):
    config = model_config(memory, gradient=gradient, schedule="sequential" if memory.startswith("rmt") else "diagonal")
    mesh, optimizer = make_mesh(MeshConfig(data=1), jax.devices()[:1]), make_optimizer(OptimizerConfig(), 1)
    state = steps.abstract_state(config, optimizer, mesh, B)
    step = steps.make_train_step(config, optimizer, mesh, num_answers=0, accumulate=2, carries=True)
    tokens = np.zeros((B, S * T), np.int32)
    batch = Batch(tokens, tokens, np.ones(tokens.shape, np.float32), tokens)
    after, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert kinds(state) == kinds(after) == kinds(metrics) == {jnp.dtype(jnp.float32)}
    assert jax.tree.map(lambda a: a.shape, after) == jax.tree.map(lambda a: a.shape, state)


@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
def test_the_memory_is_float32_inside_the_loops_and_the_hidden_states_are_not(schedule):
    config = model_config("armt", schedule=schedule)
    graphdef, params = steps.abstract_model(config)
    tokens = jax.ShapeDtypeStruct((B, S * T), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda params, tokens: nnx.merge(graphdef, params).ingest(tokens))(params, tokens)
    K, D = config.memory.key_features, config.backbone.width
    carried = [v.aval for scan in scans(jaxpr.jaxpr) for v in scan.outvars]
    memory, hidden = ({a.dtype for a in carried if a.shape[-2:] == shape} for shape in ((K, D), (T + 1, D)))
    assert memory == {jnp.dtype(jnp.float32)} and hidden == {jnp.dtype(jnp.bfloat16)}
