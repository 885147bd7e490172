"""ARMT's matrix: the algebra of one write and one read, in the published formulas and in numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.memory import associative
from armt_jax.memory.associative import ARMT, AssociativeMemory, AssociativeState
from armt_jax.memory.interface import Layout, Trace
from armt_jax.nn.layers import Init
from tests.memory.matrix import B, D, M, Override, features, found_by, memory, normal, overwritten, recalled, saturate, update_of, written


def test_l2_keys_have_unit_length_in_every_head():
    m = memory(num_heads=2, key_norm="l2")
    np.testing.assert_allclose(np.linalg.norm(features(m, normal(2, B, M, D)), axis=-1), 1, rtol=1e-6)


# ---- write and read ----


def test_a_written_value_is_read_back():
    m = saturate(memory(tokens=1))
    x = normal(3, B, 1, D)
    state = written(m, x, m.init_state(B))
    np.testing.assert_allclose(recalled(m, x, state), m.value(x), rtol=1e-4, atol=1e-5)


def test_read_adds_what_the_query_finds():
    """read: x + q A / (q z + eps), with the query map in the place of the key map."""
    m = memory()
    x = normal(4, B, 5, D)
    state = written(m, normal(3, B, M, D), m.init_state(B))
    q = np.asarray(m._features(m.query(x)), np.float64)
    found = found_by(q, state)
    np.testing.assert_allclose(m.read(x, state, Layout()), x + found.reshape(x.shape), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(m.read(x, m.init_state(B), Layout()), x)


def test_overwriting_replaces_the_value():
    _, v2, found = overwritten(correction=True)
    np.testing.assert_allclose(found, v2, rtol=1e-3, atol=1e-4)


def test_without_correction_an_overwritten_value_comes_back_halved():
    """A holds one copy of the value, z counts two."""
    _, v2, found = overwritten(correction=False)
    np.testing.assert_allclose(found, v2 / 2, rtol=1e-3, atol=1e-4)


def test_a_read_fades_where_little_was_written_and_is_whole_at_a_written_key():
    plain, floored = (saturate(memory(tokens=1, key_norm="l2", read_floor=floor)) for floor in (0.0, 1.0))
    x = normal(3, B, 1, D)
    state = written(floored, x, floored.init_state(B))
    k = plain._features(plain.key(x))
    np.testing.assert_allclose(floored._recall(k, state)[0], plain._recall(k, state)[0], rtol=1e-4)
    np.testing.assert_allclose(floored._recall(k, state)[0][:, 0], plain.value(x), rtol=1e-3)
    # A query that shares a thousandth of itself with the key: the published read gives the whole value back, this one a thousandth.
    other = jnp.zeros_like(k).at[..., int(jnp.argmin(k[0, 0, 0]))].set(1.0)[:1]
    query, first = 1e-3 * k[:1] + other, jax.tree.map(lambda leaf: leaf[:1], state)
    found, weight = plain._recall(query, first)
    assert 5e-4 < float(weight[0, 0, 0]) < 1e-1
    np.testing.assert_allclose(found[:, 0], plain.value(x)[:1], rtol=3e-2)
    np.testing.assert_allclose(floored._recall(query, first)[0][:, 0], weight[0, 0, 0] * plain.value(x)[:1], rtol=3e-2)


def test_the_gradient_of_a_read_is_bounded_by_the_floor():
    """Of the read with respect to the query's features, which the published division makes as large as 1 / (q z)^2."""
    found = {}
    for floor in (0.0, 1.0):
        m = memory(key_norm="l2", read_floor=floor)
        K = m.config.key_features
        state = AssociativeState(normal(0, 1, 1, K, D), jnp.full((1, 1, K), 1e-3))
        q = jnp.full((1, 1, 1, K), K**-0.5)
        found[floor] = float(jnp.abs(jax.jacrev(lambda q: m._recall(q, state)[0])(q)).max())  # noqa: B023
    assert found[1.0] < 5 and found[0.0] > 50


@pytest.mark.parametrize("floor, key_norm, word", [(-1.0, "l2", "read_floor = -1.0"), (1.0, "none", "key_norm = 'l2'")])
def test_a_floor_that_cannot_be_is_refused(floor, key_norm, word):
    with pytest.raises(ValueError, match=word):
        ARMT(num_memory_tokens=1, d_mem=4, key_norm=key_norm, read_floor=floor)


