"""Generation of any length at constant memory.

The prompt is read segment by segment; its last segment stays open and is decoded with a key-value cache. When the open segment is full it
is committed to memory, as a prompt segment would have been, and decoding goes on in a fresh one. (The published code decodes the last
segment past its end instead and writes nothing: `overflow="extend"`.)

Prompts of all lengths share a few compiled programs: their complete segments are read in blocks of 64, 8 and 1, the open one is filled up
with padding, and the number of new tokens is an argument of the decoding loop.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.memory.interface import Layout
from armt_jax.model import MemoryTransformer
from armt_jax.nn.attention import KeyValueCache
from armt_jax.recurrence.checks import check_shape, check_tokens
from armt_jax.recurrence.schedules import GridState

OVERFLOW = ("commit", "extend")
BLOCKS = (64, 8, 1)  # segments read by one call


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k keeps the k likeliest tokens, top_p the smallest set with probability >= top_p; both may be set."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k} must be at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must lie in (0, 1], or be None for all tokens")

    def __call__(self, logits_BxV: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.temperature == 0:
            return jnp.argmax(logits_BxV, axis=-1)
        return jax.random.categorical(key, self.filtered(logits_BxV), axis=-1)

    def filtered(self, logits_BxV: jax.Array) -> jax.Array:
        """Scaled logits with everything outside top-k and top-p at -inf."""
        logits = logits_BxV / self.temperature
        if self.top_k is None and self.top_p in (None, 1):
            return logits
        order = jnp.argsort(-logits, axis=-1)
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        keep = jnp.ones_like(ranked, bool)
        if self.top_k is not None:
            keep = keep & (jnp.arange(ranked.shape[-1]) < self.top_k)
        if self.top_p is not None:
            share = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
            keep = keep & (jnp.cumsum(share, axis=-1) - share < self.top_p)
        back = jnp.argsort(order, axis=-1)
        return jnp.where(jnp.take_along_axis(keep, back, axis=-1), logits, -jnp.inf)


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
        tokens_BxG: the new tokens. log_probs_BxG: the model's log-probability of each (before temperature), 0 where nothing was decoded as
            all rows had ended.
        state: memory after all complete segments. pending_BxP: tokens of the open segment, not in memory yet (the prompt's end and the new
            tokens after it): put them before whatever comes next. pending_valid_BxP: False at the prompt's padding among them.
    """

    tokens_BxG: jax.Array
    log_probs_BxG: jax.Array
    state: GridState
    pending_BxP: jax.Array
    pending_valid_BxP: jax.Array


class _Open(NamedTuple):
    """The segment being decoded: its cache [L, ...], tokens so far, which of them are real, how many there are."""

    cache: KeyValueCache
    tokens_BxT: jax.Array
    valid_BxT: jax.Array
    fill: jax.Array


