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
    """head.losses where targets weigh. With the loss on answers alone that is seldom, and a head costs as much as several layers: so
    nothing is computed where no target weighs, and where no row of a segment has more than `few(T)` of them, those are computed alone.

    Args: hidden: [..., T, D]. targets, weights: [..., T].
    Returns: (-log p [..., T], whether the target is the likeliest [..., T]); where nothing weighs, anything finite, and anything.
    """
    graphdef, params = nnx.split((head, embed))

    def compute(params, hidden, targets):
        head, embed = nnx.merge(graphdef, params)
        return head.losses(hidden, targets, embed)

    return _where_wanted(compute, weights > 0, params, hidden, targets)


def few(length: int) -> int:
    """Tokens of a stretch of `length` that are computed apart from the others; 0: it is too short for that to be worth a second program."""
    return length // 8 if length >= 64 else 0


def _by_amount(wanted, nothing: Callable, some: Callable, everything: Callable):
    """Calls one of them: where nothing is wanted, few tokens of each stretch, or more."""
    most, room = jnp.max(jnp.sum(wanted, axis=-1)), few(wanted.shape[-1])
    if not room:
        return jax.lax.cond(most > 0, everything, nothing)
    return jax.lax.switch((most > 0).astype(jnp.int32) + (most > room), (nothing, some, everything))


def _of_few(compute: Callable, wanted, params, hidden, targets):
    """compute for the wanted tokens and as many others as fill `few` of each stretch; zeros elsewhere.

    Row by row, so that rows stay on their devices, and of one size, so without a loop: the adaptive softmax's `_wanted_rows` gathers over
    all rows, block by block.
    """
    _, places = jax.lax.top_k(wanted.astype(jnp.float32), few(wanted.shape[-1]))
    some = compute(params, jnp.take_along_axis(hidden, places[..., None], -2), jnp.take_along_axis(targets, places, -1))
    return tuple(jnp.put_along_axis(jnp.zeros(targets.shape, a.dtype), places, a, -1, inplace=False) for a in some)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _where_wanted(compute: Callable, wanted, params, hidden, targets):
    """compute(params, hidden, targets) where it is wanted.

    With its transpose written out: autodiff would keep what a branch needs for the backward pass, the head's matrix included, once for each
    call in a loop.
    """
    nothing = lambda: (jnp.zeros(targets.shape, jnp.float32), jnp.zeros(targets.shape, bool))
    some = lambda: _of_few(compute, wanted, params, hidden, targets)
    return _by_amount(wanted, nothing, some, lambda: compute(params, hidden, targets))


def _where_wanted_forward(compute, wanted, params, hidden, targets):
    return _where_wanted(compute, wanted, params, hidden, targets), (wanted, params, hidden, targets)


def _where_wanted_backward(compute, saved, cotangents):
    wanted, params, hidden, targets = saved

    def pull(losses):
        return jax.vjp(lambda params, hidden: losses(params, hidden)[0], params, hidden)[1](cotangents[0])

    nothing = lambda: jax.tree.map(jnp.zeros_like, (params, hidden))
    some = lambda: pull(lambda params, hidden: _of_few(compute, wanted, params, hidden, targets))
    everything = lambda: pull(lambda params, hidden: compute(params, hidden, targets))
    d_params, d_hidden = _by_amount(wanted, nothing, some, everything)
    return None, d_params, d_hidden, None


_where_wanted.defvjp(_where_wanted_forward, _where_wanted_backward)