def test_tokens_of_one_segment_write_in_parallel():
    """Two with the same key both replace the old value, and overshoot: 2 v2 - v1."""
    m = saturate(memory(tokens=1))
    x = normal(5, B, 1, D)
    v1, v2 = normal(6, B, 1, D), normal(7, B, 1, D)
    m.value = Override(v1)
    state = written(m, x, m.init_state(B))
    m.value = Override(jnp.concatenate([v2, v2], axis=1))
    state = written(m, jnp.concatenate([x, x], axis=1), state)
    np.testing.assert_allclose(recalled(m, x, state), 2 * v2 - v1, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fields", [{}, {"correction": False}, {"num_heads": 2, "key_norm": "l2"}], ids=["plain", "all", "l2"])
def test_z_never_decreases_and_a_is_signed(fields):
    m = memory(**fields)
    state = m.init_state(B)
    for seed in range(6):
        after = written(m, normal(20 + seed, B, M, D), state)
        assert float(jnp.min(after.z_BxHxK - state.z_BxHxK)) >= 0
        state = after
    assert float(state.z_BxHxK.max()) > 0.1
    assert float(state.A_BxHxKxd.min()) < 0 < float(state.A_BxHxKxd.max())


def test_undo_takes_a_commit_back():
    m = memory(num_heads=2)
    before = written(m, normal(9, B, M, D), m.init_state(B))
    update = update_of(m, normal(10, B, M, D), before)
    after = m.commit(before, update)
    for a, b, c in zip(m.undo(after, update), before, after, strict=True):
        assert np.abs(np.asarray(b) - np.asarray(c)).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.abs(c).max()))


def test_an_update_is_low_rank():
    """What a write stores grows with K and with D, not with their product."""

    def size(d_mem, width):
        m = AssociativeMemory(ARMT(num_memory_tokens=M, d_mem=d_mem), width, Init(kernel=None), jnp.float32, nnx.Rngs(0))
        return sum(leaf.size for leaf in jax.eval_shape(lambda: update_of(m, jnp.zeros((B, M, width)), m.init_state(B))))

    base = size(64, 64)
    assert size(128, 128) <= 2 * base and base < B * 384 * 64 / 4


def test_writing_describes_and_does_not_change():
    m = memory()
    state = written(m, normal(9, B, M, D), m.init_state(B))
    kept = jax.tree.map(lambda a: np.array(a), state)
    update_of(m, normal(10, B, M, D), state)
    for a, b in zip(state, kept):
        np.testing.assert_array_equal(a, b)


def test_only_memory_tokens_write():
    m = memory()
    x = normal(11, B, 5 + M, D)
    other = x.at[:, :5].set(0)
    state = m.init_state(B)
    for outputs in (x, other):
        update = m.write(Trace(outputs, outputs, None, None, None, Layout(0, M), None), state)
        want = update_of(m, x[:, 5:], state)
        for a, b in zip(update, want):
            np.testing.assert_array_equal(a, b)


# ---- gamma ----


def gamma_of(m, outputs, state):
    k = m._features(m.key(outputs))
    return np.asarray(m._gamma(k, jnp.einsum("bhmk,bhk->bhm", k, state.z_BxHxK), state))


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_gamma_is_the_published_formula(scale):
    """1 - (z k + eps) / (|k|^2 + eps), clipped; also where |k|^2 is close to eps."""
    m = memory()
    state = AssociativeState(m.init_state(B).A_BxHxKxd, 0.3 * scale**2 * jax.random.uniform(jax.random.key(1), (B, 1, 48)))
    outputs = scale * normal(12, B, M, D)
    k = features(m, outputs)
    zk = np.einsum("bhmk,bhk->bhm", k, np.asarray(state.z_BxHxK, np.float64))
    want = np.clip(1 - (zk + 1e-5) / ((k * k).sum(-1) + 1e-5), 0, 1)
    assert np.any((want > 0.01) & (want < 0.99))
    np.testing.assert_allclose(gamma_of(m, outputs, state), want, atol=2e-6)


def test_gamma_is_clipped_to_nought_and_one():
    m = memory()
    outputs = normal(12, B, M, D)
    full = AssociativeState(m.init_state(B).A_BxHxKxd, jnp.full((B, 1, 48), 100.0))
    np.testing.assert_array_equal(gamma_of(m, outputs, full), 0)


