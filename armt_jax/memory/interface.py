"""The two interfaces of a memory system, and their contract.

A sequence is cut into segments; one cell of the grid is (layer l, segment s). A **LayerMemory** sits in every layer and carries state from
(l, s-1) to (l, s). A **TokenMemory** sits around the whole stack: it adds memory tokens to a segment and may carry them to the next one.
A memory system is a LayerMemory, a TokenMemory, or both (`presets.py`).

The contract, checked by `tests/memory/test_contract.py` and `test_contract_gradients.py` for every system:

* State is a pytree in and a pytree out; leaves are [B, ...], float32, of fixed shape; the driver stacks the layers' to [L, B, ...].
* Reads of segment s see the state after segment s-1.
* A write is first described (`write` returns an update), then committed. `write` must not change anything by itself, so decoding may look
  at an unfinished segment, and the reversible backward pass may undo a commit.
* Rows are independent. An empty state (`init_state`) adds nothing that the bare backbone would not compute, apart from memory tokens.
* Capabilities are class attributes. `layer_local` and `reversible` decide which schedules and strategies a config may ask for, `needs_rng`
  whether training hands out keys; `segment_causal` and `training_free` tell a reader what to expect.

Shapes: B batch, T tokens of a segment with its memory tokens, M memory tokens, D model width, H heads, C context length.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.nn.attention import Context
from armt_jax.nn.backbones import BackboneConfig

State = Any  # a pytree of arrays
Update = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a segment's memory tokens stand: `front` of them before the real tokens, `back` of them after.

    Positions run 0, 1, ... over [front, real tokens, back], counting real tokens only (padding does not shift anything). With
    `table_rows` the back tokens take the last rows of a position table of that size instead, whatever the segment's length.
    """

    front: int = 0
    back: int = 0
    table_rows: int | None = None

    def positions(self, T: int, valid_BxT: jax.Array | None) -> jax.Array:
        """int32 [front + T + back], or [B, ...] when `valid_BxT` (True: a real token) is given."""
        if valid_BxT is None:
            text, count = jnp.arange(T), T
        else:
            seen = jnp.cumsum(valid_BxT, axis=-1)
            text, count = jnp.maximum(seen - 1, 0), seen[:, -1:]
        front = jnp.broadcast_to(jnp.arange(self.front), (*text.shape[:-1], self.front))
        first = self.front + count if self.table_rows is None else self.table_rows - self.back
        back = jnp.broadcast_to(first + jnp.arange(self.back), (*text.shape[:-1], self.back))
        return jnp.concatenate([front, self.front + text, back], axis=-1).astype(jnp.int32)

    def wrap_valid(self, valid_BxT: jax.Array | None) -> jax.Array | None:
        """Memory tokens may always be seen."""
        return None if valid_BxT is None else jnp.pad(valid_BxT, ((0, 0), (self.front, self.back)), constant_values=True)

    def real(self, x_BxTxD: jax.Array) -> jax.Array:
        return x_BxTxD[:, self.front : x_BxTxD.shape[1] - self.back]

    def write_slots(self, x_BxTxD: jax.Array) -> jax.Array:
        """The last `back` positions [B, M, D]."""
        return x_BxTxD[:, x_BxTxD.shape[1] - self.back :]


class Trace(NamedTuple):
    """What one layer computed for one segment: all that `write` may look at. `keys` are un-rotated."""

    inputs_BxTxD: jax.Array
    outputs_BxTxD: jax.Array
    keys_BxTxHxd: jax.Array
    values_BxTxHxd: jax.Array
    valid_BxT: jax.Array | None  # None: every token is real
    layout: Layout
    keys_B: jax.Array | None  # PRNG keys of this cell's rows in training, for systems that say `needs_rng`
    live_B: jax.Array | None = None  # rows whose update is used; None: all
    layer: jax.Array | None = None  # int32 [], the layer's number from 0


