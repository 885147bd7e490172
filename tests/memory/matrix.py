"""One layer's associative matrix, written and read by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from armt_jax.memory.associative import ARMT, AssociativeMemory
from armt_jax.memory.interface import Layout, Trace
from armt_jax.nn.layers import Init

B, M, D = 2, 3, 8


def memory(seed=0, tokens=M, **fields) -> AssociativeMemory:
    config = ARMT(num_memory_tokens=tokens, d_mem=fields.pop("d_mem", 8), value_std=None, **fields)
    return AssociativeMemory(config, D, Init(kernel=None), jnp.float32, nnx.Rngs(seed))


def saturate(m: AssociativeMemory, bias=30.0) -> AssociativeMemory:
    """beta = sigmoid(bias) for every token."""
    m.beta.kernel[...] = jnp.zeros_like(m.beta.kernel[...])
    m.beta.bias[...] = jnp.full_like(m.beta.bias[...], bias)
    return m


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def update_of(m, outputs, state):
    """The write of a segment whose only tokens are the memory tokens."""
    layout = Layout(0, outputs.shape[1])
    return m.write(Trace(outputs, outputs, None, None, None, layout, None), state)


def written(m, outputs, state):
    return m.commit(state, update_of(m, outputs, state))


def features(m, x):
    return np.asarray(m._features(m.key(x)), np.float64)


def recalled(m, x, state):
    """What the state holds under the keys of x: k A / (k z + eps)."""
    return found_by(features(m, x), state).reshape(x.shape)


def found_by(k_BxHxTxK, state):
    """[B, T, H, d]"""
    A, z = np.asarray(state.A_BxHxKxd, np.float64), np.asarray(state.z_BxHxK, np.float64)
    weight = np.einsum("bhtk,bhk->bth", k_BxHxTxK, z) + 1e-5
    return np.einsum("bhtk,bhkd->bthd", k_BxHxTxK, A) / weight[..., None]


class Override(nnx.Module):
    """A value map that ignores its input: the second write stores something else under the same key."""

    def __init__(self, value):
        self.value = nnx.Variable(value)

    def __call__(self, x):
        return self.value[...]


def overwritten(correction: bool, bias=30.0):
    """(first value, second value, what is recalled) after two writes with one key."""
    m = saturate(memory(tokens=1, correction=correction), 30.0)
    x = normal(5, B, 1, D)
    v1, v2 = normal(6, B, 1, D), normal(7, B, 1, D)
    m.value = Override(v1)
    state = written(m, x, m.init_state(B))
    m.value = Override(v2)
    state = written(saturate(m, bias), x, state)
    return v1, v2, recalled(m, x, state)
