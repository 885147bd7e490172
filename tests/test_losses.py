"""Losses by segment, against cross-entropy by hand; how many logits exist at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax import model as model_module
from armt_jax.model import ModelConfig, RecurrenceConfig
from armt_jax.nn.heads import weighed_losses
from tests.models import ARMT_, CONFIGS, LLAMA, TARGETS, TOKENS, B, N, T, V, build, random_tokens, same


@pytest.fixture(scope="module")
def model():
    return build(CONFIGS["armt"])


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


@pytest.mark.parametrize("every", [16, 5, 1], ids=["few", "more than few", "all"])
def test_losses_of_few_tokens_are_those_of_all(every):
    """Segments of 64 tokens, of which up to 8 are computed apart: losses and gradients are those of logits of whole rows."""
    wide = build(ModelConfig(dataclasses.replace(LLAMA, max_positions=80), ARMT_, RecurrenceConfig(segment_length=64)))
    graphdef, params = nnx.split(wide)
    tokens, targets = random_tokens(4, length=160), random_tokens(5, length=160)
    weights = np.random.default_rng(3).uniform(1, 2, tokens.shape).astype(np.float32) * (np.arange(160) % every == 0)

    def sparse(params):
        out = nnx.merge(graphdef, params).losses(tokens, targets, weights)
        return out.loss_S.sum(), out.correct_BxN

    def dense(params):
        logits, _ = nnx.merge(graphdef, params)(tokens)
        nll = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jnp.sum(nll * weights), jnp.argmax(logits, -1) == targets

    ((one, right), gradient), ((other, true), wanted) = (jax.jit(jax.value_and_grad(f, has_aux=True))(params) for f in (sparse, dense))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_array_equal(right[weights > 0], true[weights > 0])
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max() + 1))


@pytest.mark.parametrize("wanted, computed", [(0, 0), (1, 8), (8, 8), (9, 64), (64, 64)])
def test_tokens_that_do_not_weigh_are_not_computed(wanted, computed):
    """Of 64 tokens. What is not computed has no loss."""
    config = ModelConfig(dataclasses.replace(LLAMA, max_positions=80), ARMT_, RecurrenceConfig(segment_length=64))
    model = build(config)
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 64, config.backbone.width))
    targets, weights = np.ones((2, 3, 64), np.int32), np.zeros((2, 3, 64), np.float32)
    weights[1, 2, 64 - wanted :] = 0.5
    nll, _ = jax.jit(lambda h, t, w: weighed_losses(model.head, model.embed, h, t, w))(hidden, targets, weights)
    assert np.all(np.sum(nll > 0, axis=-1) == computed) and np.all(nll[weights > 0] > 0)


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
