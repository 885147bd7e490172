"""Relative attention against loops over rows, heads, queries and keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.nn.attention import Attention, Context, KeyValueCache
from armt_jax.nn.layers import Init, Shared, row_keys
from armt_jax.nn.positions import Rotary
from armt_jax.nn.relative_attention import RelativeAttention, shift_to_keys, sinusoids

B, T, C, H, d, D = 2, 5, 3, 4, 3, 10
TIGHT = dict(atol=2e-6, rtol=0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def attention(clamp=None, dropout=0.0) -> RelativeAttention:
    return RelativeAttention(
        D, H, d, clamp=clamp, dropout=dropout, bias_class=Shared, bias_std=0.5, init=Init(kernel=None), dtype=jnp.float32, rngs=nnx.Rngs(0)
    )


def naive(a: RelativeAttention, x, keys, query_places, key_places, seen):
    """The paper's formula, entry by entry. x [B, T, D], keys [B, S, D] hidden states; places [B, T] and [B, S]; seen[b, t, s]."""
    q, k, v = (np.asarray(m(y)).reshape(B, -1, H, d) for m, y in ((a.query, x), (a.key, keys), (a.value, keys)))
    u, w = (np.asarray(bias[...]).reshape(H, d) for bias in (a.content_bias, a.position_bias))
    out = np.zeros((B, x.shape[1], H, d))
    for b, t, h in np.ndindex(B, x.shape[1], H):
        places = [s for s in range(keys.shape[1]) if seen[b, t, s]]
        scores = []
        for s in places:
            distance = min(query_places[b, t] - key_places[b, s], 10**6 if a.clamp is None else a.clamp)
            r = np.asarray(a.distance(sinusoids(np.array([distance]), D))).reshape(H, d)[h]
            scores.append(((q[b, t, h] + u[h]) @ k[b, s, h] + (q[b, t, h] + w[h]) @ r) / np.sqrt(d))
        weights = np.exp(np.array(scores) - max(scores))
        out[b, t, h] = sum(p * v[b, s, h] for p, s in zip(weights / weights.sum(), places))
    return np.asarray(a.output(jnp.float32(out.reshape(B, -1, H * d))))


def context(seed=1, valid=None, window=None) -> Context:
    valid = np.ones((B, C), bool) if valid is None else valid
    return Context(np.arange(-C, 0), jnp.asarray(valid), hidden_BxCxD=jnp.asarray(normal(seed, B, C, D)), window=window)


def test_sinusoids_are_sines_then_cosines():
    got = sinusoids(np.array([0, 1, 7]), 4)
    want = [[np.sin(n), np.sin(n / 100), np.cos(n), np.cos(n / 100)] for n in (0, 1, 7)]
    np.testing.assert_allclose(got, want, atol=1e-7)
    assert got.dtype == np.float32


@pytest.mark.parametrize("queries, keys", [(4, 4), (3, 8), (1, 5), (1, 1)])
def test_shift_puts_every_distance_at_its_key(queries, keys):
    distances = np.broadcast_to(np.arange(keys)[::-1], (1, 2, queries, keys)).astype(np.float32)
    got = np.asarray(shift_to_keys(jnp.asarray(distances)))
    for t in range(queries):
        for s in range(keys - queries + t + 1):
            assert got[0, 1, t, s] == (keys - queries + t) - s


@pytest.mark.parametrize("clamp", [None, 2])
@pytest.mark.parametrize("with_context", [False, True])
def test_against_the_formula(clamp, with_context):
    a, x = attention(clamp), normal(0, B, T, D)
    seen = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    keys, places, memory = x, np.arange(T), None
    if with_context:
        valid = np.array([[True] * C, [False, True, True]])
        memory = context(valid=valid)
        keys, places = np.concatenate([memory.hidden_BxCxD, x], axis=1), np.arange(-C, T)
        seen = np.concatenate([np.broadcast_to(valid[:, None], (B, T, C)), seen], axis=-1)
    got = a(x, jnp.arange(T), None, memory).output_BxTxD
    rows = lambda p: np.broadcast_to(p, (B, len(p)))
    np.testing.assert_allclose(got, naive(a, x, keys, rows(np.arange(T)), rows(places), seen), **TIGHT)


