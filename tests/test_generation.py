"""Generation against full forward passes, and the sampling filters against sorting by hand."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax import generation
from armt_jax.generation import Sampling, generate
from armt_jax.memory.associative import ARMT
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, Llama

V, B, T = 24, 2, 4
SIZES = dict(
    vocab_size=V, num_layers=2, width=16, num_heads=4, mlp_width=24, max_positions=16, kernel_std=None, embedding_std=0.5
)
ARMT_ = dict(num_memory_tokens=2, d_mem=8, value_std=None)
MODELS = {
    "armt": lambda: (Llama(**SIZES, num_kv_heads=2, tie_embeddings=False), ARMT(**ARMT_)),
    "armt-table": lambda: (GPT2(**SIZES, position_std=0.5, tie_embeddings=False), ARMT(**ARMT_, positions="table")),
    "rmt": lambda: (GPT2(**SIZES, position_std=0.5, tie_embeddings=False), RMT(num_memory_tokens=2)),
}


@functools.cache
def build(name) -> MemoryTransformer:
    return MemoryTransformer(ModelConfig(*MODELS[name](), RecurrenceConfig(segment_length=T)), rngs=nnx.Rngs(1))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def armt():
    return build("armt")


def random_tokens(seed, batch, length):
    return np.random.default_rng(seed).integers(0, V, (batch, length)).astype(np.int32)


PROMPT = random_tokens(0, B, 6)
forward = nnx.jit(lambda m, tokens, state: m(tokens, state)[0])
ingest = nnx.jit(lambda m, tokens: m.ingest(tokens))


def by_full_forwards(model, prompt, count, state=None):
    """Greedy tokens and log-probabilities, by one pass over the whole row (filled up with unseen later tokens) per token."""
    row, log_probs = np.array(prompt), []
    total = prompt.shape[1] + count
    for _ in range(count):
        n = row.shape[1]
        logits = forward(model, np.pad(row, ((0, 0), (0, total - n))), state)
        after = np.asarray(jax.nn.log_softmax(logits))[:, n - 1]
        row = np.concatenate([row, after.argmax(-1)[:, None].astype(np.int32)], axis=1)
        log_probs.append(after.max(-1))
    return row[:, prompt.shape[1] :], np.stack(log_probs, axis=1)


def test_greedy_equals_full_forwards_over_several_segments(model):
    state = ingest(model, random_tokens(9, B, 5))
    want, log_probs = by_full_forwards(model, PROMPT, 9, state)
    out = model.generate(PROMPT, state, max_new_tokens=9)
    np.testing.assert_array_equal(out.tokens_BxG, want)
    np.testing.assert_allclose(out.log_probs_BxG, log_probs, atol=2e-5)
    assert out.tokens_BxG.dtype == jnp.int32 and out.log_probs_BxG.dtype == jnp.float32
    assert len(np.unique(want)) > 3


@pytest.mark.parametrize("length", [1, 4, 5, 8])
def test_prompts_of_any_length(armt, length):
    """Also of one token, and up to the very end of a segment."""
    prompt = random_tokens(2, B, length)
    want, _ = by_full_forwards(armt, prompt, 4)
    np.testing.assert_array_equal(armt.generate(prompt, max_new_tokens=4).tokens_BxG, want)


def test_state_and_pending_lie_at_the_segment_ends(armt):
    for new, segments in ((2, 1), (3, 2), (6, 2), (7, 3)):
        out = armt.generate(PROMPT, max_new_tokens=new)
        row = np.concatenate([PROMPT, out.tokens_BxG], axis=1)
        pending = row[:, segments * T :]
        np.testing.assert_array_equal(out.pending_BxP, pending)
        assert np.all(out.pending_valid_BxP) and out.pending_valid_BxP.shape == pending.shape
        for a, b in zip(jax.tree.leaves(out.state), jax.tree.leaves(ingest(armt, row[:, : segments * T]))):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_continuing_from_state_and_pending_equals_one_long_generation(model):
    long = model.generate(PROMPT, max_new_tokens=11)
    first = model.generate(PROMPT, max_new_tokens=4)
    second = model.generate(first.pending_BxP, first.state, max_new_tokens=7)
    np.testing.assert_array_equal(np.concatenate([first.tokens_BxG, second.tokens_BxG], axis=1), long.tokens_BxG)
    np.testing.assert_allclose(
        np.concatenate([first.log_probs_BxG, second.log_probs_BxG], axis=1), long.log_probs_BxG, atol=2e-5
    )
    np.testing.assert_array_equal(second.pending_BxP, long.pending_BxP)


LENGTHS = (6, 3, 1)


def left_padded():
    prompts = random_tokens(3, 3, 6)
    valid = np.arange(6) >= 6 - np.array(LENGTHS)[:, None]
    return np.where(valid, prompts, 0), valid


def test_a_left_padded_batch_equals_each_row_with_its_segments(model):
    """Padded rows are cut from the left, 4 + 2: a row of 3 tokens begins with a segment of 1, and one of 1 token skips it."""
    prompts, valid = left_padded()
    out = model.generate(prompts, max_new_tokens=9, valid_BxN=valid)
    for i, n in enumerate(LENGTHS):
        state = None
        if n > 2:
            state = model.ingest(prompts[i : i + 1, 6 - n : 4])
        alone = model.generate(prompts[i : i + 1, max(4, 6 - n) :], state, max_new_tokens=9)
        if n >= 2:
            np.testing.assert_array_equal(out.tokens_BxG[i], alone.tokens_BxG[0])
            np.testing.assert_allclose(out.log_probs_BxG[i], alone.log_probs_BxG[0], atol=5e-5)
        else:
            # Its open segment has one place less for new tokens than alone: equal up to the segment's end.
            np.testing.assert_array_equal(out.tokens_BxG[i, :3], alone.tokens_BxG[0, :3])
    np.testing.assert_array_equal(out.pending_BxP[:, -3:], np.asarray(out.tokens_BxG)[:, -3:])


def test_pending_padding_is_marked(armt):
    prompts, valid = left_padded()
    out = armt.generate(prompts[:, 3:], max_new_tokens=1, valid_BxN=valid[:, 3:])
    np.testing.assert_array_equal(out.pending_valid_BxP, np.pad(valid[:, 3:], ((0, 0), (0, 1)), constant_values=True))
    more = armt.generate(out.pending_BxP, out.state, max_new_tokens=4, valid_BxN=out.pending_valid_BxP)
    long = armt.generate(prompts[:, 3:], max_new_tokens=5, valid_BxN=valid[:, 3:])
    np.testing.assert_array_equal(np.concatenate([out.tokens_BxG, more.tokens_BxG], axis=1), long.tokens_BxG)


def test_what_stands_at_padding_does_not_matter(armt):
    prompts, valid = left_padded()
    other = np.where(valid, prompts, 7)
    a, b = (armt.generate(p, max_new_tokens=6, valid_BxN=valid) for p in (prompts, other))
    np.testing.assert_array_equal(a.tokens_BxG, b.tokens_BxG)
    np.testing.assert_allclose(a.log_probs_BxG, b.log_probs_BxG, atol=1e-6)


def test_extending_the_last_segment_equals_one_long_segment(model):
    """overflow="extend": after the first segment, all the rest is one segment that is never written."""
    out = model.generate(PROMPT, max_new_tokens=8, overflow="extend")
    state = ingest(model, PROMPT[:, :T])
    rest = np.concatenate([PROMPT[:, T:], out.tokens_BxG], axis=1)
    longer = model.with_recurrence(segment_length=rest.shape[1])
    logits = np.asarray(jax.nn.log_softmax(forward(longer, rest, state)))[:, 1:-1]
    np.testing.assert_array_equal(out.tokens_BxG, logits.argmax(-1))
    np.testing.assert_allclose(out.log_probs_BxG, logits.max(-1), atol=2e-5)
    np.testing.assert_array_equal(out.pending_BxP, rest)
    for a, b in zip(jax.tree.leaves(out.state), jax.tree.leaves(state)):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_memory_does_not_grow_with_what_is_generated(armt):
    """Temporary memory of the compiled program: the same for 16 and for 256 new tokens."""
    graphdef, params = nnx.split(armt)

    def peak(room):
        tokens, valid = np.zeros((B, T), np.int32), np.ones((B, T), bool)
        static = (graphdef, T, room, Sampling())
        args = (static, params, tokens, valid, 2, armt.init_state(B), jax.random.key(0), room, -1)
        return generation._decode.lower(*args, ragged=False).compile().memory_analysis().temp_size_in_bytes

    few, many = peak(16), peak(256)
    assert many - few <= 3 * 8 * 240 * B, "the tokens and log-probabilities themselves, and copies of them"


def equations(jaxpr, inside=()):
    """(names of the primitives around it, equation) of all equations in a jaxpr."""
    for equation in jaxpr.eqns:
        yield inside, equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner, (*inside, equation.primitive.name))


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_weights_are_cast_once_and_not_for_every_token(name, monkeypatch):
    half = MemoryTransformer(dataclasses.replace(build(name).config, dtype="bfloat16"), rngs=nnx.Rngs(1))
    graphdef, params = nnx.split(half)
    tokens, valid = np.zeros((B, T), np.int32), np.ones((B, T), bool)
    args = (params, tokens, valid, 2, half.init_state(B), jax.random.key(0), 16, -1)
    layers = jax.tree_util.tree_leaves_with_path(half.stacked_layers()[1])
    kernels = [leaf.shape[1:] for path, leaf in layers if generation._is_kernel(path)]

    def casts():
        """Of such matrices, in the scan over layers of a decoded token."""
        decode = generation._decode.__wrapped__  # which remembers nothing
        jaxpr = jax.make_jaxpr(functools.partial(decode, (graphdef, T, 16, Sampling()), ragged=False))(*args).jaxpr
        found = [e for inside, e in equations(jaxpr) if inside == ("while", "scan") and e.primitive.name == "convert_element_type"]
        return sum(e.invars[0].aval.shape in kernels and e.outvars[0].aval.dtype == jnp.bfloat16 for e in found)

    once = casts()  # a memory's query may have such a shape
    monkeypatch.setattr(generation, "_is_kernel", lambda path: False)
    assert casts() == once + len(kernels) and once <= 1


def test_prompts_of_other_lengths_compile_nothing_new(armt):
    def programs():
        return generation._ingest._cache_size(), generation._decode._cache_size()

    armt.generate(random_tokens(2, 3, T + 1), max_new_tokens=3)
    before = programs()
    for length in range(1, 8 * T):
        assert armt.generate(random_tokens(2, 3, length), max_new_tokens=1 + length % 16).tokens_BxG.shape == (3, 1 + length % 16)
    assert programs() == before


def test_long_prompts_are_read_in_blocks(armt):
    assert list(generation._blocks(203)) == [64] * 3 + [8] + [1] * 3 and not list(generation._blocks(0))
    prompt = random_tokens(3, 1, 73 * T + 2)
    out = armt.generate(prompt, max_new_tokens=1)
    for a, b in zip(jax.tree.leaves(out.state), jax.tree.leaves(armt.ingest(prompt[:, : 73 * T]))):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_a_row_that_ended_repeats_the_end_token(armt):
    free = np.asarray(armt.generate(PROMPT, max_new_tokens=8).tokens_BxG)
    end = int(free[0, 2])
    first = [int(np.argmax(row == end)) if end in row else 8 for row in free]
    assert first[0] <= 2 and first[0] != first[1]
    out = np.asarray(armt.generate(PROMPT, max_new_tokens=8, end_token=end).tokens_BxG)
    for row, want, stop in zip(out, free, first):
        np.testing.assert_array_equal(row[: stop + 1], want[: stop + 1])
        assert np.all(row[stop:] == end)


def test_decoding_stops_where_all_rows_have_ended(armt):
    prompt = PROMPT[:1]
    free = armt.generate(prompt, max_new_tokens=40)
    end = int(free.tokens_BxG[0, 2])
    stop = int(np.argmax(np.asarray(free.tokens_BxG)[0] == end))
    out = armt.generate(prompt, max_new_tokens=40, end_token=end)
    np.testing.assert_array_equal(out.tokens_BxG[0, stop:], end)
    np.testing.assert_array_equal(out.log_probs_BxG[0, : stop + 1], free.log_probs_BxG[0, : stop + 1])
    assert not np.any(out.log_probs_BxG[0, stop + 1 :])
    row = np.concatenate([prompt, out.tokens_BxG[:, : stop + 1]], axis=1)
    np.testing.assert_array_equal(out.pending_BxP, row[:, (row.shape[1] - 1) // T * T :])


# ---- sampling ----

LOGITS = np.random.default_rng(4).normal(size=(5, 12)).astype(np.float32) * 2


def kept_by_hand(logits, temperature, top_k, top_p):
    """The tokens that may be drawn from one row."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
    weights = np.exp(np.array([logits[i] for i in order], np.float64) / temperature)
    shares, kept, total = weights / weights.sum(), set(), 0.0
    for i, share in zip(order, shares):
        kept.add(i)
        total += share
        if top_p is not None and total >= top_p:
            break
    return kept


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 12, 40])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.5, 0.9])
def test_filters(temperature, top_k, top_p):
    filtered = np.asarray(Sampling(temperature, top_k, top_p).filtered(jnp.asarray(LOGITS)))
    for row, logits in zip(filtered, LOGITS):
        assert set(np.flatnonzero(np.isfinite(row))) == kept_by_hand(logits, temperature, top_k, top_p)
        kept = np.isfinite(row)
        np.testing.assert_allclose(row[kept], logits[kept] / temperature, rtol=1e-6)


