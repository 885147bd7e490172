"""MemoryTransformer as users call it: what it refuses, what its entry points agree on."""

import dataclasses
import functools
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax import model as model_module
from armt_jax.memory.associative import ARMT
from armt_jax.memory.interface import LayerMemory, MemoryConfig
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, GPTNeoX, Llama
from armt_jax.nn.layers import row_keys

V, B, T, N = 20, 2, 4, 10
SIZES = dict(
    vocab_size=V, num_layers=2, width=16, num_heads=4, mlp_width=24, max_positions=16, kernel_std=None, embedding_std=0.5
)
LLAMA, GPT2_ = Llama(**SIZES, num_kv_heads=2), GPT2(**SIZES, position_std=0.5)
ARMT_ = ARMT(num_memory_tokens=2, d_mem=8, value_std=None)
CONFIGS = {
    "armt": ModelConfig(LLAMA, ARMT_, RecurrenceConfig(segment_length=T)),
    "armt-table": ModelConfig(GPT2_, dataclasses.replace(ARMT_, positions="table"), RecurrenceConfig(segment_length=T)),
    "rmt": ModelConfig(GPT2_, RMT(num_memory_tokens=2), RecurrenceConfig(segment_length=T)),
    "parallel-rmt": ModelConfig(GPTNeoX(**SIZES, rotary_pct=0.5), ParallelRMT(2), RecurrenceConfig(segment_length=T)),
}


@functools.cache
def build(config) -> MemoryTransformer:
    return MemoryTransformer(config, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def model():
    return build(CONFIGS["armt"])


def random_tokens(seed=0, batch=B, length=N):
    return np.random.default_rng(seed).integers(0, V, (batch, length)).astype(np.int32)


TOKENS, TARGETS = random_tokens(0), random_tokens(1)


def same(a, b, atol=2e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol * max(1.0, float(np.max(np.abs(y)))))


# ---- what is refused ----


@pytest.mark.parametrize("bad", [V, 99, -1])
def test_ids_outside_the_vocabulary_are_named(model, bad):
    tokens = TOKENS.copy()
    tokens[1, 7] = bad
    message = re.escape(f"token id {bad} (row 1, position 7) is outside the vocabulary 0..{V - 1}")
    for call in (
        model,
        model.ingest,
        model.peek,
        lambda t: model.losses(t, t, t),
        lambda t: model.generate(t, max_new_tokens=1),
    ):
        with pytest.raises(ValueError, match=message):
            call(tokens)


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (3,), (1, 2, 3)])
def test_a_row_needs_tokens(model, shape):
    with pytest.raises(ValueError, match=r"tokens must be \[batch, length\] with at least one token"):
        model(jnp.zeros(shape, jnp.int32))


def test_tokens_are_integers(model):
    with pytest.raises(ValueError, match="tokens must be integers, not float32"):
        model(jnp.zeros((B, N)))


def test_state_of_another_batch_or_dtype_or_model_is_refused(model):
    with pytest.raises(ValueError, match=r"float32\[2, 3, 1, 48, 16\], and 2 rows .* need float32\[2, 2, 1, 48, 16\]"):
        model(TOKENS, model.init_state(3))
    with pytest.raises(ValueError, match="is bfloat16.*keep the state in float32"):
        model(TOKENS, jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.init_state(B)))
    for other in (build(CONFIGS["rmt"]).init_state(B), model.init_state(B).layers, {}):
        with pytest.raises(ValueError, match=r"has the structure .* start from model.init_state\(batch\)"):
            model(TOKENS, other)
    with pytest.raises(ValueError, match="need float32"):
        model.generate(TOKENS, model.init_state(3), max_new_tokens=1)


class Forgetful(LayerMemory):
    reversible: ClassVar[bool] = False


class ForgetfulConfig(MemoryConfig):
    layer_class: ClassVar[type] = Forgetful


def config(backbone=LLAMA, memory=ARMT_, dtype="float32", **recurrence):
    return ModelConfig(backbone, memory, RecurrenceConfig(**{"segment_length": T, **recurrence}), dtype)


