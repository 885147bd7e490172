"""Small parts that every backbone shares: linear maps, norms, embeddings, feed-forward networks, dropout.

Parameters are float32; each part computes in the dtype it is given and returns that dtype.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.nn.placement import WHOLE, Axes, constrain

# Numbers that tell apart the draws of one layer's key: its two branches, the attention's weights, the MLP's hidden units.
ATTENTION_SALT, MLP_SALT, WEIGHTS_SALT, HIDDEN_SALT = range(4)


@dataclasses.dataclass(frozen=True)
class Init:
    """Standard deviations of the initial weights.

    Attributes:
        kernel: of every linear map; None means 1/sqrt(fan-in).
        embedding: of token embeddings (and, through them, of memory tokens).
        position: of the learned position table.
        residual_depth: number of layers L; maps that end a residual branch are scaled by 1/sqrt(2L), as in GPT-2. None: no.
    """

    kernel: float | None = 0.02
    embedding: float = 0.02
    position: float = 0.02
    residual_depth: int | None = None

    def kernel_init(self, *, ends_branch: bool = False):
        scale = 1.0 if self.residual_depth is None or not ends_branch else (2 * self.residual_depth) ** -0.5
        if self.kernel is None:
            return nnx.initializers.variance_scaling(scale**2, "fan_in", "normal")
        return nnx.initializers.normal(self.kernel * scale)


def linear(fan_in: int, fan_out: int, *, bias: bool, init: Init, dtype: Any, rngs: nnx.Rngs, ends_branch=False) -> nnx.Linear:
    return nnx.Linear(
        fan_in, fan_out, use_bias=bias, kernel_init=init.kernel_init(ends_branch=ends_branch), dtype=dtype, rngs=rngs
    )


def layer_norm(width: int, epsilon: float, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The two-pass variance: the fast one loses the last digits that parity tests look at.
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def rms_norm(width: int, epsilon: float, dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


class Shared(nnx.Param):
    """A parameter of one layer that all layers have in common: kept once, without the layer axis, and repeated for the stack of layers."""


class Table(nnx.Module):
    """Rows looked up by integer id. `split`: mesh axes that the rows lie over while they are in use."""

    def __init__(self, rows: int, width: int, std: float, rngs: nnx.Rngs, split: Axes = WHOLE):
        self.table = nnx.Param(std * jax.random.normal(rngs.params(), (rows, width), jnp.float32))
        self.split = split

    def rows(self, dtype) -> jax.Array:
        """The table as it is used, [R, D]."""
        return constrain(self.table[...].astype(dtype), self.split)

    def __call__(self, ids, dtype) -> jax.Array:
        # Rows are taken before they are cast: their gradients are added up in float32, where a frequent token's are not lost.
        return constrain(self.table[...], self.split)[ids].astype(dtype)


class GeluMLP(nnx.Module):
    """up, GELU, down (GPT-2 with the tanh approximation, GPT-NeoX with the exact function)."""

    def __init__(self, width: int, hidden: int, *, approximate: bool, init: Init, dtype: Any, rngs: nnx.Rngs):
        self.up = linear(width, hidden, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, bias=True, init=init, dtype=dtype, rngs=rngs, ends_branch=True)
        self.approximate = approximate

    def __call__(self, x_BxTxD: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x_BxTxD), approximate=self.approximate))


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)), without biases (Llama; Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, *, init: Init, dtype: Any, rngs: nnx.Rngs):
        self.gate = linear(width, hidden, bias=False, init=init, dtype=dtype, rngs=rngs)
        self.up = linear(width, hidden, bias=False, init=init, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, bias=False, init=init, dtype=dtype, rngs=rngs, ends_branch=True)

    def __call__(self, x_BxTxD: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x_BxTxD)) * self.up(x_BxTxD))


class ReluMLP(nnx.Module):
    """up, ReLU, dropout, down (Vaswani et al., arXiv 1706.03762, and Transformer-XL)."""

    def __init__(self, width: int, hidden: int, *, dropout: float, init: Init, dtype: Any, rngs: nnx.Rngs):
        self.up = linear(width, hidden, bias=True, init=init, dtype=dtype, rngs=rngs)
        self.down = linear(hidden, width, bias=True, init=init, dtype=dtype, rngs=rngs, ends_branch=True)
        self.dropout = dropout

    def __call__(self, x_BxTxD: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        return self.down(dropout(jax.nn.relu(self.up(x_BxTxD)), self.dropout, keys_B, HIDDEN_SALT))


class Identity(nnx.Module):
    """Where a backbone has no final norm."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """A key per row [B]. A row draws the same numbers whatever rows stand beside it, on whatever device."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def fold_keys(keys_B: jax.Array, number: jax.Array | int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)


def dropout(x_BxTxD: jax.Array, rate: float, keys_B: jax.Array | None, salt: int) -> jax.Array:
    """Inverted dropout, a key per row; off when `keys_B` is None. `salt` tells apart several uses of one key."""
    if keys_B is None or rate == 0.0:
        return x_BxTxD
    draw = lambda key: jax.random.bernoulli(key, 1.0 - rate, x_BxTxD.shape[1:])
    return jnp.where(jax.vmap(draw)(fold_keys(keys_B, salt)), x_BxTxD / (1.0 - rate), 0).astype(x_BxTxD.dtype)
