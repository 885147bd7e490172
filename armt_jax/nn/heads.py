"""Output heads over a plain vocabulary: hidden states to logits and to the loss of the targets.

Every head has

    logits(hidden [..., D], embed) -> [..., V] float32, of which a softmax makes probabilities
    losses(hidden [..., D], targets [...], embed) -> (-log p(target) [...], whether the target is the likeliest token [...])
    width: entries per token that exist at once in `losses`

`embed` is the embedding part, whose tables a tied head shares. The adaptive softmax is a head, too.
"""

import functools
from collections.abc import Callable
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


def weighed_losses(head: nnx.Module, embed: nnx.Module, hidden: jax.Array, targets: jax.Array, weights: jax.Array):
    """head.losses, or zeros that cost nothing where no target weighs: with the loss on an answer alone most segments weigh nothing, and a
    head costs as much as several layers."""
    graphdef, params = nnx.split((head, embed))

    def compute(params, hidden, targets):
        head, embed = nnx.merge(graphdef, params)
        return head.losses(hidden, targets, embed)

    return _if_any(compute, weights > 0, params, hidden, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _if_any(compute: Callable, wanted, params, hidden, targets):
    """compute(params, hidden, targets), or zeros where nothing is wanted.

    With its transpose written out: autodiff would keep what a branch needs for the backward pass, the head's matrix included, once for each
    call in a loop.
    """
    zeros = lambda: (jnp.zeros(targets.shape, jnp.float32), jnp.zeros(targets.shape, bool))
    return jax.lax.cond(jnp.any(wanted), lambda: compute(params, hidden, targets), zeros)


def _if_any_forward(compute, wanted, params, hidden, targets):
    return _if_any(compute, wanted, params, hidden, targets), (wanted, params, hidden, targets)


def _if_any_backward(compute, saved, cotangents):
    wanted, params, hidden, targets = saved

    def pull():
        return jax.vjp(lambda params, hidden: compute(params, hidden, targets)[0], params, hidden)[1](cotangents[0])

    d_params, d_hidden = jax.lax.cond(jnp.any(wanted), pull, lambda: jax.tree.map(jnp.zeros_like, (params, hidden)))
    return None, d_params, d_hidden, None


_if_any.defvjp(_if_any_forward, _if_any_backward)