def generate(
    model: MemoryTransformer,
    tokens_BxN: jax.Array,
    state: GridState | None = None,
    *,
    max_new_tokens: int,
    valid_BxN: jax.Array | None = None,
    sampling: Sampling = Sampling(),
    key: jax.Array | None = None,
    overflow: str = "commit",
    end_token: int | None = None,
) -> Generated:
    """Continues each row by `max_new_tokens` tokens.

    Args:
        tokens_BxN: prompts of one length; shorter ones padded at the LEFT, `valid_BxN` False there. The segments are cut from the left.
        key: PRNG key, needed for temperature > 0.
        overflow: "commit" writes a full segment to memory and goes on; "extend" lengthens the last segment without writing.
        end_token: a row that produced it repeats it to the end. Decoding stops where all rows have.

    Raises:
        ValueError: bad ids, state or options; padding that is not at the left; "extend" past the backbone's positions.
    """
    check_tokens(tokens_BxN, model.config.backbone.vocab_size)
    check_shape("valid", valid_BxN, tokens_BxN.shape)
    _check_left_padded(valid_BxN)
    _check_options(model, tokens_BxN.shape[1], max_new_tokens, sampling, key, overflow, end_token)
    tokens_BxN = np.asarray(tokens_BxN, np.int32)  # of the host's memory a slice of another length is no program to compile
    B, N = tokens_BxN.shape
    T = model.config.recurrence.segment_length
    opened = _opened(N, T)
    ragged = valid_BxN is not None
    valid_BxN = np.ones(tokens_BxN.shape, bool) if valid_BxN is None else np.asarray(valid_BxN)
    key = jax.random.key(0) if key is None else key
    state = model.init_state(B) if state is None else model._checked(state, B)
    graphdef, params = nnx.split(model)
    start = 0
    for count in _blocks((N - opened) // T):
        block = slice(start, start + count * T)
        state = _ingest(graphdef, params, tokens_BxN[:, block], valid_BxN[:, block] if ragged else None, state)
        start = block.stop
    room = max(16, 1 << (max_new_tokens - 1).bit_length())
    static = (graphdef, T if overflow == "commit" else T + room, room, sampling)
    pad = ((0, 0), (0, T - opened))
    rest, seen = np.pad(tokens_BxN[:, start:], pad), np.pad(valid_BxN[:, start:], pad)
    end = -1 if end_token is None else end_token
    new, log_probs, state, last = _decode(static, params, rest, seen, opened, state, key, max_new_tokens, end, ragged=ragged)
    fill = int(last.fill)
    return Generated(
        new[:, :max_new_tokens], log_probs[:, :max_new_tokens], state, last.tokens_BxT[:, :fill], last.valid_BxT[:, :fill]
    )


def _opened(N: int, T: int) -> int:
    """Tokens of a prompt in its last segment, the open one: 1 to T."""
    return N - (N - 1) // T * T


def _check_options(model, N: int, max_new_tokens: int, sampling: Sampling, key, overflow: str, end_token: int | None) -> None:
    config = model.config
    backbone, layout = config.backbone, config.memory.layout(config.backbone)
    if overflow not in OVERFLOW:
        raise ValueError(f"overflow = {overflow!r} must be one of {OVERFLOW}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens} must be at least 1")
    if sampling.temperature > 0 and key is None:
        raise ValueError(f"temperature = {sampling.temperature} draws random tokens and needs key=jax.random.key(seed)")
    if end_token is not None and not 0 <= end_token < backbone.vocab_size:
        raise ValueError(f"end_token = {end_token} is outside the vocabulary 0..{backbone.vocab_size - 1}")
    T = config.recurrence.segment_length
    longest = T if overflow == "commit" else _opened(N, T) + max_new_tokens
    if longest + layout.front > backbone.max_positions + (0 if layout.table_rows is None else layout.front):
        raise ValueError(
            f"overflow = 'extend' makes a segment of {longest} tokens and {layout.front} memory tokens, more than "
            f"backbone.max_positions = {backbone.max_positions}: use 'commit'"
        )


def _blocks(segments: int) -> Iterator[int]:
    """The segments of each call."""
    for size in BLOCKS:
        yield from [size] * (segments // size)
        segments %= size


def _check_left_padded(valid_BxN: jax.Array | None) -> None:
    """A row that ends in padding would be continued from a padding token."""
    if valid_BxN is None:
        return
    valid = np.asarray(valid_BxN)
    wrong = ~valid[:, -1] | (valid[:, :-1] & ~valid[:, 1:]).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"valid: row {int(np.argmax(wrong))} has padding behind real tokens: pad prompts at the left, with at least one real token"
        )


@functools.partial(jax.jit, static_argnums=0)
def _ingest(graphdef, params, tokens_BxN, valid_BxN, state):
    return nnx.merge(graphdef, params).ingest(tokens_BxN, state, valid_BxN=valid_BxN)


@functools.partial(jax.jit, static_argnums=0, static_argnames="ragged")
def _decode(static, params, tokens_BxT, valid_BxT, fill, state, key, max_new_tokens, end_token, *, ragged: bool):
    """Up to `max_new_tokens` after the open segment's first `fill` tokens. end_token -1: none."""
    graphdef, capacity, room, sampling = static
    decoder = _Decoder(nnx.merge(graphdef, params), capacity)
    B = tokens_BxT.shape[0]
    segment, logits = decoder.open(state, tokens_BxT, valid_BxT, fill)

    def goes_on(carry):
        i, *_, done, _, _ = carry
        return (i < max_new_tokens) & ~done.all()

    def step(carry):
        i, state, segment, logits, done, new, log_probs = carry
        token = sampling(logits, jax.random.fold_in(key, i)).astype(jnp.int32)
        token = jnp.where(done, end_token, token)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
        state, segment = jax.lax.cond(
            segment.fill == capacity, lambda s, o: decoder.commit(s, o, ragged), lambda s, o: (s, o), state, segment
        )
        segment, logits = decoder.extend(state, segment, token[:, None])
        return i + 1, state, segment, logits, done | (token == end_token), new.at[:, i].set(token), log_probs.at[:, i].set(log_prob)

    none_yet = jnp.zeros(B, bool), jnp.full((B, room), end_token, jnp.int32), jnp.zeros((B, room), jnp.float32)
    _, state, segment, _, _, new, log_probs = jax.lax.while_loop(goes_on, step, (jnp.int32(0), state, segment, logits, *none_yet))
    return new, log_probs, state, segment


def _is_kernel(path) -> bool:
    """Whether a parameter is the matrix of one of a block's linear maps, which compute in the model's dtype."""
    names = [getattr(key, "key", None) for key in path]
    return "block" in names and "kernel" in names


class _Decoder:
    """Reads new tokens of the open segment on top of a cache. The memory state is only read."""

    def __init__(self, model: MemoryTransformer, capacity: int):
        self.model, self.capacity = model, capacity
        layout = model.config.memory.layout(model.config.backbone)
        self.front = Layout(layout.front, 0)
        self.graphdef, layers = model.stacked_layers()
        # Cast once and not for every token: decoding is mostly reading weights.
        cast = lambda path, leaf: leaf.astype(model.dtype) if _is_kernel(path) else leaf
        self.layers = jax.tree_util.tree_map_with_path(cast, layers)

    def _empty_cache(self, batch: int) -> KeyValueCache:
        attention = self.model.layers.block.attention
        heads = attention.key.kernel[...].shape[-1] // attention.head_size
        places = self.front.front + self.capacity
        shape = (self.model.config.backbone.num_layers, batch, places, heads, attention.head_size)
        zeros = jnp.zeros(shape, self.model.dtype)
        return KeyValueCache(zeros, zeros, jnp.zeros(shape[:3], bool))

    def open(self, state: GridState, tokens_BxP, valid_BxP, fill):
        """A fresh open segment holding the first `fill` of the P given tokens. Returns it and the logits after them [B, V]."""
        B, P = tokens_BxP.shape
        pad = ((0, 0), (0, self.capacity - P))
        valid_BxP = valid_BxP & (jnp.arange(P) < fill)
        segment = _Open(self._empty_cache(B), jnp.pad(tokens_BxP, pad), jnp.pad(valid_BxP, pad), jnp.asarray(fill, jnp.int32))
        x = self.model.embed_tokens(tokens_BxP)
        front, _ = self.model.token_memory.memory_tokens(B, state.tokens)
        x = x if front is None else jnp.concatenate([front.astype(x.dtype), x], axis=1)
        positions = self.front.positions(P, valid_BxP)
        last = self.front.front + segment.fill - 1
        cache, logits = self._read(state, segment.cache, x, positions, self.front.wrap_valid(valid_BxP), 0, self.front, last)
        return segment._replace(cache=cache), logits

    def extend(self, state: GridState, segment: _Open, token_Bx1):
        """One more token. Returns the segment and the logits after it."""
        positions = self.front.front + jnp.sum(segment.valid_BxT, axis=1, keepdims=True)
        place = self.front.front + segment.fill
        x = self.model.embed_tokens(token_Bx1)
        seen = jnp.ones(token_Bx1.shape, bool)
        cache, logits = self._read(state, segment.cache, x, positions, seen, place, Layout())
        tokens = jax.lax.dynamic_update_slice(segment.tokens_BxT, token_Bx1, (0, segment.fill))
        valid = jax.lax.dynamic_update_slice(segment.valid_BxT, seen, (0, segment.fill))
        return _Open(cache, tokens, valid, segment.fill + 1), logits

    def commit(self, state: GridState, segment: _Open, ragged: bool):
        """The full segment goes to memory exactly as a prompt segment does; an empty one opens, holding the memory tokens alone."""
        state = self.model.ingest(segment.tokens_BxT, state, valid_BxN=segment.valid_BxT if ragged else None)
        B = segment.tokens_BxT.shape[0]
        cache = self._empty_cache(B)
        front, _ = self.model.token_memory.memory_tokens(B, state.tokens)
        if front is not None:
            nothing = jnp.ones((B, 0), bool)
            seen = self.front.wrap_valid(nothing)
            cache, _ = self._read(
                state, cache, front.astype(self.model.dtype), self.front.positions(0, nothing), seen, 0, self.front
            )
        return state, _Open(cache, jnp.zeros_like(segment.tokens_BxT), jnp.zeros_like(segment.valid_BxT), jnp.int32(0))

    def _read(self, state: GridState, cache: KeyValueCache, x_BxTxD, positions, valid_BxT, index, layout: Layout, last=-1):
        """The cache with the tokens in it, from place `index` on, and the logits after the token at `last`."""
        model = self.model
        if model.positions is not None:
            x_BxTxD = x_BxTxD + model.positions(positions, model.dtype)

        def step(x, inputs):
            params, memory_state, places = inputs
            layer = nnx.merge(self.graphdef, params)
            memory = layer.memory
            x = memory.read(x, memory_state, layout)
            out = layer.block(
                x, positions, valid_BxT, context=memory.attend(memory_state), cache=places, cache_index=index,
                mix=lambda h: memory.mix(h, memory_state),
            )  # fmt: skip
            return out.hidden_BxTxD, out.cache

        x, cache = jax.lax.scan(step, x_BxTxD, (self.layers, state.layers, cache))
        return cache, model.logits(model.final_norm(x[:, last]))
