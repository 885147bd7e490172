"""Causal self-attention with room for what a memory adds: extra keys and values, and a key-value cache for decoding."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.nn.layers import Init, linear
from armt_jax.nn.positions import Rotary

# cuDNN's kernels go through keys in tiles of so many. Of ones that are not full its backward pass is known to make NaN where a query's
# scores are low: with a mask, and lengths that are 64 more than whole tiles (https://github.com/pytorch/pytorch/issues/196678, before cuDNN
# 9.26), or short ones (https://github.com/NVIDIA/cudnn-frontend/issues/160). As a precaution no tile is left so.
TILE = 128
VARIABLE = "ARMT_JAX_ATTENTION"


def dot_product(
    q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, *, mask_BxTxS: jax.Array | None, causal: bool, valid_BxT: jax.Array | None = None
) -> jax.Array:
    """softmax(q k / sqrt(d)) v, the one place where an attention implementation is chosen.

    cuDNN's fused kernel for half precision on an NVIDIA GPU, where it takes these shapes; XLA elsewhere (`jax.nn.dot_product_attention`
    itself never chooses cuDNN), and everywhere with the environment variable ARMT_JAX_ATTENTION=xla. k and v may have fewer heads than q
    (grouped-query attention). mask is True where a key may be seen; what a query that sees none gets is finite, and nothing else.
    valid_BxT: given where the mask is causal but for tokens that are not real: those that are. What the others get is finite, too.
    """
    if cudnn_is_meant() and _cudnn_takes(q_BxTxHxd):
        if valid_BxT is not None:
            return _real_first(q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, valid_BxT)
        return _in_tiles(q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, mask_BxTxS, causal)
    mask = None if mask_BxTxS is None else mask_BxTxS[:, None]
    return jax.nn.dot_product_attention(q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, mask=mask, is_causal=causal, implementation="xla")


def _real_first(q_BxTxHxd, k_BxTxHxd, v_BxTxHxd, valid_BxT) -> jax.Array:
    """By cuDNN without a mask, which for it is an array to add, as large as all scores and with a gradient of its own: where the real
    tokens come first, in their order, a causal kernel lets them see nothing else."""
    order_BxT = jnp.argsort(~valid_BxT, axis=1, stable=True)
    back_BxT = jnp.argsort(order_BxT, axis=1)
    qkv = [_reorder(x, order_BxT, back_BxT) for x in (q_BxTxHxd, k_BxTxHxd, v_BxTxHxd)]
    return _reorder(_in_tiles(*qkv, None, causal=True), back_BxT, order_BxT)


@jax.custom_vjp
def _reorder(x_BxTxHxd: jax.Array, order_BxT: jax.Array, back_BxT: jax.Array) -> jax.Array:
    """Row by row x[order]; `back` undoes it. Its transpose is a look-up, too, and no scattered sum."""
    return jnp.take_along_axis(x_BxTxHxd, order_BxT[:, :, None, None], axis=1)


_reorder.defvjp(
    lambda x, order, back: (_reorder(x, order, back), (order, back)),
    lambda ways, d_out: (_reorder(d_out, ways[1], ways[0]), None, None),
)


def _in_tiles(q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, mask_BxTxS, causal: bool) -> jax.Array:
    """By cuDNN, with queries and keys filled up to whole tiles, and something to see for every query."""
    T, S = q_BxTxHxd.shape[1], k_BxSxHxd.shape[1]
    fill = lambda x, axis: jnp.pad(x, [(0, -n % TILE if i == axis else 0) for i, n in enumerate(x.shape)])
    mask = mask_BxTxS
    if mask is not None or not causal or T != S:  # else no query sees a key behind it
        mask = jnp.ones((1, T, S), bool) if mask is None else mask
        mask = jnp.broadcast_to(jnp.tril(mask) if causal else mask, (q_BxTxHxd.shape[0], T, S))
        mask = fill(mask, 1)
        mask = fill(mask | ~jnp.any(mask, axis=2, keepdims=True), 2)
        # Under vmap (the diagonals') JAX reshapes it to all heads without spreading it over them.
        mask = jnp.broadcast_to(mask[:, None], (mask.shape[0], q_BxTxHxd.shape[2], *mask.shape[1:]))
    qkv = [fill(x, 1) for x in (q_BxTxHxd, k_BxSxHxd, v_BxSxHxd)]
    return jax.nn.dot_product_attention(*qkv, mask=mask, is_causal=mask is None, implementation="cudnn")[:, :T]


def cudnn_is_meant() -> bool:
    """On an NVIDIA GPU, unless the environment says otherwise. Raises ValueError for another value of ARMT_JAX_ATTENTION than "xla"."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "xla"):
        raise ValueError(f"{VARIABLE}={wanted!r} must be 'xla', or not set: cuDNN's attention is then taken where it can be")
    return _on_cuda() and not wanted


