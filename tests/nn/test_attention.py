"""Attention against loops over rows, queries, heads and keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.nn.attention import TILE, Attention, Context, KeyValueCache, dot_product
from armt_jax.nn.layers import Init
from armt_jax.nn.positions import Rotary
from tests.memory.harness import close
from tests.models import CONFIGS, TARGETS, TOKENS, build

B, T, C, H, G, d, D = 2, 5, 3, 4, 2, 4, 16  # G: heads of keys and values


def naive(q, k, v, seen):
    """seen[b][t][s]: may query t of row b look at key s?"""
    out = np.zeros(q.shape[:3] + v.shape[-1:])
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            for h in range(q.shape[2]):
                keys = [s for s in range(k.shape[1]) if seen[b, t, s]]
                scores = np.array([q[b, t, h] @ k[b, s, h // group] for s in keys]) / np.sqrt(q.shape[-1])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[b, t, h] = sum(w * v[b, s, h // group] for w, s in zip(weights, keys))
    return out


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def attention(kv_heads=G, rotary=True, bias=False) -> Attention:
    rotary = Rotary(d) if rotary else None
    made = Attention(D, H, kv_heads, d, rotary=rotary, bias=bias, init=Init(kernel=None), dtype=jnp.float32, rngs=nnx.Rngs(0))
    if bias:
        for i, part in enumerate((made.query, made.key, made.value, made.output)):
            part.bias[...] = normal(30 + i, *part.bias.shape)
    return made


def heads(x, n):
    return np.asarray(x).reshape(*x.shape[:2], n, d)


def projected(a, x, positions):
    """Rotated queries and keys, values."""
    q, k, v = heads(a.query(x), H), heads(a.key(x), -1), heads(a.value(x), -1)
    turn = (lambda y: y) if a.rotary is None else (lambda y: np.asarray(a.rotary(jnp.asarray(y), jnp.asarray(positions))))
    return turn(q), turn(k), v


def put_out(a, found):
    return np.asarray(a.output(jnp.float32(found.reshape(*found.shape[:2], -1))))


CAUSAL = np.tril(np.ones((T, T), bool))


@pytest.mark.parametrize("kv_heads", [H, G, 1])
@pytest.mark.parametrize("case", ["causal", "all", "mask"])
def test_dot_product(kv_heads, case):
    q, k, v = normal(0, B, T, H, d), normal(1, B, T, kv_heads, d), normal(2, B, T, kv_heads, d)
    rng = np.random.default_rng(3)
    mask = (rng.random((B, T, T)) < 0.5) | np.eye(T, dtype=bool) if case == "mask" else None
    seen = {"causal": CAUSAL[None].repeat(B, 0), "all": np.ones((B, T, T), bool), "mask": mask}[case]
    got = dot_product(*map(jnp.asarray, (q, k, v)), mask_BxTxS=mask, causal=case == "causal")
    np.testing.assert_allclose(got, naive(q, k, v, seen), atol=1e-5)


@pytest.mark.parametrize("kv_heads, rotary, bias", [(G, True, False), (H, False, True), (1, True, True)])
def test_plain(kv_heads, rotary, bias):
    a, x = attention(kv_heads, rotary, bias), normal(4, B, T, D)
    got = a(jnp.asarray(x), jnp.arange(T))
    found = naive(*projected(a, x, np.arange(T)), CAUSAL[None].repeat(B, 0))
    np.testing.assert_allclose(got.output_BxTxD, put_out(a, found), atol=1e-5)
    np.testing.assert_allclose(got.keys_BxTxHxd, heads(a.key(x), kv_heads), atol=1e-6)  # before rotation
    np.testing.assert_allclose(got.values_BxTxHxd, heads(a.value(x), kv_heads), atol=1e-6)
    assert got.cache is None


def test_padding_is_not_seen():
    a, x = attention(), normal(4, B, T, D)
    valid = np.array([[True, True, False, True, False], [True] * T])
    positions = np.array([[0, 1, 1, 2, 2], [0, 1, 2, 3, 4]])
    got = np.asarray(a(jnp.asarray(x), jnp.asarray(positions), jnp.asarray(valid)).output_BxTxD)
    want = put_out(a, naive(*projected(a, x, positions), CAUSAL & valid[:, None]))
    np.testing.assert_allclose(got, want, atol=1e-5)
    other = x.copy()
    other[0, 2] = 100
    changed = np.asarray(a(jnp.asarray(other), jnp.asarray(positions), jnp.asarray(valid)).output_BxTxD)
    np.testing.assert_allclose(changed[valid], got[valid], atol=1e-5)


def test_a_row_of_padding_alone_gives_numbers():
    a = attention()
    out = a(jnp.asarray(normal(4, B, T, D)), jnp.arange(T), jnp.zeros((B, T), bool)).output_BxTxD
    assert bool(jnp.all(jnp.isfinite(out)))


SEEN_CONTEXT = np.array([[True, False, True], [False, True, True]])
PAST = np.arange(-C, 0)


@pytest.mark.parametrize("padded", [False, True])
def test_context_of_hidden_states_is_projected_and_stands_before_the_segment(padded):
    a, x, past = attention(), normal(4, B, T, D), normal(5, B, C, D)
    valid = np.array([[True] * T, [True, True, False, True, True]]) if padded else None
    context = Context(jnp.asarray(PAST), jnp.asarray(SEEN_CONTEXT), hidden_BxCxD=jnp.asarray(past))
    got = a(jnp.asarray(x), jnp.arange(T), valid, context)
    q, k, v = projected(a, x, np.arange(T))
    _, more_k, more_v = projected(a, past, PAST)
    own = CAUSAL & (np.ones((B, T), bool) if valid is None else valid)[:, None]
    seen = np.concatenate([SEEN_CONTEXT[:, None].repeat(T, 1), own], axis=-1)
    want = naive(q, np.concatenate([more_k, k], 1), np.concatenate([more_v, v], 1), seen)
    np.testing.assert_allclose(got.output_BxTxD, put_out(a, want), atol=1e-5)
    assert got.keys_BxTxHxd.shape == (B, T, G, d) and got.values_BxTxHxd.shape == (B, T, G, d)


def test_context_of_ready_keys_and_values_equals_hidden_states():
    a, x, past = attention(), jnp.asarray(normal(4, B, T, D)), normal(5, B, C, D)
    kwargs = dict(positions=jnp.asarray(PAST), valid_BxC=jnp.asarray(SEEN_CONTEXT))
    keys, values = (jnp.asarray(heads(part(past), G)) for part in (a.key, a.value))
    hidden = a(x, jnp.arange(T), context=Context(**kwargs, hidden_BxCxD=jnp.asarray(past)))
    ready = a(x, jnp.arange(T), context=Context(**kwargs, keys_BxCxHxd=keys, values_BxCxHxd=values))
    np.testing.assert_allclose(ready.output_BxTxD, hidden.output_BxTxD, atol=1e-6)


def test_an_empty_context_changes_nothing():
    a, x = attention(), jnp.asarray(normal(4, B, T, D))
    context = Context(jnp.asarray(PAST), jnp.zeros((B, C), bool), hidden_BxCxD=jnp.asarray(normal(5, B, C, D)))
    np.testing.assert_allclose(a(x, jnp.arange(T), context=context).output_BxTxD, a(x, jnp.arange(T)).output_BxTxD, atol=1e-6)


def empty_cache(places):
    zeros = jnp.zeros((B, places, G, d))
    return KeyValueCache(zeros, zeros, jnp.zeros((B, places), bool))


@pytest.mark.parametrize("with_context", [False, True])
@pytest.mark.parametrize("pieces", [(1,) * T, (3, 2), (T,)], ids=str)
def test_a_cache_filled_piece_by_piece_equals_one_pass(pieces, with_context):
    a, x = attention(), jnp.asarray(normal(4, B, T, D))
    valid = jnp.asarray(np.array([[True] * T, [False, True, True, True, True]]))
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    context = (
        Context(jnp.asarray(PAST), jnp.asarray(SEEN_CONTEXT), hidden_BxCxD=jnp.asarray(normal(5, B, C, D)))
        if with_context
        else None
    )
    want = a(x, positions, valid, context)
    cache, outputs, start = empty_cache(T + 2), [], 0
    for n in pieces:
        cut = np.s_[:, start : start + n]
        got = a(x[cut], positions[cut], valid[cut], context, cache, jnp.int32(start))
        cache, start = got.cache, start + n
        outputs.append(got.output_BxTxD)
    real = np.asarray(valid)
    np.testing.assert_allclose(np.concatenate(outputs, 1)[real], np.asarray(want.output_BxTxD)[real], atol=1e-5)
    np.testing.assert_array_equal(cache.valid_BxC, np.pad(real, ((0, 0), (0, 2))))


def test_gradients_reach_every_map():
    a, x = attention(bias=True), jnp.asarray(normal(4, B, T, D))
    graphdef, params = nnx.split(a)
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(x, jnp.arange(T)).output_BxTxD)))(params)
    assert all(float(jnp.abs(leaf).max()) > 1e-4 for leaf in jax.tree.leaves(grads))


@pytest.fixture
def asked(monkeypatch):
    """As on an NVIDIA GPU, with XLA's attention in cuDNN's place: what was asked for."""
    asked, real = {}, jax.nn.dot_product_attention

    def attention(q, k, v, *, mask, implementation, **options):
        asked.update(implementation=implementation, sides=(q.shape[1], k.shape[1]), mask=mask)
        return real(q, k, v, mask=mask, implementation="xla", **options)

    monkeypatch.setattr("armt_jax.nn.attention._on_cuda", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    monkeypatch.delenv("ARMT_JAX_ATTENTION", raising=False)
    return asked


@pytest.mark.parametrize(
    ("takes", "dtype", "head", "sides", "masked"),
    [
        (True, jnp.bfloat16, 64, (6, 6), False), (True, jnp.bfloat16, 64, (7, 7), True), (True, jnp.float16, 128, (6, 8), True),
        (True, jnp.bfloat16, 64, (128, 128), True), (True, jnp.bfloat16, 64, (130, 257), True), (True, jnp.bfloat16, 64, (7, 8), False),
        (False, jnp.float32, 64, (6, 6), False), (False, jnp.bfloat16, 20, (6, 6), False), (False, jnp.bfloat16, 256, (6, 6), False),
        (False, jnp.bfloat16, 64, (1, 7), True),
    ],
)  # fmt: skip
def test_cudnn_is_asked_only_for_what_it_takes(asked, takes, dtype, head, sides, masked):
    """And always in whole tiles."""
    q, k, v = (jnp.asarray(normal(i, 1, n, 2, head), dtype) for i, n in enumerate([sides[0], sides[1], sides[1]]))
    out = dot_product(q, k, v, mask_BxTxS=jnp.ones((1, *sides), bool) if masked else None, causal=not masked)
    assert asked["implementation"] == ("cudnn" if takes else "xla")
    assert asked["sides"] == (tuple(-(-n // TILE) * TILE for n in sides) if takes else sides)
    want = dot_product_in_float64(q, k, v, np.ones(sides, bool) if masked else np.tril(np.ones(sides, bool)))
    np.testing.assert_allclose(out.astype(jnp.float32), want, atol=1e-5 if dtype == jnp.float32 else 0.02)


def dot_product_in_float64(q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, mask_TxS):
    q, k, v = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q_BxTxHxd, k_BxSxHxd, v_BxSxHxd))
    scores = np.where(mask_TxS, np.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


def test_attention_can_be_had_from_xla_on_a_gpu(asked, monkeypatch):
    q = jnp.ones((1, 6, 2, 64), jnp.bfloat16)
    monkeypatch.setenv("ARMT_JAX_ATTENTION", "xla")
    dot_product(q, q, q, mask_BxTxS=None, causal=True)
    assert asked["implementation"] == "xla" and asked["sides"] == (6, 6)
    monkeypatch.setenv("ARMT_JAX_ATTENTION", "cudnn")
    with pytest.raises(ValueError, match="ARMT_JAX_ATTENTION='cudnn' must be 'xla'"):
        dot_product(q, q, q, mask_BxTxS=None, causal=True)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("case", ["causal", "padded on the left", "with a cache", "a row without anything"])
def test_whole_tiles_change_neither_values_nor_gradients(asked, monkeypatch, case, heads):
    T, past = 130, 70 if case == "with a cache" else 0
    q, k, v = (jnp.asarray(normal(i, 2, *sides, 8)) for i, sides in enumerate([(T, 4), *[(past + T, heads)] * 2]))
    seen = np.tril(np.ones((T, past + T), bool), past)[None].repeat(2, 0)
    if case == "padded on the left":
        seen[1, :, :37] = False  # the first 37 queries see nothing
    if case == "a row without anything":
        seen[1] = False
    some = seen.any(-1)[..., None, None]
    causal = case == "causal"

    def attend(q, k, v):
        out = jnp.where(some, dot_product(q, k, v, mask_BxTxS=None if causal else jnp.asarray(seen), causal=causal), 0.0)
        return jnp.sum(jnp.sin(out) * normal(9, *out.shape)), out

    each = jax.value_and_grad(attend, (0, 1, 2), has_aux=True)
    want = each(q, k, v)
    assert asked["implementation"] == "xla"
    monkeypatch.setattr("armt_jax.nn.attention._cudnn_takes", lambda q: True)
    got = each(q, k, v)
    assert asked["implementation"] == "cudnn" and asked["sides"][0] == 256
    assert causal or bool(jnp.all(jnp.any(asked["mask"], axis=-1)))  # queries that were filled in, too
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, want)


@pytest.mark.parametrize("heads", [4, 2])
def test_tokens_that_are_not_real_stand_last_for_cudnn(asked, monkeypatch, heads):
    """No mask, which would be as large as all scores: the same values and gradients at real tokens, finite ones at the others."""
    T = 130
    q, k, v = (jnp.asarray(normal(i, 3, T, n, 8)) for i, n in enumerate([4, heads, heads]))
    valid = np.ones((3, T), bool)
    valid[0, 50:120] = False  # between a short text and the memory tokens
    valid[1, :70] = False
    valid[2, ::3] = False
    mask, real = jnp.asarray(np.tril(np.ones((T, T), bool)) & valid[:, None]), valid[..., None, None]

    def attend(q, k, v):
        out = dot_product(q, k, v, mask_BxTxS=mask, causal=False, valid_BxT=jnp.asarray(valid))
        return jnp.sum(jnp.sin(jnp.where(real, out, 0.0)) * normal(9, *out.shape)), out

    each = jax.value_and_grad(attend, (0, 1, 2), has_aux=True)
    (want, want_out), want_grads = each(q, k, v)
    monkeypatch.setattr("armt_jax.nn.attention._cudnn_takes", lambda q: True)
    (got, out), grads = each(q, k, v)
    assert asked["implementation"] == "cudnn" and asked["sides"] == (256, 256) and asked["mask"] is None
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(np.where(real, out, 0), np.where(real, want_out, 0), atol=1e-5)
    assert np.isfinite(out).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, want_grads)


@pytest.mark.parametrize("name", ["armt", "rmt"])
@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
def test_whole_models_are_the_same_in_whole_tiles(asked, monkeypatch, name, schedule):
    """On diagonals attention runs under vmap, with a mask for each layer."""
    if name == "rmt" and schedule == "diagonal":
        pytest.skip("not layer-local")
    graphdef, params = nnx.split(build(CONFIGS[name]).with_recurrence(schedule=schedule, gradient="store"))
    valid = np.ones(TOKENS.shape, bool)
    valid[1, 5:] = False
    weights = valid.astype(np.float32)

    def loss(params):
        return nnx.merge(graphdef, params).losses(TOKENS, TARGETS, weights, valid_BxN=valid).loss_S.sum()

    want = jax.jit(jax.value_and_grad(loss))(params)
    assert asked["implementation"] == "xla"
    monkeypatch.setattr("armt_jax.nn.attention._cudnn_takes", lambda q: True)
    got = jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)
    assert asked["implementation"] == "cudnn" and asked["mask"] is None
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    close(got[1], want[1], 1e-4)


def test_attention_tells_cudnn_which_tokens_are_real(asked, monkeypatch):
    a, x = attention(), jnp.asarray(normal(4, B, T, D))
    valid = jnp.asarray(np.array([[True] * T, [True, True, False, False, True]]))
    want = a(x, jnp.arange(T), valid).output_BxTxD
    monkeypatch.setattr("armt_jax.nn.attention._cudnn_takes", lambda q: True)
    got = a(x, jnp.arange(T), valid).output_BxTxD
    assert asked["implementation"] == "cudnn" and asked["mask"] is None
    np.testing.assert_allclose(np.asarray(got)[valid], np.asarray(want)[valid], atol=1e-5)


@pytest.mark.parametrize("how", ["causal", "a mask", "real tokens"])
@pytest.mark.parametrize("length", [24, 72, 128, 192, 520])
def test_on_a_gpu_gradients_are_finite_where_all_scores_are_low(length, how):
    """Where cuDNN's backward pass is known to have given NaN (a mask, 64 keys more than whole tiles, scores below -88), and around it."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU: JAX_PLATFORMS=cuda pytest -n 0 -k on_a_gpu tests/nn/test_attention.py")
    q, k, v = (jnp.asarray(normal(i, 2, length, 4, 32)) for i in range(3))
    q, k = (0.1 * x for x in (q, k))
    q, k = q.at[..., 0].set(1.0), k.at[..., 0].set(-120 * 32**0.5)
    seen = jnp.tril(jnp.ones((length, length), bool))[None].repeat(2, 0)

    valid = jnp.ones((2, length), bool).at[1, 5:-8].set(False) if how == "real tokens" else None
    mask = None if how == "causal" else seen if valid is None else seen & valid[:, None]

    def attend(q, k, v):
        out = dot_product(q, k, v, mask_BxTxS=mask, causal=mask is None, valid_BxT=valid).astype(jnp.float32)
        return jnp.sum(jnp.sin(out if valid is None else jnp.where(valid[..., None, None], out, 0.0)))

    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    grads = jax.jit(jax.grad(attend, (0, 1, 2)))(*half)
    assert all(bool(jnp.all(jnp.isfinite(grad))) for grad in grads)
    with jax.default_matmul_precision("highest"):
        want = jax.grad(attend, 2)(*(x.astype(jnp.float32) for x in half))
    # (Those of q and k are sums that cancel, of terms 700 times as large.)
    assert float(jnp.linalg.norm(grads[2].astype(jnp.float32) - want) / jnp.linalg.norm(want)) < 0.02


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "past", "heads"), [(514, 0, 2), (514, 0, 8), (517, 0, 8), (128, 64, 8)])
def test_on_a_gpu_half_precision_attends_as_float32_does(length, past, heads, masked):
    """Whatever kernel is chosen: the value and the gradients of segments with memory tokens, padded rows and a cache."""
    if jax.default_backend() != "gpu":
        pytest.skip("needs a GPU: JAX_PLATFORMS=cuda pytest -n 0 -k on_a_gpu tests/nn/test_attention.py")
    q, k, v = (jnp.asarray(normal(i, 2, *sides, 64)) for i, sides in enumerate([(length, 8), *[(past + length, heads)] * 2]))
    seen = jnp.tril(jnp.ones((length, past + length), bool), past)[None].repeat(2, 0)
    if masked:
        seen = seen.at[1, :, past + length // 2 : past + length - 1].set(False)
    causal = not masked and not past

    def attend(q, k, v):
        out = dot_product(q, k, v, mask_BxTxS=None if causal else seen, causal=causal)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    with jax.default_matmul_precision("highest"):
        (_, want), want_grads = jax.value_and_grad(attend, (0, 1, 2), has_aux=True)(q, k, v)
    half = [each.astype(jnp.bfloat16) for each in (q, k, v)]
    (_, got), grads = jax.jit(jax.value_and_grad(attend, (0, 1, 2), has_aux=True))(*half)
    error = lambda a, b: float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
    assert error(got, want) < 0.01
    assert max(error(a, b) for a, b in zip(grads, want_grads)) < 0.02
    # As the diagonals call it: layers side by side, each with a mask of its own.
    layers = [jnp.stack([each, each[:, :, ::-1]]) for each in half]
    one = lambda q, k, v, seen: dot_product(q, k, v, mask_BxTxS=None if causal else seen, causal=causal)
    side_by_side = jax.jit(jax.vmap(one))(*layers, jnp.stack([seen, seen]))
    assert error(side_by_side[0], want) < 0.01 and error(side_by_side[1, :, :, ::-1], want) < 0.01
