"""The hidden-state cache against lists of rows; its length, its window, and what it equals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.memory.hidden_cache import CacheState, HiddenCache, TransformerXLCache
from armt_jax.memory.interface import Layout, Trace
from armt_jax.memory.presets import NoMemory
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, GPTNeoX, Llama, TransformerXL

B, D, V = 3, 2, 30
SIZES = dict(
    vocab_size=V, num_layers=2, width=16, num_heads=4, mlp_width=24, kernel_std=None, embedding_std=0.2, tie_embeddings=True,
)  # fmt: skip
XL = TransformerXL(**SIZES)
BACKBONES = {
    "post-norm": XL,
    "pre-norm": TransformerXL(**SIZES, norm_place="pre", tie_biases=False, clamp_len=9, cutoffs=(8, 20), div_val=2, projection_std=0.5),
    "llama": Llama(**SIZES, max_positions=64, num_kv_heads=2),
    "neox": GPTNeoX(**SIZES, max_positions=64, rotary_pct=0.5),
}
TOKENS = np.random.default_rng(0).integers(0, V, (2, 18)).astype(np.int32)


NO_TOKENS = Layout()


def trace(x, valid=None, layout=NO_TOKENS) -> Trace:
    x = jnp.asarray(x, jnp.float32)
    return Trace(x, x, x, x, None if valid is None else jnp.asarray(valid), layout, None)


def rows(state: CacheState) -> list[list[float]]:
    """What each row remembers, oldest first; and that the rest is zero."""
    out = []
    for hidden, count in zip(np.asarray(state.hidden_BxCxD), np.asarray(state.count_B)):
        empty = len(hidden) - int(count)
        assert not np.any(hidden[:empty])
        out.append(hidden[empty:, 0].tolist())
    return out


@pytest.mark.parametrize("length", [1, 3, 4, 9])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_row_keeps_its_last_real_entries(length, ragged):
    """Four segments of four places against lists; every commit can be undone exactly."""
    memory, rng = HiddenCache(length, D, None, "all"), np.random.default_rng(length)
    state, want = memory.init_state(B), [[] for _ in range(B)]
    for _ in range(4):
        x = rng.normal(size=(B, 4, D)).astype(np.float32)
        valid = rng.random((B, 4)) < 0.5 if ragged else np.ones((B, 4), bool)
        update = memory.write(trace(x, valid if ragged else None), state)
        after = memory.commit(state, update)
        for b in range(B):
            want[b] = (want[b] + x[b, valid[b], 0].tolist())[-length:]
        assert rows(after) == want
        for a, b in zip(jax.tree.leaves(memory.undo(after, update)), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a, b)
        state = after


@pytest.mark.parametrize("cached, want", [("all", [0, 1, 3, 4]), ("text", [1, 3])])
def test_which_places_are_cached(cached, want):
    """One memory token in front, one behind, a padded place between."""
    memory, layout = HiddenCache(6, D, None, cached), Layout(1, 1)
    x = np.broadcast_to(np.arange(5.0)[None, :, None], (B, 5, D))
    state = memory.init_state(B)
    valid = np.array([True, True, False, True, True])
    after = memory.commit(state, memory.write(trace(x, np.broadcast_to(valid, (B, 5)), layout), state))
    assert rows(after) == [want] * B


def test_an_update_is_no_larger_than_the_segment():
    """The reversible strategy keeps updates, not caches."""
    memory = HiddenCache(100, D, None, "all")
    update = memory.write(trace(np.ones((B, 4, D))), memory.init_state(B))
    assert sum(leaf.size for leaf in jax.tree.leaves(update)) == B * (2 * 4 * D + 1)


def model(backbone, memory, T=6, **recurrence) -> MemoryTransformer:
    return MemoryTransformer(ModelConfig(backbone, memory, RecurrenceConfig(segment_length=T, **recurrence)), rngs=nnx.Rngs(0))


def logits(model: MemoryTransformer, tokens=TOKENS, **kwargs):
    return np.asarray(jax.jit(lambda t: model(t, **kwargs)[0])(tokens))


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_a_cache_as_long_as_the_history_equals_full_attention(backbone):
    """float32, 1e-5: the same relative positions, once over the whole row at once and once in segments."""
    with jax.default_matmul_precision("highest"):
        cached = model(backbone, TransformerXLCache(TOKENS.shape[1]))
        whole = cached.with_config(
            ModelConfig(backbone, NoMemory(), RecurrenceConfig(segment_length=TOKENS.shape[1]))
        )
        np.testing.assert_allclose(logits(cached), logits(whole), atol=1e-5)
        # and without a cache the later segments differ
        assert np.abs(logits(cached.with_config(ModelConfig(backbone, NoMemory(), cached.config.recurrence))) - logits(whole)).max() > 1e-2


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_cached_evaluation_equals_windowed(backbone):
    """With `same_length` every token sees the C places up to itself: in segments with a cache, in one pass, and from a fresh start
    at the first token that L layers of such windows reach."""
    C, L = 5, backbone.num_layers
    with jax.default_matmul_precision("highest"):
        cached = model(backbone, TransformerXLCache(C, same_length=True), T=3)
        want = logits(cached)
        np.testing.assert_allclose(logits(cached.with_recurrence(segment_length=TOKENS.shape[1])), want, atol=1e-5)
        reach = L * (C - 1) + 1
        fresh = cached.with_recurrence(segment_length=reach)
        for last in (reach - 1, 13, 17):
            window = TOKENS[:, last + 1 - reach : last + 1]
            np.testing.assert_allclose(logits(fresh, window)[:, -1], want[:, last], atol=1e-5)


def test_same_length_sees_no_further():
    one = dict(num_layers=1)
    narrow = model(TransformerXL(**SIZES | one), TransformerXLCache(5, same_length=True), T=3)
    base = logits(narrow)
    for place in (2, 7):
        other = TOKENS.copy()
        other[:, place] = (other[:, place] + 1) % V
        moved = np.abs(logits(narrow, other) - base).max(axis=(0, 2)) > 1e-5
        np.testing.assert_array_equal(moved, [place <= t < place + 5 for t in range(18)])


def test_evaluation_with_another_cache_length():
    """The same weights, shared; the state has another shape; a longer cache sees more."""
    short = model(XL, TransformerXLCache(4))
    longer = short.with_memory(cache_length=18)
    assert longer.embed.tables[0][...] is short.embed.tables[0][...]
    assert longer.init_state(2).layers.hidden_BxCxD.shape == (2, 2, 18, 16)
    np.testing.assert_allclose(logits(longer), logits(model(XL, TransformerXLCache(18))), atol=1e-6)
    assert np.abs(logits(longer) - logits(short)).max() > 1e-3
    with pytest.raises(ValueError, match=r"2 rows of this model need float32\[2, 2, 18, 16\]"):
        longer(TOKENS, short.init_state(2))


def test_a_config_with_other_parameters_is_refused():
    wide = ModelConfig(TransformerXL(**SIZES | dict(mlp_width=25)), TransformerXLCache(4), RecurrenceConfig(segment_length=6))
    with pytest.raises(ValueError, match=r"mlp.* is \(2, \d+.*\) in this model and \(2, .*25.*\) under the other config"):
        model(XL, TransformerXLCache(4)).with_config(wide)
    with pytest.raises(ValueError, match="absent"):
        model(XL, TransformerXLCache(4)).with_config(ModelConfig(TransformerXL(**SIZES | dict(tie_embeddings=False))))


def test_the_published_truncation_lets_no_gradient_into_the_cache():
    """bptt_segments = 1: the gradient is that of every segment with its cache given."""
    cached = model(XL, TransformerXLCache(4), T=6, bptt_segments=1)
    graphdef, params = nnx.split(cached)
    targets, weights = np.roll(TOKENS, -1, axis=1), np.ones(TOKENS.shape, np.float32)
    got = jax.jit(jax.grad(lambda p: nnx.merge(graphdef, p).losses(TOKENS, targets, weights).loss_S.sum()))(params)

    def by_hand(params):
        model, state, total = nnx.merge(graphdef, params), None, 0.0
        for start in range(0, 18, 6):
            cut = np.s_[:, start : start + 6]
            out = model.losses(TOKENS[cut], targets[cut], weights[cut], state)
            total, state = total + out.loss_S.sum(), jax.lax.stop_gradient(out.state)
        return total

    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.jit(jax.grad(by_hand))(params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(np.abs(b).max()))


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("same_length", [False, True])
def test_generation_of_padded_prompts(backbone, same_length):
    """A prompt padded on the left goes on as it does alone: across segments, from memory and within the open one."""
    cached = model(backbone, TransformerXLCache(4, same_length=same_length), T=6)
    alone = cached.generate(TOKENS[:1, 6:14], max_new_tokens=7)
    prompts = np.concatenate([np.zeros((1, 6), np.int32), TOKENS[:1, 6:14]], axis=1)
    together = np.concatenate([prompts, TOKENS[1:, :14]])
    valid = np.ones(together.shape, bool)
    valid[0, :6] = False
    padded = cached.generate(together, max_new_tokens=7, valid_BxN=valid)
    np.testing.assert_array_equal(padded.tokens_BxG[:1], alone.tokens_BxG)
    np.testing.assert_allclose(padded.log_probs_BxG[:1], alone.log_probs_BxG, atol=1e-5)
    row = np.concatenate([TOKENS[1:, :14], padded.tokens_BxG[1:]], axis=1)
    want = np.asarray(jax.nn.log_softmax(cached(row)[0]))[0, 13:-1]
    np.testing.assert_allclose(padded.log_probs_BxG[1], want.max(axis=-1), atol=1e-5)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: TransformerXLCache(0), "memory.cache_length = 0 must be at least 1"),
        (
            lambda: ModelConfig(GPT2(**SIZES), TransformerXLCache(7)),
            "memory.cache_length = 7: a cache needs a backbone that knows distances, and GPT2 has a table of positions",
        ),
        (lambda: TransformerXLCache(cached="words"), r"memory.cached = 'words' must be one of \('all', 'text'\)"),
    ],
)
def test_refused_configs(build, message):
    with pytest.raises(ValueError, match=message):
        build()