def test_draws_follow_the_filtered_distribution():
    sampling = Sampling(temperature=0.7, top_k=3)
    logits = jnp.broadcast_to(LOGITS[0], (20000, 12))
    drawn = np.bincount(np.asarray(sampling(logits, jax.random.key(0))), minlength=12) / 20000
    np.testing.assert_allclose(drawn, jax.nn.softmax(sampling.filtered(jnp.asarray(LOGITS[:1]))[0]), atol=0.015)


def test_greedy_takes_the_first_of_the_likeliest():
    np.testing.assert_array_equal(Sampling()(jnp.array([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]]), None), [1, 0])


def test_sampling_is_a_function_of_the_key(armt):
    sampling = Sampling(temperature=1.0, top_k=10)
    a, b, c = (armt.generate(PROMPT, max_new_tokens=12, sampling=sampling, key=jax.random.key(k)).tokens_BxG for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.any(np.asarray(a) != np.asarray(c))
    assert np.any(np.asarray(a)[0] != np.asarray(a)[1])


def test_sampled_log_probs_are_the_models_own(armt):
    """Before temperature and filters."""
    out = armt.generate(PROMPT, max_new_tokens=10, sampling=Sampling(temperature=2.0, top_p=0.9), key=jax.random.key(5))
    row = np.concatenate([PROMPT, out.tokens_BxG], axis=1)
    log_probs = np.asarray(jax.nn.log_softmax(forward(armt, row, None)))[:, PROMPT.shape[1] - 1 : -1]
    want = np.take_along_axis(log_probs, np.asarray(out.tokens_BxG)[..., None], -1)[..., 0]
    np.testing.assert_allclose(out.log_probs_BxG, want, atol=2e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(temperature=-1.0), "temperature = -1.0 must be at least 0"),
        (dict(top_k=0), "top_k = 0 must be at least 1, or None"),
        (dict(top_p=0.0), r"top_p = 0.0 must lie in \(0, 1\]"),
        (dict(top_p=1.5), "top_p = 1.5"),
    ],
)
def test_bad_sampling_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(overflow="wrap"), "overflow = 'wrap' must be one of"),
        (dict(max_new_tokens=0), "max_new_tokens = 0 must be at least 1"),
        (dict(sampling=Sampling(0.5)), "temperature = 0.5 draws random tokens and needs key="),
        (
            dict(overflow="extend", max_new_tokens=15),
            "'extend' makes a segment of 17 tokens and 0 memory tokens, more than .* 16",
        ),
    ],
)
def test_bad_options_are_refused(armt, fields, message):
    with pytest.raises(ValueError, match=message):
        generate(armt, PROMPT, **{"max_new_tokens": 2, **fields})


def test_extending_makes_room_for_memory_tokens_in_front():
    with pytest.raises(ValueError, match="makes a segment of 15 tokens and 2 memory tokens"):
        build("rmt").generate(PROMPT, max_new_tokens=13, overflow="extend")


@pytest.mark.parametrize("row", [(True, True, False), (False, False, False), (True, False, True)])
def test_padding_that_is_not_at_the_left_is_refused(armt, row):
    valid = np.array([(False, True, True), row])
    with pytest.raises(ValueError, match="row 1 has padding behind real tokens: pad prompts at the left"):
        armt.generate(random_tokens(2, 2, 3), max_new_tokens=1, valid_BxN=valid)
