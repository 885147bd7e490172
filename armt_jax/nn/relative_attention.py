"""Relative positional attention (Transformer-XL, Dai et al., arXiv 1901.02860, section 3.3).

Query i and key j are compared by what the key holds and by how far back it stands (equation in 3.3, terms a, c and b, d):

    score_ij = ((q_i + u) . k_j + (q_i + v) . W_r R_{i-j}) / sqrt(d),   R_n = [sin(n w), cos(n w)],  w_m = 10000^(-2m/D)

with two bias vectors u and v per head. Distances above `clamp` count as `clamp`. Nothing here depends on where a segment starts, so hidden
states of earlier segments serve as keys at their distances.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.nn.attention import Attention, Context
from armt_jax.nn.layers import WEIGHTS_SALT, Init, dropout, linear


def sinusoids(distances: np.ndarray, width: int) -> np.ndarray:
    """R [n, D], float32: the sines, then the cosines. Taken in float64, since a long distance in float32 loses the fast waves."""
    frequencies = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    angles = distances[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def shift_to_keys(by_distance_BxHxTxS: jax.Array) -> jax.Array:
    """Of scores by distance S-1, ..., 0 for T queries that stand at the last T of S places in a row: the scores by key.

    Row t moves left by T-1-t (appendix B of the paper). What stands in the future of a query is arbitrary.
    """
    B, H, T, S = by_distance_BxHxTxS.shape
    padded = jnp.pad(by_distance_BxHxTxS, ((0, 0), (0, 0), (0, 0), (1, 0)))
    return padded.reshape(B, H, S + 1, T)[:, :, 1:].reshape(B, H, T, S)


class RelativeAttention(Attention):
    """Multi-head causal attention by content and distance.

    Args:
        clamp: the longest distance told apart, or None. dropout: of the attention weights. bias_class: the Variable of u and v
            (`Shared`: one pair for all layers). bias_std: their initial scale.
    """

    def __init__(
        self, width: int, num_heads: int, head_size: int, *, clamp: int | None, dropout: float, bias_class: type[nnx.Param],
        bias_std: float, init: Init, dtype: Any, rngs: nnx.Rngs,
    ):  # fmt: skip
        super().__init__(
            width, num_heads, num_heads, head_size, rotary=None, bias=False, init=init, dtype=dtype, rngs=rngs
        )
        self.distance = linear(width, num_heads * head_size, bias=False, init=init, dtype=dtype, rngs=rngs)
        draw = lambda: bias_class(bias_std * jax.random.normal(rngs.params(), (num_heads * head_size,), jnp.float32))
        self.content_bias, self.position_bias = draw(), draw()
        self.width, self.clamp, self.dropout, self.dtype = width, clamp, dropout, dtype

    def __call__(self, x_BxTxD, positions, valid_BxT=None, context: Context | None = None, cache=None, cache_index=0, keys_B=None):
        """As `Attention`; positions [T] must be 0, 1, ..., T-1.

        Raises:
            ValueError: a context that does not stand right before the segment (its distances would not be numbers of keys).
        """
        if context is not None:
            C = context.valid_BxC.shape[1]
            if not (isinstance(context.positions, np.ndarray) and np.array_equal(context.positions, np.arange(-C, 0))):
                raise ValueError(
                    f"relative attention got a context of {C} entries at positions {context.positions}, and it can only see the "
                    f"{C} places right before the segment, -{C}..-1 (a constant numpy array)"
                )
        return super().__call__(x_BxTxD, positions, valid_BxT, context, cache, cache_index, keys_B)

    def weigh(self, q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, mask_BxTxS, positions, places, keys_B, valid_BxT=None):
        T, S = q_BxTxHxd.shape[1], k_BxSxHxd.shape[1]
        u, v = (b[...].astype(self.dtype).reshape(-1, self.head_size) for b in (self.content_bias, self.position_bias))
        content = jnp.einsum("bthd,bshd->bhts", q_BxTxHxd + u, k_BxSxHxd, preferred_element_type=jnp.float32)
        order = np.arange(S)[::-1]
        clamped = order if self.clamp is None else np.minimum(order, self.clamp)
        r_SxHxd = self.distance(jnp.asarray(sinusoids(clamped, self.width), self.dtype)).reshape(S, -1, self.head_size)
        position = jnp.einsum("bthd,shd->bhts", q_BxTxHxd + v, r_SxHxd, preferred_element_type=jnp.float32)
        if places.ndim == 1:  # keys and queries of all rows stand in one unbroken line
            position = shift_to_keys(position)
        else:
            back = jnp.clip(positions[..., :, None] - places[..., None, :], 0, S - 1)
            position = jnp.take_along_axis(position, (S - 1 - back)[:, None], axis=-1)
        scores = (content + position) / self.head_size**0.5
        mask = jnp.tril(jnp.ones((1, T, S), bool), S - T) if mask_BxTxS is None else mask_BxTxS
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min), axis=-1)
        weights = dropout(weights, self.dropout, keys_B, WEIGHTS_SALT)
        return jnp.einsum("bhts,bshd->bthd", weights.astype(self.dtype), v_BxSxHxd)