@pytest.mark.parametrize(
    "bad, message",
    [
        (lambda: config(memory=RMT(2), schedule="diagonal"), "'diagonal' needs layer-local memory, and memory RMT is not"),
        (lambda: config(memory=ForgetfulConfig(), gradient="reversible"), "can undo a commit, and ForgetfulConfig cannot"),
        (lambda: config(memory=ARMT(num_heads=3, d_mem=6)), "backbone.width = 16 is not a multiple of memory.num_heads = 3"),
        (lambda: config(segment_length=15), "15 with 2 memory tokens of ARMT does not fit backbone.max_positions = 16"),
        (lambda: config(memory=RMT(7)), "segment_length = 4 with 14 memory tokens of RMT does not fit"),
        (lambda: config(GPT2_, RMT(2, positions="table"), segment_length=17), "segment_length = 17 .* does not fit"),
        (lambda: config(memory=RMT(2, positions="table")), "needs a backbone with a learned position table, and Llama"),
        (lambda: config(schedule="zigzag"), "recurrence.schedule = 'zigzag' must be one of"),
        (lambda: config(gradient="forget"), "recurrence.gradient = 'forget' must be one of"),
        (lambda: config(align="centre"), "recurrence.align = 'centre' must be one of"),
        (lambda: config(segment_length=0), "recurrence.segment_length = 0 must be at least 1"),
        (lambda: config(anchor_every=0), "recurrence.anchor_every = 0 must be at least 1"),
        (lambda: config(bptt_segments=0), "recurrence.bptt_segments = 0 must be at least 1, or None"),
        (lambda: config(dtype="float8"), "dtype = 'float8' must be one of"),
        (lambda: RMT(0), "num_memory_tokens = 0 must be at least 1"),
        (lambda: ARMT(num_heads=0), "memory.num_heads = 0 must be at least 1"),
        (lambda: dataclasses.replace(LLAMA, width=12, num_heads=4), "a head of 3 features .* make it even"),
        (lambda: dataclasses.replace(LLAMA, num_kv_heads=0), "backbone.num_kv_heads = 0 must be at least 1, or None"),
        (lambda: GPTNeoX(**SIZES, rotary_pct=2.0), "rotary_pct = 2.0 of head size 4 rotates 8 .* at most all of them"),
        (lambda: ParallelRMT(0), "num_memory_tokens = 0 must be at least 1"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


def test_memory_rows_of_a_grown_table_need_no_room_among_the_positions():
    """ "table" adds rows for memory tokens: a segment may fill all positions, where "running" needs some for them."""
    model = build(config(GPT2_, RMT(2, positions="table"), segment_length=16))
    assert model.positions.table.shape == (16 + 4, 16)
    assert model(random_tokens(length=16))[0].shape == (B, 16, V)


@pytest.mark.parametrize("target", [-100, V])
def test_a_target_outside_the_vocabulary_is_refused_where_it_counts(target):
    """PyTorch's index of what to ignore would be taken for a token counted from the end."""
    model = build(config())
    targets, weights = np.array(TARGETS), np.ones(TARGETS.shape, np.float32)
    targets[1, 2] = target
    with pytest.raises(ValueError, match=rf"target {target} \(row 1, position 2\) is outside the vocabulary .* give it weight 0"):
        model.losses(TOKENS, targets, weights)
    with pytest.raises(ValueError, match=f"target {target} "):
        model.token_losses(TOKENS, targets)
    weights[1, 2] = 0
    assert np.isfinite(np.asarray(model.losses(TOKENS, targets, weights).loss_S)).all()


# ---- entry points agree ----


@pytest.mark.parametrize("name", CONFIGS)
def test_ingest_and_peek(name):
    model = build(CONFIGS[name])
    first = model.ingest(TOKENS)
    logits, state = model(TARGETS, first)
    same(model.ingest(TARGETS, first), state, 0)
    kept = jax.tree.map(np.array, first)
    np.testing.assert_array_equal(model.peek(TARGETS, first), logits)
    same(first, kept, 0)
    fresh, _ = model(TARGETS)
    assert np.abs(np.asarray(logits) - np.asarray(fresh)).max() > 1e-2
    same(model(TARGETS, model.init_state(B))[0], fresh, 0)


@pytest.mark.parametrize("align", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_row_equals_the_row_alone(name, align):
    """Row 1 has 7 tokens of 10, row 2 has 3; padded at the end where the last segment is the short one, else at the start."""
    model = build(CONFIGS[name]).with_recurrence(align=align)
    lengths, tokens = (10, 7, 3), random_tokens(2, batch=3)
    cuts = [np.s_[:n] if align == "left" else np.s_[N - n :] for n in lengths]
    valid = np.zeros((3, N), bool)
    for i, cut in enumerate(cuts):
        valid[i, cut] = True
    run = nnx.jit(lambda m, t, v: m(t, valid_BxN=v))
    logits, state = run(model, tokens, valid)
    for i, cut in enumerate(cuts):
        alone, after = run(model, tokens[i : i + 1, cut], None)
        np.testing.assert_allclose(logits[i, cut], alone[0], atol=5e-5)
        row = type(state)(
            jax.tree.map(lambda a, i=i: a[:, i : i + 1], state.layers), jax.tree.map(lambda a, i=i: a[i : i + 1], state.tokens)
        )
        same(row, after)


@pytest.mark.parametrize("align", ["left", "right"])
def test_a_short_segment_stands_at_the_end_or_at_the_start(model, align):
    """10 = 4 + 4 + 2 or 2 + 4 + 4, fed one by one."""
    model = model.with_recurrence(align=align)
    want, state = model(TOKENS)
    ends = (0, 4, 8, 10) if align == "left" else (0, 2, 6, 10)
    outputs, carried = [], None
    for start, end in zip(ends, ends[1:]):
        logits, carried = model(TOKENS[:, start:end], carried)
        outputs.append(logits)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), want, atol=2e-5)
    same(carried, state)


def test_with_recurrence_shares_the_weights(model):
    other = model.with_recurrence(segment_length=5, schedule="diagonal")
    assert (other.config.recurrence.segment_length, other.config.recurrence.schedule) == (5, "diagonal")
    assert model.config.recurrence == CONFIGS["armt"].recurrence
    for a, b in zip(jax.tree.leaves(nnx.split(model)[1]), jax.tree.leaves(nnx.split(other)[1]), strict=True):
        assert a.unsafe_buffer_pointer() == b.unsafe_buffer_pointer()
    np.testing.assert_allclose(model.with_recurrence(schedule="diagonal")(TOKENS)[0], model(TOKENS)[0], atol=2e-5)
    assert np.abs(np.asarray(other(TOKENS)[0] - model(TOKENS)[0])).max() > 1e-2
    with pytest.raises(ValueError, match="segment_length = 15"):
        model.with_recurrence(segment_length=15)


def test_under_jit(model):
    logits, state = model(TOKENS)
    jitted, jitted_state = nnx.jit(lambda m, t: m(t))(model, TOKENS)
    np.testing.assert_allclose(jitted, logits, atol=2e-5)
    same(jitted_state, state)
    graphdef, params = nnx.split(model)
    pure, _ = jax.jit(lambda p, t, s: nnx.merge(graphdef, p)(t, s))(params, TOKENS, model.init_state(B))
    np.testing.assert_allclose(pure, logits, atol=2e-5)


def test_dropout_needs_a_key_and_obeys_it():
    model = build(dataclasses.replace(CONFIGS["armt"], backbone=dataclasses.replace(LLAMA, dropout=0.3)))
    plain = build(CONFIGS["armt"])(TOKENS)[0]
    np.testing.assert_array_equal(model(TOKENS)[0], plain)
    run = nnx.jit(lambda m, key: m(TOKENS, key=key)[0])
    first, again, other = (np.asarray(run(model, jax.random.key(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 1e-2 and np.abs(first - other).max() > 1e-2
    keys_B = row_keys(jax.random.key(1), B)
    np.testing.assert_array_equal(run(model, keys_B), first)
    with pytest.raises(ValueError, match="not a PRNG key: make one with jax.random.key"):
        model(TOKENS, key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match=r"key has the shape \[3\], and these tokens need \[2\]"):
        model(TOKENS, key=row_keys(jax.random.key(1), 3))


# ---- losses ----


def hand_computed(logits, targets, weights):
    """[B, N] weighted cross-entropies in float64."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    log_probs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0] * weights


WEIGHTS = np.random.default_rng(3).uniform(0, 2, TOKENS.shape).astype(np.float32) * (np.arange(N) % 3 != 1)


@pytest.mark.parametrize("align, ends", [("left", (0, 4, 8, 10)), ("right", (0, 2, 6, 10))])
def test_losses_are_sums_of_weighted_cross_entropy_by_segment(model, align, ends):
    model = model.with_recurrence(align=align)
    logits, state = model(TOKENS)
    out = model.losses(TOKENS, TARGETS, WEIGHTS)
    nll = hand_computed(logits, TARGETS, WEIGHTS)
    np.testing.assert_allclose(out.loss_S, [nll[:, a:b].sum() for a, b in zip(ends, ends[1:])], rtol=1e-5)
    np.testing.assert_allclose(out.weight_S, [WEIGHTS[:, a:b].sum() for a, b in zip(ends, ends[1:])], rtol=1e-6)
    np.testing.assert_array_equal(out.correct_BxN, np.asarray(logits).argmax(-1) == TARGETS)
    same(out.state, state)
    assert out.loss_S.dtype == out.weight_S.dtype == jnp.float32


def test_segments_that_weigh_nothing_cost_no_head_and_change_no_gradient(model):
    """The loss is on the second segment of three; the head's product is under a condition that the others do not meet."""
    weights = jnp.asarray(WEIGHTS * ((np.arange(N) >= 4) & (np.arange(N) < 8)))
    graphdef, params = nnx.split(model)

    def sparse(params, weights):
        return nnx.merge(graphdef, params).losses(TOKENS, TARGETS, weights).loss_S.sum()

    def dense(params, weights):
        logits, _ = nnx.merge(graphdef, params)(TOKENS)
        nll = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
        return jnp.sum(nll * weights)

    (one, gradient), (other, wanted) = (jax.jit(jax.value_and_grad(f))(params, weights) for f in (sparse, dense))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    out = model.losses(TOKENS, TARGETS, weights)
    assert out.loss_S[0] == out.loss_S[2] == 0 and out.loss_S[1] > 0
    nothing = jax.jit(jax.value_and_grad(sparse))(params, jnp.zeros_like(weights))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(nothing))


def test_correct_marks_the_likeliest_token(model):
    best = np.asarray(model(TOKENS)[0]).argmax(-1)
    assert np.all(model.losses(TOKENS, best, WEIGHTS).correct_BxN)
    assert not np.any(model.losses(TOKENS, (best + 1) % V, WEIGHTS).correct_BxN)


def test_padding_has_no_weight(model):
    valid = np.ones(TOKENS.shape, bool)
    valid[0, 6:], valid[1, 2] = False, False
    out = model.losses(TOKENS, TARGETS, WEIGHTS + 1, valid_BxN=valid)
    logits, _ = model(TOKENS, valid_BxN=valid)
    nll = hand_computed(logits, TARGETS, (WEIGHTS + 1) * valid)
    np.testing.assert_allclose(out.loss_S.sum(), nll.sum(), rtol=1e-5)
    np.testing.assert_allclose(out.weight_S.sum(), ((WEIGHTS + 1) * valid).sum(), rtol=1e-6)


def test_logits_are_grouped_by_whole_segments(model, monkeypatch):
    tokens, targets = random_tokens(4, length=6 * T), random_tokens(5, length=6 * T)
    weights = np.ones(tokens.shape, np.float32)

    def result():
        graphdef, params = nnx.split(model)

        def loss(params):
            out = nnx.merge(graphdef, params).losses(tokens, targets, weights)
            return out.loss_S.sum(), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    want = result()
    one = B * T * V
    for room, group in ((1, 1), (one, 1), (2 * one, 2), (4 * one, 3), (5 * one + 1, 3), (100 * one, 6)):
        monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", room)
        assert model._segments_at_once(6, B, T) == group
        if group in (1, 2) and room != one:
            same(result(), want)


@pytest.mark.parametrize("room", [B * 3 * V, B * 2 * V, 1], ids=["3 + 1", "2 + 2", "one by one"])
def test_a_segment_with_many_logits_is_cut(model, monkeypatch, room):
    graphdef, params = nnx.split(model)

    def result():
        def loss(params):
            out = nnx.merge(graphdef, params).losses(TOKENS, TARGETS, WEIGHTS)
            return out.loss_S.sum(), out

        nll = jax.jit(lambda params: nnx.merge(graphdef, params).token_losses(TOKENS, TARGETS)[0])(params)
        (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return out._replace(correct_BxN=out.correct_BxN & (WEIGHTS > 0)), grads, nll

    want = result()
    monkeypatch.setattr(model_module, "LOGITS_AT_MOST", room)
    same(result(), want)


def test_logits_of_a_whole_segment_need_not_exist(monkeypatch):
    backbone = dataclasses.replace(LLAMA, vocab_size=4096, max_positions=80)
    wide = build(ModelConfig(backbone, ARMT_, RecurrenceConfig(segment_length=64, gradient="remat")))
    graphdef, params = nnx.split(wide)
    tokens = random_tokens(4, length=128)
    logits = 4 * B * 64 * 4096

    def peak(room):
        monkeypatch.setattr(model_module, "LOGITS_AT_MOST", room)
        loss = jax.grad(lambda p: nnx.merge(graphdef, p).losses(tokens, tokens, np.ones(tokens.shape, np.float32)).loss_S.sum())
        return jax.jit(loss).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert peak(1 << 40) - peak(B * 8 * 4096) > logits


def test_logits_of_a_whole_row_never_exist(monkeypatch):
    """What the compiled loss needs is far smaller than [B, N, V] when few logits may exist at once."""
    backbone = dataclasses.replace(LLAMA, vocab_size=4096)
    wide = build(ModelConfig(backbone, ARMT_, RecurrenceConfig(segment_length=T, gradient="remat")))
    graphdef, params = nnx.split(wide)
    tokens = random_tokens(4, length=32 * T)
    weights = np.ones(tokens.shape, np.float32)
    logits = tokens.size * 4096 * 4

    def peak(room):
        monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", room)
        loss = jax.jit(lambda p: nnx.merge(graphdef, p).losses(tokens, tokens, weights).loss_S.sum())
        return loss.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert peak(1 << 40) > logits > 4 * peak(1)


# ---- precision ----


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_computes_near_float32_and_keeps_the_state_in_float32(name):
    plain, half = build(CONFIGS[name]), build(dataclasses.replace(CONFIGS[name], dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.split(half)[1])} == {jnp.dtype("float32")}
    logits, state = half(TOKENS)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    # Another call takes that state, so nothing was widened or narrowed on the way.
    weights = np.ones(TOKENS.shape, np.float32)
    out, want = half.losses(TOKENS, TARGETS, weights, state), plain.losses(TOKENS, TARGETS, weights, plain.ingest(TOKENS))
    assert np.all(np.isfinite(out.loss_S))
    assert float(out.loss_S.sum()) == pytest.approx(float(want.loss_S.sum()), rel=0.05)
    assert not np.array_equal(np.asarray(out.loss_S), np.asarray(want.loss_S))


def test_the_empty_state():
    state = build(CONFIGS["armt"]).init_state(3)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(2, 3, 1, 48, 16), (2, 3, 1, 48)]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))
    rmt = build(CONFIGS["rmt"])
    np.testing.assert_array_equal(rmt.init_state(3).tokens, np.broadcast_to(rmt.token_memory.tokens[...], (3, 2, 16)))
    assert rmt.init_state(3).layers == ()
    none = build(ModelConfig(LLAMA, MemoryConfig(), RecurrenceConfig(segment_length=T)))
    assert jax.tree.leaves(none.init_state(3)) == []