def test_gamma_is_one_while_a_row_and_head_is_empty():
    m = memory(num_heads=2)
    outputs = normal(12, B, M, D)
    z = jnp.zeros((B, 2, 24)).at[0, 0].set(1.0)
    gamma = gamma_of(m, outputs, AssociativeState(m.init_state(B).A_BxHxKxd, z))
    assert np.all(gamma[0, 0] < 1)
    np.testing.assert_array_equal(gamma[0, 1], 1)
    np.testing.assert_array_equal(gamma[1], 1)
    update = update_of(m, outputs, m.init_state(B))
    np.testing.assert_allclose(update.mass_BxHxK, features(m, outputs).sum(axis=2), rtol=1e-5)


def test_without_correction_every_write_counts_fully():
    m = memory(correction=False)
    state = written(m, normal(9, B, M, D), m.init_state(B))
    np.testing.assert_array_equal(gamma_of(m, normal(12, B, M, D), state), 1)


def test_no_gradient_flows_through_gamma():
    """The gradient of z's growth is that of gamma k with gamma held fast, and none reaches the z of before."""
    m = memory()
    state = AssociativeState(m.init_state(B).A_BxHxKxd, 0.3 * jax.random.uniform(jax.random.key(1), (B, 1, 48)))
    outputs = 0.7 * normal(12, B, M, D)
    gamma, weights = gamma_of(m, outputs, state), normal(13, B, 1, 48)
    assert np.any((gamma > 0.01) & (gamma < 0.99))

    def mass(outputs, z):
        return jnp.sum(weights * update_of(m, outputs, state._replace(z_BxHxK=z)).mass_BxHxK)

    def held(outputs):
        return jnp.sum(weights * jnp.einsum("bhm,bhmk->bhk", gamma, m._features(m.key(outputs))))

    by_outputs, by_z = jax.grad(mass, argnums=(0, 1))(outputs, state.z_BxHxK)
    np.testing.assert_allclose(by_outputs, jax.grad(held)(outputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(by_z, 0)


def test_the_old_value_is_not_detached():
    m = memory()
    state = written(m, normal(9, B, M, D), m.init_state(B))
    by_state = jax.grad(lambda s: jnp.sum(update_of(m, normal(12, B, M, D), s).value_BxHxMxd))(state)
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in by_state)


def test_heads_are_memories_of_their_own():
    """A write through one head's beta alone leaves the other head's half of what is read unchanged."""
    m = memory(num_heads=2)
    m.beta.kernel[...] = jnp.zeros((D, 2))
    m.beta.bias[...] = jnp.array([30.0, -30.0])
    x = normal(14, B, M, D)
    read = np.asarray(m.read(x, written(m, x, m.init_state(B)), Layout()) - x)
    assert np.abs(read[..., : D // 2]).max() > 1e-2
    np.testing.assert_allclose(read[..., D // 2 :], 0, atol=1e-5)


def test_state_and_update_stay_float32_in_bfloat16():
    m = AssociativeMemory(ARMT(num_memory_tokens=M, d_mem=8, value_std=None), D, Init(kernel=None), jnp.bfloat16, nnx.Rngs(0))
    x = normal(15, B, M, D).astype(jnp.bfloat16)
    state = written(m, x, m.init_state(B))
    update = update_of(m, x, state)
    assert {leaf.dtype for leaf in (*state, *update[:3])} == {jnp.dtype("float32")}
    assert m.read(x, state, Layout()).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(num_memory_tokens=0), "num_memory_tokens = 0 must be at least 1"),
        (dict(key_norm="l1"), "key_norm = 'l1' must be one of"),
        (dict(d_mem=9, num_heads=2), "d_mem = 9 is not a positive multiple of memory.num_heads = 2"),
        (dict(d_mem=0), "d_mem = 0"),
        (dict(nu=0), "nu = 0 must lie in 1"),
        (dict(d_mem=1, nu=2), "nu = 2 must lie in 1..2 d_mem / num_heads - 1 = 1"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ARMT(**fields)


def test_published_sizes():
    config = ARMT()
    assert (config.num_memory_tokens, config.d_mem, config.nu, config.key_features) == (10, 64, 3, 384)
    assert associative.EPSILON == 1e-5
    published = AssociativeMemory(config, D, Init(), jnp.float32, nnx.Rngs(0))
    np.testing.assert_array_equal(published.value.kernel[...], 0)
    assert float(jnp.abs(memory().value.kernel[...]).max()) > 0
