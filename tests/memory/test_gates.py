"""ARMT's write gate: how much of a write counts, when nothing does, and what opens and shuts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.memory import associative
from armt_jax.memory.associative import ARMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2
from tests.memory.matrix import B, D, M, memory, normal, overwritten, recalled, saturate, update_of, written


@pytest.mark.parametrize("bias", [0.0, 1.5, -1.5])
def test_beta_scales_a_first_write(bias):
    m = saturate(memory(tokens=1), bias)
    x = normal(5, B, 1, D)
    beta = 1 / (1 + np.exp(-bias))
    np.testing.assert_allclose(recalled(m, x, written(m, x, m.init_state(B))), beta * m.value(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_beta_blends_when_overwriting(bias):
    v1, v2, found = overwritten(correction=True, bias=bias)
    beta = 1 / (1 + np.exp(-bias))
    np.testing.assert_allclose(found, (1 - beta) * v1 + beta * v2, rtol=1e-3, atol=1e-3)


def test_beta_is_the_sigmoid_of_its_map():
    m = memory()
    x = normal(8, B, M, D)
    update = update_of(m, x, m.init_state(B))
    beta = 1 / (1 + np.exp(-(np.asarray(x) @ np.asarray(m.beta.kernel[...]) + np.asarray(m.beta.bias[...]))))
    np.testing.assert_allclose(update.value_BxHxMxd[:, 0], beta * np.asarray(m.value(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta_max, grows", [(1.0, True), (2 / M, False)])
def test_like_keys_overshoot_unless_beta_is_capped(beta_max, grows):
    """One token writes a key, later all M do: M beta > 2 replaces more than twice the error, in every segment again."""
    m = saturate(memory(key_norm="l2", beta_max=beta_max))
    first = normal(0, B, M, D)
    state = written(m, first, m.init_state(B))
    alike = jnp.broadcast_to(normal(1, B, 1, D), first.shape)
    state = written(m, alike[:, :1], state)
    sizes = []
    for _ in range(40):
        state = written(m, alike, state)
        sizes.append(float(jnp.max(jnp.abs(state.A_BxHxKxd))))
    # The mass under the key is a little above one token's, so the cap has some room.
    assert (sizes[-1] > 10 * sizes[0]) == grows, sizes
    assert grows or max(sizes) < 2 * sizes[0]


def test_beta_max_scales_the_gate():
    capped, plain = memory(beta_max=0.25), memory()
    state = plain.init_state(B)
    one, other = (update_of(m, normal(2, B, M, D), state).value_BxHxMxd for m in (capped, plain))
    np.testing.assert_allclose(one, 0.25 * other, rtol=1e-6)


def test_a_hard_gate_is_the_clipped_line():
    m = memory(gate="hard")
    m.beta.kernel[...] = 6 * m.beta.kernel[...]
    x = normal(8, B, 40, D)
    update = update_of(m, x, m.init_state(B))
    line = 0.5 + (np.asarray(x) @ np.asarray(m.beta.kernel[...]) + np.asarray(m.beta.bias[...])) / 6
    assert (line < 0).any() and (line > 1).any() and ((line > 0) & (line < 1)).any()
    np.testing.assert_allclose(update.value_BxHxMxd[:, 0], np.clip(line, 0, 1) * np.asarray(m.value(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate, kept", [("hard", True), ("sigmoid", False)])
def test_a_shut_gate_leaves_the_memory_to_the_last_bit(gate, kept):
    m = memory(key_norm="l2", gate=gate)
    state = before = written(saturate(m), normal(1, B, M, D), m.init_state(B))
    saturate(m, bias=-3.0)
    for segment in range(20):
        state = written(m, normal(100 + segment, B, M, D), state)
    same = [bool(jnp.array_equal(a, b)) for a, b in zip(state, before, strict=True)]
    assert same == [kept, kept] and float(jnp.max(jnp.abs(before.A_BxHxKxd))) > 0.1


def test_of_a_segment_only_tokens_with_open_gates_count():
    """The second of two has its gate shut: what is written is what the first writes alone."""
    m = memory(tokens=2, key_norm="l2", gate="hard")
    m.beta = lambda x: jnp.broadcast_to(jnp.array([[2.0], [-4.0]]), (*x.shape[:2], 1))
    x = normal(2, B, 2, D)
    both = written(m, x, m.init_state(B))
    m.beta = lambda x: jnp.full((*x.shape[:2], 1), 2.0)
    alone = written(m, x[:, :1], m.init_state(B))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), both, alone)


def test_a_write_cost_is_the_gradient_of_the_largest_gates():
    """Of gates that are neither shut nor open altogether."""
    x, weights = normal(3, B, M, D), normal(4, B, 1, M, D)

    def gradient(cost, penalty):
        def loss(kernel):
            m = memory(gate="hard", write_cost=cost)
            m.beta.kernel[...] = kernel
            assert isinstance(kernel, jax.core.Tracer) or jnp.all(jnp.abs(m.beta(x)) < 3)
            gates = jnp.clip(0.5 + m.beta(x) / 6, 0, 1)
            written = jnp.sum(weights * update_of(m, x, m.init_state(B)).value_BxHxMxd)
            return written + penalty * jnp.sum(jnp.max(gates, axis=1))

        kernel = memory().beta.kernel[...]
        loss(kernel)
        return jax.value_and_grad(loss)(kernel)

    (plain, without), (value, found), (_, expected) = gradient(0.0, 0.0), gradient(0.3, 0.0), gradient(0.0, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert value == plain and not np.allclose(found, without, atol=1e-3)


def test_open_gates_share_the_cost_and_shut_ones_have_none():
    gates = jnp.array([[0.2, 0.7, 0.7, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])[:, None, :, None]
    shares = associative.largest(gates)[:, 0, :, 0]
    np.testing.assert_array_equal(shares, [[0, 0.5, 0.5, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 0, 0]])


@pytest.mark.parametrize("x, share, costs", [(-4.0, 0.1, 0), (4.0, 0.1, 1), (-2.9, 1.0, 1), (0.0, 1.0, 1)])
def test_beyond_its_bounds_a_gate_still_hears_of_a_tenth(x, share, costs):
    """So a shut one, which costs nothing, opens where the loss gains by it; an open one shuts where it gains less than the cost."""
    for slope, cost in ((-2.0, 0.5), (-0.3, 0.5), (1.0, 0.0)):
        gate, pull = jax.vjp(associative.hard_gate, jnp.full((1, 1, 1, 1), x), jnp.full((1, 1, 1, 1), cost))
        np.testing.assert_allclose(gate[0, 0, 0], np.clip(0.5 + x / 6, 0, 1), rtol=1e-5)
        np.testing.assert_allclose(pull(jnp.full((1, 1, 1, 1), slope))[0][0, 0, 0], [share * (slope + costs * cost) / 6], rtol=1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(beta_max=0.0), "beta_max"), (dict(beta_max=1.5), "beta_max"), (dict(beta_max=-1.0), "beta_max"),
        (dict(gate="soft"), "memory.gate = 'soft' must be one of"), (dict(gate="hard", write_cost=-1.0), "write_cost = -1.0"),
        (dict(write_cost=0.1), "write_cost = 0.1 needs memory.gate = 'hard'"),
    ],
)  # fmt: skip
def test_a_gate_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ARMT(num_memory_tokens=1, d_mem=4, **fields)


def test_layers_below_the_first_stay_empty():
    sizes = dict(vocab_size=20, num_layers=3, width=16, num_heads=2, max_positions=16, kernel_std=None, embedding_std=0.5)

    def state_of(first_layer):
        config = ModelConfig(GPT2(**sizes), ARMT(2, d_mem=4, value_std=None, first_layer=first_layer), RecurrenceConfig(segment_length=4))
        return MemoryTransformer(config, rngs=nnx.Rngs(0)).ingest(jnp.arange(16).reshape(2, 8))

    for first_layer in range(3):
        layers = state_of(first_layer).layers
        for leaf in layers:
            assert [bool(np.any(layer)) for layer in np.asarray(leaf)] == [number >= first_layer for number in range(3)]
    with pytest.raises(ValueError, match=r"memory.first_layer = 3 must lie in 0..backbone.num_layers - 1 = 2"):
        state_of(3)
