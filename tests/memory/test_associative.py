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

B, M, D = 2, 3, 8


def memory(seed=0, tokens=M, **fields) -> AssociativeMemory:
    config = ARMT(num_memory_tokens=tokens, d_mem=fields.pop("d_mem", 8), value_std=None, **fields)
    return AssociativeMemory(config, D, Init(kernel=None), jnp.float32, nnx.Rngs(seed))


def saturate(m: AssociativeMemory, bias=30.0) -> AssociativeMemory:
    """beta = sigmoid(bias) for every token."""
    m.beta.kernel[...] = jnp.zeros_like(m.beta.kernel[...])
    m.beta.bias[...] = jnp.full_like(m.beta.bias[...], bias)
    return m


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def update_of(m, outputs, state):
    """The write of a segment whose only tokens are the memory tokens."""
    layout = Layout(0, outputs.shape[1])
    return m.write(Trace(outputs, outputs, None, None, None, layout, None), state)


def written(m, outputs, state):
    return m.commit(state, update_of(m, outputs, state))


def features(m, x):
    return np.asarray(m._features(m.key(x)), np.float64)


def recalled(m, x, state):
    """What the state holds under the keys of x: k A / (k z + eps)."""
    return found_by(features(m, x), state).reshape(x.shape)


def found_by(k_BxHxTxK, state):
    """[B, T, H, d]"""
    A, z = np.asarray(state.A_BxHxKxd, np.float64), np.asarray(state.z_BxHxK, np.float64)
    weight = np.einsum("bhtk,bhk->bth", k_BxHxTxK, z) + 1e-5
    return np.einsum("bhtk,bhkd->bthd", k_BxHxTxK, A) / weight[..., None]


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


class Override(nnx.Module):
    """A value map that ignores its input: the second write stores something else under the same key."""

    def __init__(self, value):
        self.value = nnx.Variable(value)

    def __call__(self, x):
        return self.value[...]


def overwritten(correction: bool, bias=30.0):
    """(first value, second value, what is recalled) after two writes with one key."""
    m = saturate(memory(tokens=1, correction=correction), 30.0)
    x = normal(5, B, 1, D)
    v1, v2 = normal(6, B, 1, D), normal(7, B, 1, D)
    m.value = Override(v1)
    state = written(m, x, m.init_state(B))
    m.value = Override(v2)
    state = written(saturate(m, bias), x, state)
    return v1, v2, recalled(m, x, state)


def test_overwriting_replaces_the_value():
    _, v2, found = overwritten(correction=True)
    np.testing.assert_allclose(found, v2, rtol=1e-3, atol=1e-4)


def test_without_correction_an_overwritten_value_comes_back_halved():
    """A holds one copy of the value, z counts two."""
    _, v2, found = overwritten(correction=False)
    np.testing.assert_allclose(found, v2 / 2, rtol=1e-3, atol=1e-4)


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


def test_a_write_cost_is_the_gradient_of_the_summed_gates():
    """Of gates that are neither shut nor open altogether."""
    x, weights = normal(3, B, M, D), normal(4, B, 1, M, D)

    def gradient(cost, penalty):
        def loss(kernel):
            m = memory(gate="hard", write_cost=cost)
            m.beta.kernel[...] = kernel
            assert jnp.all(jnp.abs(m.beta(x)) < 3) or isinstance(kernel, jax.core.Tracer)
            gates = jnp.clip(0.5 + m.beta(x) / 6, 0, 1)
            return jnp.sum(weights * update_of(m, x, m.init_state(B)).value_BxHxMxd) + penalty * jnp.sum(gates)

        kernel = memory().beta.kernel[...]
        loss(kernel)
        return jax.value_and_grad(loss)(kernel)

    (plain, without), (value, found), (_, expected) = gradient(0.0, 0.0), gradient(0.3, 0.0), gradient(0.0, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert value == plain and not np.allclose(found, without, atol=1e-3)


@pytest.mark.parametrize("x, share", [(-4.0, 0.1), (4.0, 0.1), (-2.9, 1.0), (0.0, 1.0)])
def test_beyond_its_bounds_a_gate_still_hears_of_a_tenth(x, share):
    """So a shut one opens where the loss gains more than the cost, and one that is open shuts where it does not."""
    for slope, cost in ((-2.0, 0.5), (-0.3, 0.5), (1.0, 0.0)):
        gate, pull = jax.vjp(associative.hard_gate, jnp.array([x]), jnp.array([cost]))
        np.testing.assert_allclose(gate, np.clip(0.5 + x / 6, 0, 1), rtol=1e-5)
        np.testing.assert_allclose(pull(jnp.array([slope]))[0], [share * (slope + cost) / 6], rtol=1e-6)


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
