"""Transformer-XL: every layer remembers its last inputs (Dai et al., arXiv 1901.02860, section 3.2).

State of a layer: the last C hidden states that entered it, and how many of them there are. Segment s of the layer attends to

    [cache_{s-1} ; h_s],   cache_s = the last C of [cache_{s-1} ; h_s],

so the keys and values of the past are the block's own projections of the cached hidden states, at negative positions. The paper stops the
gradient at the cache (`recurrence.bptt_segments` = 1); a longer truncation lets it through.

Padding is not cached: a row keeps its last C real entries, wherever its segments were padded.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from armt_jax.memory.interface import LayerMemory, Layout, MemoryConfig, Trace
from armt_jax.nn.attention import Context


class CacheState(NamedTuple):
    """The last `count_B` rows of `hidden_BxCxD` are filled, the others are zero. float32, as all memory state."""

    hidden_BxCxD: jax.Array
    count_B: jax.Array


class CacheUpdate(NamedTuple):
    """The new entries, oldest first and then zeros, and how many they are (None: R in every row); and what they may push out, so that a
    commit can be undone. At most C of either: R = min(T, C)."""

    new_BxRxD: jax.Array
    number_B: jax.Array | None
    pushed_out_BxRxD: jax.Array
    count_B: jax.Array


# Which places of a segment enter the cache.
CACHED = {"all": lambda layout: Layout(), "text": lambda layout: layout}


def _take(x_BxNxD: jax.Array, index_BxM: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BxNxD, index_BxM[..., None], axis=1)


def _slide(old_BxCxD: jax.Array, new_BxRxD: jax.Array, number_B: jax.Array | None) -> jax.Array:
    """The last C of each row of [old ; the first number_B of new]."""
    C, R = old_BxCxD.shape[1], new_BxRxD.shape[1]
    if number_B is None:
        return jnp.concatenate([old_BxCxD[:, R:], new_BxRxD], axis=1)
    return _take(jnp.concatenate([old_BxCxD, new_BxRxD], axis=1), jnp.arange(C) + number_B.astype(jnp.int32)[:, None])


def _slide_back(after_BxCxD: jax.Array, pushed_out_BxRxD: jax.Array, number_B: jax.Array | None) -> jax.Array:
    """The inverse of `_slide`."""
    C, R = after_BxCxD.shape[1], pushed_out_BxRxD.shape[1]
    if number_B is None:
        return jnp.concatenate([pushed_out_BxRxD, after_BxCxD[:, : C - R]], axis=1)
    place, number = jnp.arange(C), number_B.astype(jnp.int32)[:, None]
    return _take(jnp.concatenate([pushed_out_BxRxD, after_BxCxD], axis=1), jnp.where(place < number, place, R + place - number))


class HiddenCache(LayerMemory):
    """No parameters: the same weights run with any `length`."""

    def __init__(self, length: int, width: int, window: int | None, cached: str):
        self.length, self.width, self.window, self.cached = length, width, window, cached

    def init_state(self, batch):
        return CacheState(jnp.zeros((batch, self.length, self.width), jnp.float32), jnp.zeros((batch,), jnp.float32))

    def attend(self, state):
        C = self.length
        filled = jnp.arange(C) >= C - state.count_B[:, None]
        return Context(np.arange(-C, 0), filled, hidden_BxCxD=state.hidden_BxCxD, window=self.window)

    def write(self, trace: Trace, state):
        layout = CACHED[self.cached](trace.layout)
        x = layout.real(trace.inputs_BxTxD).astype(jnp.float32)
        valid = None if trace.valid_BxT is None else trace.valid_BxT[:, layout.front : layout.front + x.shape[1]]
        R = min(x.shape[1], self.length)
        if valid is None:
            new, number = x[:, x.shape[1] - R :], None
        else:
            # The real places at the end, in their order; then the last R of them to the front.
            order = jnp.argsort(valid, axis=1, stable=True)[:, x.shape[1] - R :]
            number = jnp.minimum(jnp.sum(valid, axis=1), R).astype(jnp.float32)
            place = jnp.arange(R) + R - number.astype(jnp.int32)[:, None]
            new = jnp.where((place < R)[..., None], _take(x, jnp.take_along_axis(order, jnp.minimum(place, R - 1), axis=1)), 0.0)
        return CacheUpdate(new, number, state.hidden_BxCxD[:, :R], state.count_B)

    def commit(self, state, update):
        hidden = _slide(state.hidden_BxCxD, update.new_BxRxD, update.number_B)
        more = update.new_BxRxD.shape[1] if update.number_B is None else update.number_B
        return CacheState(hidden, jnp.minimum(state.count_B + more, self.length))

    def undo(self, state, update):
        return CacheState(_slide_back(state.hidden_BxCxD, update.pushed_out_BxRxD, update.number_B), update.count_B)


@dataclasses.dataclass(frozen=True)
class TransformerXLCache(MemoryConfig):
    """A cache of the last hidden states in every layer, on any backbone with relative or rotary positions.

    Attributes:
        cache_length: C. Evaluation may use another one with the same weights (`MemoryTransformer.with_memory`).
        same_length: a token sees only the C places up to and with itself, so every token sees equally many (once C have gone by).
        cached: "all" caches memory tokens as well, where another memory adds them (as the published RMT on Transformer-XL does);
            "text" only the real tokens.

    Raises:
        ValueError: a length below 1; a backbone with a table of positions.
    """

    cache_length: int = 150
    same_length: bool = False
    cached: str = "all"

    layer_class: ClassVar[type] = HiddenCache

    def __post_init__(self):
        if self.cache_length < 1:
            raise ValueError(f"memory.cache_length = {self.cache_length} must be at least 1 (for no memory choose memory.name = 'none')")
        if self.cached not in CACHED:
            raise ValueError(f"memory.cached = {self.cached!r} must be one of {tuple(CACHED)}")

    def layout(self, backbone):
        if backbone.learned_positions:
            raise ValueError(
                f"memory.cache_length = {self.cache_length}: a cache needs a backbone that knows distances, and {type(backbone).__name__} "
                "has a table of positions, in which cached states claim the same places as the segment's own (arXiv 1901.02860, section "
                "3.3): use backbone 'transformer_xl', 'llama' or 'gpt_neox'"
            )
        return Layout()

    def layer_memory(self, backbone, dtype, rngs):
        return HiddenCache(self.cache_length, backbone.width, self.cache_length if self.same_length else None, self.cached)
