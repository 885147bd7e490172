"""Checksums see every bit, every position and every kind of leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.checksums import checksums


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint16", "int8", "float8_e4m3fn"])
def test_every_flipped_bit_changes_the_checksum(dtype):
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 5)) * 50).astype(jnp.dtype(dtype))
    variants = [x]
    for bit in range(x.nbytes * 8):
        flipped = bytearray(x.tobytes())
        flipped[bit // 8] ^= 1 << bit % 8
        variants.append(np.frombuffer(bytes(flipped), x.dtype).reshape(x.shape))
    sums = checksums({str(i): v for i, v in enumerate(variants)})
    assert sum(value == sums["0"] for value in sums.values()) == 1


def test_checksum_sees_positions_and_all_kinds_of_leaves():
    x = jnp.arange(6.0).reshape(2, 3)
    keys = jax.random.split(jax.random.key(0), 2)
    sums = checksums(
        {
            "x": x,
            "np": np.asarray(x),
            "swapped": x[::-1],
            "keys": keys,
            "sekys": keys[::-1],
            "t": jnp.bool_(1),
            "f": jnp.bool_(0),
        }
    )
    assert sums["x"] == sums["np"] != sums["swapped"]
    assert sums["keys"] != sums["sekys"] and sums["t"] != sums["f"]
    words = np.asarray(x).view(np.uint32).ravel()
    assert sums["x"] == int((words * (2 * np.arange(6, dtype=np.uint32) + 1)).sum(dtype=np.uint32))
