"""Tokens of one segment with like keys share a write: as many of them as there are write what one would, and none overshoots."""

import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.memory.associative import ARMT
from tests.memory.matrix import B, D, Override, memory, normal, recalled, saturate, update_of, written

SHARED = dict(key_norm="l2", like_writes="share", read_floor=1.0)


def alike(x_Bx1xD, count):
    return jnp.broadcast_to(x_Bx1xD, (B, count, D))


@pytest.mark.parametrize("gate", ["sigmoid", "hard"])
@pytest.mark.parametrize("first, later", [(1, 5), (5, 1), (4, 4)])
def test_the_newest_value_displaces_the_old_one_however_many_wrote_either(first, later, gate):
    m = saturate(memory(gate=gate, **SHARED))
    x, old, new = normal(1, B, 1, D), normal(2, B, 1, D), normal(3, B, 1, D)
    m.value = Override(old)
    state = written(m, alike(x, first), m.init_state(B))
    np.testing.assert_allclose(recalled(m, x, state), old, rtol=1e-3, atol=1e-3)
    m.value = Override(new)
    state = written(m, alike(x, later), state)
    np.testing.assert_allclose(recalled(m, x, state), new, rtol=1e-3, atol=1e-3)
    k = m._features(m.key(x))[:, :, 0]
    np.testing.assert_allclose(jnp.sum(state.z_BxHxK * k, axis=-1), 1, rtol=1e-4)


def test_gates_of_like_tokens_add_up_to_one_at_most():
    """Three gates of 0.2 are one of 0.6, three of 0.5 are one that is open."""
    x = normal(4, B, 1, D)
    for gates, whole in (((0.2, 0.2, 0.2), 0.6), ((0.5, 0.5, 0.5), 1.0), ((0.9, 0.0, 0.0), 0.9)):
        m = memory(gate="hard", **SHARED)
        m.beta = lambda x, gates=gates: jnp.broadcast_to(6 * (jnp.array(gates)[:, None] - 0.5), (*x.shape[:2], 1))
        update = update_of(m, alike(x, 3), m.init_state(B))
        np.testing.assert_allclose(update.value_BxHxMxd[:, 0].sum(1), whole * m.value(x)[:, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(update.mass_BxHxK[:, 0], whole * m._features(m.key(x))[:, 0, 0], rtol=1e-4, atol=1e-6)


def test_tokens_with_keys_of_their_own_write_as_they_would_alone():
    own, added = (saturate(memory(tokens=2, d_mem=64, key_norm="l2", like_writes=like)) for like in ("share", "add"))
    # Of 64 dimensions the two use other halves, far apart: no feature of DPFP is in both.
    x = jnp.eye(D)[None, :2].repeat(B, 0)
    key = np.zeros((D, 64))
    key[0, 2:20], key[1, 34:52] = np.linspace(0.5, 1, 18), np.linspace(1, 0.5, 18)
    states = []
    for m in (own, added):
        m.key.kernel[...] = jnp.asarray(key, jnp.float32)
        states.append(written(m, x, m.init_state(B)))
    for one, other in zip(*states, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("like, bounded", [("share", True), ("add", False)])
def test_no_number_of_tokens_overshoots(like, bounded):
    """Eight tokens, nearly alike, write the same values in every segment."""
    m = saturate(memory(tokens=8, **SHARED | dict(like_writes=like)))
    # As a memory does that one token wrote first.
    x = alike(normal(5, B, 1, D), 8) + 0.05 * normal(6, B, 8, D)
    state = written(m, x[:, :1], m.init_state(B))
    sizes = []
    for _ in range(60):
        state = written(m, x, state)
        sizes.append(float(jnp.max(jnp.abs(state.A_BxHxKxd))))
    assert np.all(np.isfinite(sizes)) or not bounded
    assert (sizes[-1] < 5 * sizes[0]) == bounded, sizes


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_on_eigenvalues(seed):
    """Of D G, for keys and gates at random."""
    m = memory(tokens=16, d_mem=4, **SHARED)
    k = m._features(m.key(normal(seed, B, 16, D)))
    gate = jnp.abs(normal(seed + 10, B, 1, 16, 1)) % 1
    share = m._share(k, gate)
    G = np.einsum("bhik,bhjk->bhij", k, k)
    largest = np.abs(np.linalg.eigvals(np.asarray(gate * share) * G)).max(-1)
    assert np.all(largest <= 1 + 1e-5) and np.all(largest > 0.3)
    assert np.all(np.abs(np.linalg.eigvals(np.asarray(gate) * G)).max(-1) > 1)


def test_mistakes():
    with pytest.raises(ValueError, match="memory.like_writes = 'mean' must be one of"):
        ARMT(like_writes="mean")
    with pytest.raises(ValueError, match="needs memory.key_norm = 'l2'"):
        ARMT(like_writes="share")
