"""One transformer layer, in the residual arrangements in use."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from armt_jax.nn.attention import Attention, Context, KeyValueCache
from armt_jax.nn.layers import ATTENTION_SALT, MLP_SALT, dropout

Mix = Callable[[jax.Array], jax.Array]


class BlockOutput(NamedTuple):
    """`keys` are un-rotated; `cache` is None unless one was passed in."""

    hidden_BxTxD: jax.Array
    keys_BxTxHxd: jax.Array
    values_BxTxHxd: jax.Array
    cache: KeyValueCache | None


class Block(nnx.Module):
    """Pre-norm block: x + attention, then + MLP (GPT-2, Llama); `parallel` blocks (GPT-NeoX) feed both from x.

    `mix` changes the attention branch's output before it joins the residual stream (LM2, Infini-attention).
    """

    def __init__(self, norm_attention: nnx.Module, attention: Attention, norm_mlp: nnx.Module, mlp: nnx.Module, dropout: float = 0.0):
        self.norm_attention = norm_attention
        self.attention = attention
        self.norm_mlp = norm_mlp
        self.mlp = mlp
        self.dropout = dropout

    def _attention_branch(self, x, positions, valid, context, cache, cache_index, mix: Mix, keys_B):
        if context is not None and context.hidden_BxCxD is not None:
            # Hidden states of the past enter attention as the segment's own do: through this block's norm.
            context = context._replace(hidden_BxCxD=self.norm_attention(context.hidden_BxCxD))
        out = self.attention(self.norm_attention(x), positions, valid, context, cache, cache_index, keys_B)
        return out, dropout(mix(out.output_BxTxD), self.dropout, keys_B, ATTENTION_SALT)

    def _mlp_branch(self, x_BxTxD: jax.Array, keys_B) -> jax.Array:
        return dropout(self.mlp(x_BxTxD, keys_B), self.dropout, keys_B, MLP_SALT)

    def __call__(
        self,
        x_BxTxD: jax.Array,
        positions: jax.Array,
        valid_BxT: jax.Array | None = None,
        *,
        context: Context | None = None,
        cache: KeyValueCache | None = None,
        cache_index: jax.Array | int = 0,
        mix: Mix = lambda x: x,
        keys_B: jax.Array | None = None,
    ) -> BlockOutput:
        out, branch = self._attention_branch(x_BxTxD, positions, valid_BxT, context, cache, cache_index, mix, keys_B)
        x = x_BxTxD + branch
        x = x + self._mlp_branch(self.norm_mlp(x), keys_B)
        return BlockOutput(x, out.keys_BxTxHxd, out.values_BxTxHxd, out.cache)


class ParallelBlock(Block):
    """x + attention(norm x) + mlp(norm' x)."""

    def __call__(
        self, x_BxTxD, positions, valid_BxT=None, *, context=None, cache=None, cache_index=0, mix: Mix = lambda x: x, keys_B=None
    ) -> BlockOutput:
        out, branch = self._attention_branch(x_BxTxD, positions, valid_BxT, context, cache, cache_index, mix, keys_B)
        x = x_BxTxD + branch + self._mlp_branch(self.norm_mlp(x_BxTxD), keys_B)
        return BlockOutput(x, out.keys_BxTxHxd, out.values_BxTxHxd, out.cache)


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm'(+ mlp) (Vaswani et al., arXiv 1706.03762, and Transformer-XL). What enters is normed already."""

    def __call__(
        self, x_BxTxD, positions, valid_BxT=None, *, context=None, cache=None, cache_index=0, mix: Mix = lambda x: x, keys_B=None
    ) -> BlockOutput:
        out = self.attention(x_BxTxD, positions, valid_BxT, context, cache, cache_index, keys_B)
        x = self.norm_attention(x_BxTxD + dropout(mix(out.output_BxTxD), self.dropout, keys_B, ATTENTION_SALT))
        x = self.norm_mlp(x + self._mlp_branch(x, keys_B))
        return BlockOutput(x, out.keys_BxTxHxd, out.values_BxTxHxd, out.cache)
