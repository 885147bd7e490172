"""Where activations and memory state lie on a device mesh. The mesh is the one in force (`on_mesh`); without one nothing is said.

Rows of a batch over `data` and `fsdp`, layers over `stage`, vocabulary over `tensor`; every other dimension is whole on its device. What
parameters do is in `armt_jax.parallel.rules`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

STAGE = "stage"
Axes = tuple[str, ...]
ROWS: Axes = ("data", "fsdp")
LAYERS: Axes = (STAGE,)
VOCABULARY: Axes = ("tensor",)
WHOLE: Axes = ()


def on_mesh(mesh: Mesh) -> Callable[[Callable], Callable]:
    """on_mesh(mesh)(function): the function, placed on this mesh. To be called inside jit."""

    def placed(function):
        @functools.wraps(function)
        def call(*args):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args)

        return call

    return placed


def constrain(x: jax.Array, *dimensions: Axes) -> jax.Array:
    """x with its first dimensions split over the mesh axes given for each, the others whole.

    A dimension that does not divide is left to the compiler. Axes of size 1, and those that a `shard_map` around handles, say nothing.
    """
    mesh, free = jax.sharding.get_abstract_mesh(), _free_axes()
    if not free:
        return x

    def entry(size: int, axes: Axes):
        held = tuple(axis for axis in axes if axis in free)
        return P.UNCONSTRAINED if size % math.prod(mesh.shape[axis] for axis in held) else held or None

    return jax.lax.with_sharding_constraint(x, P(*(entry(size, axes) for size, axes in zip(x.shape, dimensions))))


def _free_axes() -> set[str]:
    mesh = jax.sharding.get_abstract_mesh()
    return {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto and mesh.shape[name] > 1}


def constrain_state(state: Any) -> Any:
    """Memory state of the layers, leaves [L, B, ...].

    Its features are not split over `tensor`: with A so split, XLA (jax 0.10.2) computes gradients that are wrong by a third on meshes of
    `data`, `fsdp` and `tensor`, where the forward pass is right.
    """
    return jax.tree.map(lambda leaf: constrain(leaf, LAYERS, ROWS), state)


def pass_up(new: jax.Array, hidden_LxBxTxD: jax.Array) -> jax.Array:
    """[new, hidden[0], ..., hidden[L-2]]: the inputs of the layers, from the input of the first and the outputs of all.

    Written out for layers on several devices, because the partitioner makes an all-to-all of a concatenation, and two exchanges of a roll:
    each device hands the output of its last layer to the next one.
    """
    if STAGE not in _free_axes():
        return jnp.concatenate([new[None], hidden_LxBxTxD[:-1]])
    stages = jax.sharding.get_abstract_mesh().shape[STAGE]

    def shift(stage, new, hidden):
        received = jax.lax.ppermute(hidden[-1:], STAGE, [(i, i + 1) for i in range(stages - 1)])
        return jnp.concatenate([jnp.where(stage == 0, new[None], received), hidden[:-1]])

    specs = dict(in_specs=(P(STAGE), P(), P(STAGE)), out_specs=P(STAGE))
    return jax.shard_map(shift, **specs, axis_names={STAGE}, check_vma=False)(jnp.arange(stages), new, hidden_LxBxTxD)


def topmost(hidden_LxBxTxD: jax.Array) -> jax.Array:
    """hidden[-1] on every device: the last stage hands it over."""
    if STAGE not in _free_axes():
        return hidden_LxBxTxD[-1]
    return _hand_over(hidden_LxBxTxD.shape[0], hidden_LxBxTxD)


def _by_stage(function: Callable, arguments: tuple, in_specs: tuple, out_specs: P):
    """function(whether this is the last stage, *arguments) on each stage's part of the layers."""
    stages = jax.sharding.get_abstract_mesh().shape[STAGE]
    split = jax.shard_map(
        lambda stage, *parts: function(stage[0] == stages - 1, *parts), in_specs=(P(STAGE), *in_specs), out_specs=out_specs,
        axis_names={STAGE}, check_vma=False,
    )  # fmt: skip
    return split(jnp.arange(stages), *arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hand_over(layers: int, hidden_LxBxTxD: jax.Array) -> jax.Array:
    """With its transpose written out, which needs no exchange; that of a sum over devices would be another sum."""
    take = lambda last, hidden: jax.lax.psum(jnp.where(last, hidden[-1], 0), STAGE)
    return _by_stage(take, (hidden_LxBxTxD,), (P(STAGE),), P())


def _hand_over_forward(layers: int, hidden_LxBxTxD: jax.Array):
    return _hand_over(layers, hidden_LxBxTxD), None


def _hand_over_backward(layers: int, _, d_BxTxD: jax.Array):
    held = layers // jax.sharding.get_abstract_mesh().shape[STAGE]
    put = lambda last, d: jnp.pad(jnp.where(last, d, 0)[None], ((held - 1, 0), *[(0, 0)] * d.ndim))
    return (_by_stage(put, (d_BxTxD,), (P(),), P(STAGE)),)


_hand_over.defvjp(_hand_over_forward, _hand_over_backward)
