"""Products with an associative matrix: equal to the plain ones, however they are made, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.memory.products import FEW, batched_product, outer_products

B, H, K, D = 2, 3, 6, 5


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain_outer(a, b):
    return jnp.einsum("bhni,bhnj->bhij", a, b)


def plain_product(a, b):
    return jnp.einsum("bhij,bhjk->bhik", a, b)


def value_and_gradients(f, *operands):
    value, pullback = jax.vjp(f, *operands)
    return value, pullback(normal(7, *value.shape))


@pytest.mark.parametrize("count", [1, FEW, FEW + 1])
@pytest.mark.parametrize("layers", [None, 4])
def test_outer_products_are_those_of_einsum(count, layers):
    shape = (B, H) if layers is None else (layers, B, H)
    a, b = normal(0, *shape, count, K), normal(1, *shape, count, D)
    got, want = (value_and_gradients(jax.jit(f if layers is None else jax.vmap(f)), a, b) for f in (outer_products, plain_outer))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1])
@pytest.mark.parametrize("inner", [2, 12])
def test_batched_product_has_the_gradients_of_einsum(rows, inner):
    a, b = normal(0, B, H, rows, inner), normal(1, B, H, inner, D)
    got, want = (value_and_gradients(jax.jit(f), a, b) for f in (batched_product, plain_product))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5), got, want)


def lowered(platform, f, *shapes):
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(f).trace(*operands).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("layers", [(), (4,)])
@pytest.mark.parametrize("platform, count, products", [("cpu", FEW, 2), ("cpu", FEW + 1, 1), ("tpu", FEW, 1), ("cuda", FEW, 1)])
def test_they_are_written_out_on_a_cpu_alone_and_where_they_are_few(platform, count, products, layers):
    """Written out, both factors pass through a product; elsewhere there is the one product. Under vmap, too, as on diagonals."""
    f = jax.vmap(outer_products) if layers else outer_products
    text = lowered(platform, f, (*layers, B, H, count, K), (*layers, B, H, count, D))
    assert text.count("dot_general") == products
    assert text.count("stablehlo.multiply") == (count if products == 2 else 0)


@pytest.mark.parametrize("platform, products", [("cpu", 3), ("tpu", 2), ("cuda", 2)])
def test_the_matrix_gradient_of_a_product_is_such_a_sum(platform, products):
    """On a CPU two products with the identity stand for one of the two."""
    f = lambda a, b, d: jax.vjp(batched_product, a, b)[1](d)
    text = lowered(platform, f, (B, H, 2, K), (B, H, K, D), (B, H, 2, D))
    assert text.count("dot_general") == products  # the value itself is not asked for