def _on_cuda() -> bool:
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version.lower()


def _cudnn_takes(q_BxTxHxd: jax.Array) -> bool:
    """Types and sizes of heads that JAX takes for cuDNN (before Hopper, 128 at most), and more than a token that is decoded by itself: a
    tile for it is a waste."""
    T, size = q_BxTxHxd.shape[1], q_BxTxHxd.shape[3]
    return q_BxTxHxd.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128 and T > 1


class Context(NamedTuple):
    """What a memory lets attention see before the segment itself.

    Either `hidden_BxCxD` (hidden states that the block projects with its own key and value maps: Transformer-XL, MemoryLLM) or ready
    `keys_BxCxHxd` and `values_BxCxHxd` (CAMELoT, MemLong). Keys are un-rotated; `positions` (int, [C] or [B, C]) says where they
    stand on the segment's own axis (the first token of the segment is 0, so the past is negative). `valid_BxC`: which entries exist.
    `window`: a token sees only what stands less than so many positions before it, in the context and in the segment; None: everything.
    """

    positions: jax.Array
    valid_BxC: jax.Array
    hidden_BxCxD: jax.Array | None = None
    keys_BxCxHxd: jax.Array | None = None
    values_BxCxHxd: jax.Array | None = None
    window: int | None = None


class KeyValueCache(NamedTuple):
    """Rotated keys and values of the segment decoded so far. `valid_BxC` marks the filled places."""

    keys_BxCxHxd: jax.Array
    values_BxCxHxd: jax.Array
    valid_BxC: jax.Array


class Attended(NamedTuple):
    output_BxTxD: jax.Array
    keys_BxTxHxd: jax.Array  # un-rotated
    values_BxTxHxd: jax.Array
    cache: KeyValueCache | None


