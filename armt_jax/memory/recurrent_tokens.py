"""RMT: memory tokens read at the start of a segment, written at its end, and carried to the next (arXiv 2207.06881).

[mem ; x ; mem]: the same M vectors at both ends; the stack's output (after the final norm) at the last M places is the next segment's
memory. The mask is plainly causal, as in the authors' decoder code for Hugging Face models.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.memory.interface import Layout, MemoryConfig, TokenMemory, check_memory_tokens, memory_layout
from armt_jax.nn.backbones import BackboneConfig


class RecurrentTokens(TokenMemory):
    layer_local: ClassVar[bool] = False
    training_free: ClassVar[bool] = False

    def __init__(self, count: int, width: int, std: float, rngs: nnx.Rngs):
        self.tokens = nnx.Param(std * jax.random.normal(rngs.params(), (count, width), jnp.float32))

    def init_state(self, batch):
        tokens = self.tokens[...]
        return jnp.broadcast_to(tokens, (batch, *tokens.shape)).astype(jnp.float32)

    def memory_tokens(self, batch, state):
        return state, state

    def next_state(self, hidden_BxTxD, state, layout):
        return layout.write_slots(hidden_BxTxD).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class RMT(MemoryConfig):
    """RMT: M recurrent memory tokens at both ends of every segment.

    Attributes:
        num_memory_tokens: M. positions: of the tokens at the end, "running" or "table" (as in ARMT).
        memory_std: initial scale of the learned first memory; None: that of the token embeddings.
    """

    num_memory_tokens: int = 10
    positions: str = "running"
    memory_std: float | None = None

    token_class: ClassVar[type] = RecurrentTokens

    def __post_init__(self):
        check_memory_tokens(self.num_memory_tokens)

    def layout(self, backbone: BackboneConfig) -> Layout:
        return memory_layout(self.num_memory_tokens, self.num_memory_tokens, self.positions, backbone)

    def token_memory(self, backbone, rngs):
        std = backbone.token_std if self.memory_std is None else self.memory_std
        return RecurrentTokens(self.num_memory_tokens, backbone.width, std, rngs)