class LayerMemory(nnx.Module):
    """Memory inside every layer. The base class remembers nothing; a system overrides what it needs.

    Capabilities:
        layer_local: the state of layer l after segment s needs only (l, s-1) and (l-1, s), so the diagonal schedule is allowed.
        reversible: `undo(commit(state, update), update)` gives `state` back to rounding.
        segment_causal: no token of a segment influences the outputs of earlier tokens of it.
        needs_rng: `write` draws random numbers.
        training_free: has no parameters.
    """

    layer_local: ClassVar[bool] = True
    reversible: ClassVar[bool] = True
    segment_causal: ClassVar[bool] = True
    needs_rng: ClassVar[bool] = False
    training_free: ClassVar[bool] = True

    def init_state(self, batch: int) -> State:
        return ()

    def read(self, x_BxTxD: jax.Array, state: State, layout: Layout) -> jax.Array:
        """On entering the block. While decoding, x is the newest tokens alone and `layout` says that no memory tokens are among them."""
        return x_BxTxD

    def attend(self, state: State) -> Context | None:
        """Extra entries for the block's attention."""
        return None

    def mix(self, x_BxTxD: jax.Array, state: State) -> jax.Array:
        """Changes the attention branch's output, before the residual sum."""
        return x_BxTxD

    def write(self, trace: Trace, state: State) -> Update:
        return ()

    def commit(self, state: State, update: Update) -> State:
        return state

    def undo(self, state: State, update: Update) -> State:
        return state


class TokenMemory(nnx.Module):
    """Memory tokens around the whole stack. The base class adds none.

    Capabilities:
        layer_local: the tokens of segment s do not depend on what the stack computed for s-1.
    """

    layer_local: ClassVar[bool] = True
    segment_causal: ClassVar[bool] = True
    needs_rng: ClassVar[bool] = False
    training_free: ClassVar[bool] = True

    def init_state(self, batch: int) -> State:
        return ()

    def memory_tokens(self, batch: int, state: State) -> tuple[jax.Array | None, jax.Array | None]:
        """The memory tokens of the next segment: (front [B, M, D] or None, back [B, M, D] or None), before positions are added."""
        return None, None

    def wrap(self, x_BxTxD: jax.Array, state: State) -> jax.Array:
        """[front, x, back]."""
        front, back = self.memory_tokens(x_BxTxD.shape[0], state)
        parts = [p if p is x_BxTxD else p.astype(x_BxTxD.dtype) for p in (front, x_BxTxD, back) if p is not None]
        return jnp.concatenate(parts, axis=1) if len(parts) > 1 else x_BxTxD

    def next_state(self, hidden_BxTxD: jax.Array, state: State, layout: Layout) -> State:
        """From the stack's output (after the final norm) over [front, x, back] to the state of the next segment."""
        return state


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """A memory system by name: which parts it has. Subclasses live in their system's file.

    stage_fields: those that a stage of the curriculum may set for itself: parameters and state have the same shapes and mean the same
    with any value of them.
    """

    layer_class: ClassVar[type[LayerMemory]] = LayerMemory
    token_class: ClassVar[type[TokenMemory]] = TokenMemory
    stage_fields: ClassVar[tuple[str, ...]] = ()

    def layout(self, backbone: BackboneConfig) -> Layout:
        """Raises ValueError where this backbone has no positions for what the memory adds."""
        return Layout()

    def layer_memory(self, backbone: BackboneConfig, dtype: Any, rngs: nnx.Rngs) -> LayerMemory:
        return LayerMemory()

    def token_memory(self, backbone: BackboneConfig, rngs: nnx.Rngs) -> TokenMemory:
        return TokenMemory()


MEMORY_POSITIONS = ("running", "table")


def memory_layout(front: int, back: int, positions: str, backbone: BackboneConfig) -> Layout:
    """Layout of memory tokens whose positions run on after the text's, or take rows of their own at the end of a grown table."""
    if positions not in MEMORY_POSITIONS:
        raise ValueError(f"memory.positions = {positions!r} must be one of {MEMORY_POSITIONS}")
    if positions == "running":
        return Layout(front, back)
    if not backbone.learned_positions:
        raise ValueError(
            f"memory.positions = 'table' needs a backbone with a learned position table, and {type(backbone).__name__} has none: "
            "use 'running'"
        )
    return Layout(front, back, table_rows=backbone.max_positions + front + back)


def check_memory_tokens(count: int) -> None:
    if count < 1:
        raise ValueError(f"memory.num_memory_tokens = {count} must be at least 1 (for no memory choose memory.name = 'none')")