def test_padding_takes_no_distance():
    """Positions count real tokens: a row with padding gives the real ones what they get without it."""
    a, x = attention(), normal(2, B, T, D)
    valid = np.ones((B, T), bool)
    valid[0, 1] = valid[0, 3] = valid[1, 0] = False
    positions = jnp.asarray(np.maximum(np.cumsum(valid, axis=1) - 1, 0))
    got = np.asarray(a(x, positions, jnp.asarray(valid), context()).output_BxTxD)
    for b in range(B):
        alone = x[b : b + 1, valid[b]]
        memory = context()._replace(hidden_BxCxD=context().hidden_BxCxD[b : b + 1], valid_BxC=jnp.ones((1, C), bool))
        want = a(alone, jnp.arange(alone.shape[1]), None, memory).output_BxTxD
        np.testing.assert_allclose(got[b, valid[b]], want[0], **TIGHT)


def test_shared_and_per_row_positions_agree():
    """The shift and the lookup by distance are the same function."""
    a, x = attention(2), normal(3, B, T, D)
    rows = jnp.broadcast_to(jnp.arange(T), (B, T))
    for memory in (None, context(), context(window=3)):
        want = a(x, jnp.arange(T), None, memory).output_BxTxD
        got = a(x, rows, jnp.ones((B, T), bool), memory).output_BxTxD
        np.testing.assert_allclose(got, want, **TIGHT)


@pytest.mark.parametrize("memory", [None, context(), context(window=3)], ids=["bare", "context", "window"])
def test_decoding_token_by_token_equals_one_pass(memory):
    a, x = attention(4), normal(4, B, T, D)
    want = a(x, jnp.arange(T), None, memory).output_BxTxD
    room = T + 2
    cache = KeyValueCache(jnp.zeros((B, room, H, d)), jnp.zeros((B, room, H, d)), jnp.zeros((B, room), bool))
    for t in range(T):
        positions = jnp.full((B, 1), t)
        out = a(x[:, t : t + 1], positions, jnp.ones((B, 1), bool), memory, cache, t)
        cache = out.cache
        np.testing.assert_allclose(out.output_BxTxD[:, 0], want[:, t], **TIGHT)


@pytest.mark.parametrize("build", [lambda: attention(), lambda: rotary()], ids=["relative", "rotary"])
def test_a_window_hides_what_is_too_far_back(build):
    """Window 3: entry c of the context is seen by query t only where t + C - c < 3; the segment's own keys likewise."""
    a, x = build(), normal(5, B, T, D)
    base = np.asarray(a(x, jnp.arange(T), None, context(window=3)).output_BxTxD)
    for place in range(C + T):
        hidden, own = np.array(context().hidden_BxCxD), x.copy()
        (hidden if place < C else own)[:, place if place < C else place - C] += 1.0
        memory = context(window=3)._replace(hidden_BxCxD=jnp.asarray(hidden))
        moved = np.abs(np.asarray(a(own, jnp.arange(T), None, memory).output_BxTxD) - base).max(axis=(0, 2)) > 1e-5
        np.testing.assert_array_equal(moved, [0 <= t + C - place < 3 for t in range(T)])


def rotary() -> Attention:
    return Attention(D, H, 2, 4, rotary=Rotary(4), bias=False, init=Init(kernel=None), dtype=jnp.float32, rngs=nnx.Rngs(1))


def test_dropout_of_the_weights_is_drawn_per_row():
    a, x = attention(dropout=0.5), normal(6, B, T, D)
    keys = row_keys(jax.random.key(0), B)
    run = lambda x, keys: np.asarray(a(x, jnp.arange(T), keys_B=keys).output_BxTxD)
    np.testing.assert_allclose(run(x, None), run(x, None))
    assert np.abs(run(x, keys) - run(x, None)).max() > 1e-2
    np.testing.assert_allclose(run(x[1:], keys[1:]), run(x, keys)[1:], **TIGHT)


@pytest.mark.parametrize("positions", [np.arange(-C - 1, -1), np.arange(C), jnp.arange(-C, 0)])
def test_a_context_elsewhere_is_refused(positions):
    with pytest.raises(ValueError, match="can only see the 3 places right before the segment, -3..-1"):
        attention()(normal(0, B, T, D), jnp.arange(T), None, context()._replace(positions=positions))
