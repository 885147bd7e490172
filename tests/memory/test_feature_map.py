"""The feature map of ARMT's keys and queries: numbers worked out by hand, and what every value of it has."""

import jax
import jax.numpy as jnp
import numpy as np

from armt_jax.memory.associative import dpfp, l2_normalise


def test_dpfp_of_two_features_by_hand():
    # u = [relu(1), relu(-2), relu(-1), relu(2)] = [1, 0, 0, 2]; rolled by 1 [2, 1, 0, 0], by 2 [0, 2, 1, 0], by 3 [0, 0, 2, 1].
    np.testing.assert_array_equal(dpfp(jnp.array([1.0, -2.0]), 1), [2, 0, 0, 0])
    np.testing.assert_array_equal(dpfp(jnp.array([1.0, -2.0]), 3), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2])


def test_dpfp_of_three_features_by_hand():
    # u = [3, 0, 2, 0, 1, 0]; rolled by 1: [0, 3, 0, 2, 0, 1], by 2: [1, 0, 3, 0, 2, 0].
    np.testing.assert_array_equal(dpfp(jnp.array([3.0, -1.0, 2.0]), 2), [0, 0, 0, 0, 0, 0, 3, 0, 6, 0, 2, 0])


def test_dpfp_is_non_negative_and_of_degree_two():
    x = jax.random.normal(jax.random.key(0), (5, 4))
    assert dpfp(x, 3).shape == (5, 24)
    assert float(dpfp(x, 3).min()) >= 0
    np.testing.assert_allclose(dpfp(3 * x, 3), 9 * dpfp(x, 3), rtol=1e-6)
    assert float(jnp.abs(dpfp(x, 3)).max()) > 0.1


def test_l2_normalise():
    x = jax.random.normal(jax.random.key(1), (4, 6))
    np.testing.assert_allclose(l2_normalise(x), np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True), rtol=1e-6)
    zero = jnp.zeros(6)
    np.testing.assert_array_equal(l2_normalise(zero), zero)
    np.testing.assert_array_equal(jax.grad(lambda v: l2_normalise(v).sum())(zero), zero)
