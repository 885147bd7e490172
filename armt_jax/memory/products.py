"""Products with an associative matrix [B, H, K, d], with the transposes that are fast for one."""

import jax
import jax.numpy as jnp

# So many outer products at most are written out; 16 are no faster than a product (docs/results/train_step.md).
FEW = 8


def dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Sums over a_axis of a and b_axis of b (2 or 3), both [B, H, ., .]: [B, H, the other axis of a, the other axis of b]."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0, 1), (0, 1))))


@jax.custom_vjp
def batched_product(a_BxHxIxJ: jax.Array, b_BxHxJxK: jax.Array) -> jax.Array:
    """a b, [B, H, I, K]. The transpose is written out because autodiff makes b's cotangent turned over and then turns it back: for an
    associative matrix that costs more than the product. Reverse mode only."""
    return dot(a_BxHxIxJ, b_BxHxJxK, 3, 2)


def _product_forward(a, b):
    return dot(a, b, 3, 2), (a, b)


def _product_backward(operands, d_product):
    a, b = operands
    # XLA's CPU product is twice as fast with the large operand first.
    d_a = dot(d_product, b, 3, 3) if a.shape[2] > a.shape[3] else jnp.swapaxes(dot(b, d_product, 3, 3), 2, 3)
    return d_a, _outer_products(a, d_product)


batched_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def outer_products(a_BxHxNxI: jax.Array, b_BxHxNxJ: jax.Array) -> jax.Array:
    """sum_n a_n b_n^T, [B, H, I, J]. A few of them are written out on a CPU: what the sum is added to is then gone through once for both,
    where a product is an array as large as it, made first and added then. Reverse mode only."""
    return _outer_products(a_BxHxNxI, b_BxHxNxJ)


def _outer_products(a, b):
    if a.shape[2] > FEW:
        return dot(a, b, 2, 2)
    return jax.lax.platform_dependent(a, b, cpu=_written_out, default=lambda a, b: dot(a, b, 2, 2))


def _written_out(a, b):
    # As results of a product the factors stand in memory: else XLA computes them anew for every entry of the sum.
    identity = jnp.broadcast_to(jnp.eye(a.shape[2], dtype=a.dtype), (*a.shape[:2], a.shape[2], a.shape[2]))
    a, b = dot(identity, a, 3, 2), dot(identity, b, 3, 2)
    return sum(a[:, :, n, :, None] * b[:, :, n, None, :] for n in range(a.shape[2]))


def _outer_backward(operands, d_sum):
    a, b = operands
    return jnp.swapaxes(dot(d_sum, b, 3, 3), 2, 3), dot(a, d_sum, 3, 2)


outer_products.defvjp(lambda a, b: (_outer_products(a, b), (a, b)), _outer_backward)
