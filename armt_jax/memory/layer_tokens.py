"""Parallel RMT: every layer has recurrent memory tokens of its own (ARMT paper, arXiv 2407.04841, appendix F.2).

Entering layer l, the first and the last M hidden states are replaced by what that layer put out at the last M places one segment ago.
So state moves only within a layer, and the diagonal schedule applies.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.memory.interface import LayerMemory, Layout, MemoryConfig, Trace, check_memory_tokens, memory_layout
from armt_jax.memory.write_tokens import Slots
from armt_jax.nn.backbones import BackboneConfig


class TokensUpdate(NamedTuple):
    """The old tokens are kept so that a commit can be undone: they are no larger than the new."""

    new_BxMxD: jax.Array
    old_BxMxD: jax.Array


class LayerTokens(LayerMemory):
    training_free: ClassVar[bool] = False

    def __init__(self, count: int, width: int, std: float, rngs: nnx.Rngs):
        self.tokens = nnx.Param(std * jax.random.normal(rngs.params(), (count, width), jnp.float32))

    def init_state(self, batch):
        tokens = self.tokens[...]
        return jnp.broadcast_to(tokens, (batch, *tokens.shape)).astype(jnp.float32)

    def read(self, x_BxTxD, state, layout: Layout):
        tokens = state.astype(x_BxTxD.dtype)
        parts = [tokens[:, : layout.front], layout.real(x_BxTxD), tokens[:, : layout.back]]
        return jnp.concatenate([p for p in parts if p.shape[1]], axis=1)

    def write(self, trace: Trace, state):
        return TokensUpdate(trace.layout.write_slots(trace.outputs_BxTxD).astype(jnp.float32), state)

    def commit(self, state, update):
        return update.new_BxMxD

    def undo(self, state, update):
        return update.old_BxMxD


@dataclasses.dataclass(frozen=True)
class ParallelRMT(MemoryConfig):
    """Parallel RMT: M recurrent memory tokens per layer. Attributes as in RMT; the first memory of each layer is learned.

    The published code starts it at unit scale; here it starts at the scale of the token embeddings unless `memory_std` says otherwise.
    """

    num_memory_tokens: int = 10
    positions: str = "running"
    memory_std: float | None = None

    layer_class: ClassVar[type] = LayerTokens
    token_class: ClassVar[type] = Slots

    def __post_init__(self):
        check_memory_tokens(self.num_memory_tokens)

    def layout(self, backbone: BackboneConfig) -> Layout:
        return memory_layout(self.num_memory_tokens, self.num_memory_tokens, self.positions, backbone)

    def layer_memory(self, backbone, dtype, rngs):
        std = backbone.token_std if self.memory_std is None else self.memory_std
        return LayerTokens(self.num_memory_tokens, backbone.width, std, rngs)

    def token_memory(self, backbone, rngs):
        return Slots(self.num_memory_tokens, self.num_memory_tokens, backbone.width)
