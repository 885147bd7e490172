"""Output heads over a plain vocabulary: hidden states to logits and to the loss of the targets.

Every head has

    logits(hidden [..., D], embed) -> [..., V] float32, of which a softmax makes probabilities
    losses(hidden [..., D], targets [...], embed) -> (-log p(target) [...], whether the target is the likeliest token [...])
    width: entries per token that exist at once in `losses`

`embed` is the embedding part, whose tables a tied head shares. The adaptive softmax is a head, too.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.nn.layers import Init, Table
from armt_jax.nn.placement import VOCABULARY, WHOLE, constrain


class PlainHead(nnx.Module):
    """One logit per token of the vocabulary: hidden times `kernel`."""

    dtype: Any
    width: int

    def _kernel(self, embed: Table) -> jax.Array:
        """[D, V] in the dtype of the computation."""
        raise NotImplementedError

    def logits(self, hidden: jax.Array, embed: Table) -> jax.Array:
        return jnp.matmul(hidden, self._kernel(embed), preferred_element_type=jnp.float32)

    def losses(self, hidden: jax.Array, targets: jax.Array, embed: Table) -> tuple[jax.Array, jax.Array]:
        @jax.checkpoint
        def compute(hidden):
            logits = self.logits(hidden, embed)
            nll = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
            return nll, jnp.argmax(logits, -1) == targets

        return compute(hidden)


class TiedHead(PlainHead):
    """The head is the transposed token table."""

    def __init__(self, vocab_size: int, dtype: Any):
        self.width, self.dtype = vocab_size, dtype

    def _kernel(self, embed):
        return embed.rows(self.dtype).T


class UntiedHead(PlainHead):
    """The head has a matrix of its own."""

    def __init__(self, width: int, vocab_size: int, init: Init, dtype: Any, rngs: nnx.Rngs):
        self.width, self.dtype = vocab_size, dtype
        self.kernel = nnx.Param(init.kernel_init()(rngs.params(), (width, vocab_size), jnp.float32))

    def _kernel(self, embed):
        return constrain(self.kernel[...].astype(self.dtype), WHOLE, VOCABULARY)
