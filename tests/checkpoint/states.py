"""States to save, and the comparison of what comes back."""

import jax
import jax.numpy as jnp
import numpy as np


def assert_same(got, expected):
    """Equal in structure, dtype and every bit."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array), path
        assert a.dtype == b.dtype and a.shape == b.shape, path
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def small_state(step: int):
    return {"w": jax.random.normal(jax.random.key(step), (16,)), "n": jnp.int32(step)}


def large_state(step: int):  # 64 KiB that do not compress
    bits = jax.random.bits(jax.random.key(step), (128, 128), jnp.uint32)
    return {"w": (bits >> 1).view(jnp.int32), "n": jnp.int32(step)}


def abstract(state):
    return jax.eval_shape(lambda: state)