class Attention(nnx.Module):
    """Multi-head causal attention; grouped-query when num_kv_heads < num_heads."""

    def __init__(
        self, width: int, num_heads: int, num_kv_heads: int, head_size: int, *, rotary: Rotary | None, bias: bool, init: Init,
        dtype: Any, rngs: nnx.Rngs,
    ):  # fmt: skip
        kwargs = dict(bias=bias, init=init, dtype=dtype, rngs=rngs)
        self.query = linear(width, num_heads * head_size, **kwargs)
        self.key = linear(width, num_kv_heads * head_size, **kwargs)
        self.value = linear(width, num_kv_heads * head_size, **kwargs)
        self.output = linear(num_heads * head_size, width, ends_branch=True, **kwargs)
        self.head_size = head_size
        self.rotary = rotary

    def _heads(self, x_BxTxN: jax.Array) -> jax.Array:
        return x_BxTxN.reshape(*x_BxTxN.shape[:2], -1, self.head_size)

    def _rotate(self, x_BxTxHxd: jax.Array, positions: jax.Array) -> jax.Array:
        return x_BxTxHxd if self.rotary is None else self.rotary(x_BxTxHxd, positions)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        positions: jax.Array,
        valid_BxT: jax.Array | None = None,
        context: Context | None = None,
        cache: KeyValueCache | None = None,
        cache_index: jax.Array | int = 0,
        keys_B: jax.Array | None = None,
    ) -> Attended:
        """positions: int [T] or [B, T]. With a cache, the T new tokens are written at cache_index.. and see all valid places there.
        keys_B: PRNG keys for an attention that draws random numbers."""
        q = self._rotate(self._heads(self.query(x_BxTxD)), positions)
        plain_k, v = self._heads(self.key(x_BxTxD)), self._heads(self.value(x_BxTxD))
        k = self._rotate(plain_k, positions)
        new_values, places = v, positions
        if cache is not None:
            cache, k, v, mask = _extend(cache, cache_index, k, v, valid_BxT)
            places = jnp.cumsum(cache.valid_BxC, axis=1) - 1
        else:
            mask = None if valid_BxT is None else _causal(x_BxTxD.shape[1])[None] & valid_BxT[:, None, :]
        if context is not None:
            k, v, mask, places = self._see(context, k, v, mask, positions, places)
        out = self.weigh(q, k, v, mask, positions, places, keys_B, valid_BxT if cache is None and context is None else None)
        return Attended(self.output(out.reshape(*x_BxTxD.shape[:2], -1)), plain_k, new_values, cache)

    def weigh(self, q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, mask_BxTxS, positions, places, keys_B, valid_BxT=None) -> jax.Array:
        """The weighted values [B, T, H, d]. mask None: plainly causal. `positions` of the queries and `places` of the keys (int,
        [T] and [S], or with a leading B) stand on one axis; here they are in the rotated q and k already. valid_BxT: the real tokens, where
        the mask is causal but for the others."""
        return dot_product(q_BxTxHxd, k_BxSxHxd, v_BxSxHxd, mask_BxTxS=mask_BxTxS, causal=mask_BxTxS is None, valid_BxT=valid_BxT)

    def _see(self, context: Context, k, v, mask, positions, places):
        """Puts the context's keys, values and positions before the segment's."""
        if context.hidden_BxCxD is not None:
            hidden = context.hidden_BxCxD.astype(k.dtype)
            more_k, more_v = self._heads(self.key(hidden)), self._heads(self.value(hidden))
        else:
            more_k, more_v = context.keys_BxCxHxd.astype(k.dtype), context.values_BxCxHxd.astype(v.dtype)
        B, T, C = more_k.shape[0], positions.shape[-1], more_k.shape[1]
        mask = _causal(T)[None] if mask is None else mask
        seen = jnp.broadcast_to(context.valid_BxC[:, None, :], (B, T, C))
        mask = jnp.concatenate([seen, jnp.broadcast_to(mask, (B, T, k.shape[1]))], axis=-1)
        ahead = jnp.broadcast_to(context.positions, (*places.shape[:-1], C)) if context.positions.ndim == 1 else context.positions
        behind = jnp.broadcast_to(places, (*ahead.shape[:-1], k.shape[1]))
        places = jnp.concatenate([ahead, behind], axis=-1)
        if context.window is not None:
            mask = mask & (positions[..., :, None] - places[..., None, :] < context.window)
        k = jnp.concatenate([self._rotate(more_k, context.positions), k], axis=1)
        return k, jnp.concatenate([more_v, v], axis=1), mask, places


def _causal(T: int) -> jax.Array:
    return jnp.tril(jnp.ones((T, T), bool))


def _extend(cache: KeyValueCache, index, k_BxTxHxd, v_BxTxHxd, valid_BxT):
    """Writes T new entries at `index` and returns the cache, all keys and values, and who sees what [B, T, C]."""
    B, T = k_BxTxHxd.shape[:2]
    filled = jnp.ones((B, T), bool) if valid_BxT is None else valid_BxT
    keys = jax.lax.dynamic_update_slice(cache.keys_BxCxHxd, k_BxTxHxd.astype(cache.keys_BxCxHxd.dtype), (0, index, 0, 0))
    values = jax.lax.dynamic_update_slice(cache.values_BxCxHxd, v_BxTxHxd.astype(cache.values_BxCxHxd.dtype), (0, index, 0, 0))
    valid = jax.lax.dynamic_update_slice(cache.valid_BxC, filled, (0, index))
    reach = jnp.arange(keys.shape[1])[None, :] <= index + jnp.arange(T)[:, None]
    return KeyValueCache(keys, values, valid), keys, values, valid[:, None, :] & reach[None]
