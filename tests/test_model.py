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

from armt_jax.memory.associative import ARMT
from armt_jax.memory.interface import LayerMemory, MemoryConfig
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPTNeoX
from armt_jax.nn.layers import row_keys
from tests.models import ARMT_, CONFIGS, GPT2_, LLAMA, SIZES, TARGETS, TOKENS, B, N, T, V, build, random_tokens, same


@pytest.fixture(scope="module")
def model():
    return build(CONFIGS["armt"])


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


@pytest.mark.parametrize("schedule", ["sequential", "diagonal"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_peek_within_a_row_is_one_on_the_way(name, schedule):
    """Row 0 peeks at its second segment of three, row 1 at its first; each then stands where it would have without."""
    if name == "rmt" and schedule == "diagonal":
        pytest.skip("refused by the config: the state is not layer-local")
    model = build(CONFIGS[name])
    run = model.with_recurrence(schedule=schedule)
    tokens, peek = random_tokens(3, length=3 * T), np.array([[False, True, False], [True, False, False]])
    logits, state = run(tokens, peek_BxS=peek)
    for row, (before, after) in enumerate([((0, T), (2 * T, 3 * T)), ((0, 0), (T, 3 * T))]):
        ids, at = tokens[row : row + 1], slice(before[1], before[1] + T)
        first = model.ingest(ids[:, slice(*before)]) if before[1] else model.init_state(1)
        same(logits[row : row + 1, at], model.peek(ids[:, at], first))
        rest, last = model(ids[:, slice(*after)], first)
        same(logits[row : row + 1, slice(*after)], rest)
        for axis, part, want in ((1, state.layers, last.layers), (0, state.tokens, last.tokens)):
            same(jax.tree.map(functools.partial(jnp.take, indices=np.array([row]), axis=axis), part), want)
    with pytest.raises(ValueError, match=r"peek has the shape \[2, 2\], and these tokens need \[2, 3\]"):
        model(tokens, peek_BxS=peek[:, :2])


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
