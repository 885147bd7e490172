"""Which mesh axis holds which dimension of each parameter: ordered, strict rules on parameter paths.

A rule is a pair (regular expression, PartitionSpec). The expression must match the whole path
('layers/block/mlp/up/kernel'); the first rule that matches wins; a path that no rule matches is an error, so that no
new parameter is ever silently replicated.

Axes in `RULES`: `fsdp` on the model width, `tensor` on heads, MLP width and vocabulary, `stage` on the layer axis that
leads everything under 'layers/'. Norms and biases are split by stage only. No parameter is split over `data`.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

Rule = tuple[str, P]

RULES: tuple[Rule, ...] = (
    (r"embed/table", P("tensor", "fsdp")),
    (r"positions/table", P(None, "fsdp")),
    (r"token_memory/tokens", P(None, "fsdp")),
    (r"final_norm/(scale|bias)", P()),
    (r"head/kernel", P("fsdp", "tensor")),
    (r"(embed|head)/tables/\d+", P("tensor", "fsdp")),
    (r"(embed|head)/projections/\d+", P(None, "fsdp")),
    (r"head/(biases/\d+|cluster_kernel|cluster_bias)", P()),
    (r"layers/block/attention/(query|key|value)/kernel", P("stage", "fsdp", "tensor")),
    (r"layers/block/attention/distance/kernel", P("stage", "fsdp", "tensor")),
    (r"layers/block/attention/(content|position)_bias", P()),
    (r"layers/block/attention/output/kernel", P("stage", "tensor", "fsdp")),
    (r"layers/block/mlp/(up|gate)/kernel", P("stage", "fsdp", "tensor")),
    (r"layers/block/mlp/down/kernel", P("stage", "tensor", "fsdp")),
    (r"layers/block/.+/(scale|bias)", P("stage")),
    (r"layers/memory/(.+/)?kernel", P("stage", "fsdp")),
    (r"layers/memory/(.+/)?tokens", P("stage", None, "fsdp")),
    (r"layers/memory/.+", P("stage")),
)


def path_string(key_path: Sequence[Any]) -> str:
    """'a/b/c' for a key path of `jax.tree_util`. The '.value' with which a Flax Variable ends a path is left out."""
    components = []
    for key in key_path:
        match key:
            case DictKey():
                components.append(str(key.key))
            case FlattenedIndexKey():
                components.append(str(key.key))
            case GetAttrKey():
                components.append(key.name)
            case SequenceKey():
                components.append(str(key.idx))
            case _:
                raise TypeError(
                    f"key {key!r} of type {type(key).__name__} in a tree path: known are DictKey, GetAttrKey, "
                    "SequenceKey and FlattenedIndexKey; register the container with one of these"
                )
    if len(components) > 1 and isinstance(key_path[-1], GetAttrKey) and components[-1] == "value":
        components.pop()
    return "/".join(components)


def _first_match(path: str, rules: Sequence[Rule]) -> P | None:
    return next((spec for pattern, spec in rules if re.fullmatch(pattern, path)), None)


def specs(tree: Any, rules: Sequence[Rule] = RULES) -> Any:
    """Tree of PartitionSpecs for a tree of arrays or `jax.ShapeDtypeStruct`s."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    found = []
    for key_path, leaf in leaves:
        path = path_string(key_path)
        spec = _first_match(path, rules)
        if spec is None:
            raise ValueError(f"parameter {path!r} of shape {leaf.shape}: no sharding rule matches it; add a rule for this path")
        if len(spec) > leaf.ndim:
            raise ValueError(
                f"parameter {path!r} of shape {leaf.shape}: its rule {spec} names {len(spec)} dimensions, the "
                f"parameter has {leaf.ndim}; add a rule with a shorter spec ahead of it"
            )
        found.append(spec)
    return jax.tree_util.tree_unflatten(treedef, found)


def _checked_sharding(path: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> NamedSharding:
    for dimension, entry in enumerate(spec):
        axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for axis in axes:
            if axis not in mesh.shape:
                known = ", ".join(mesh.axis_names)
                raise ValueError(f"parameter {path!r}: its rule {spec} names axis {axis!r}; the mesh has only {known}")
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape[dimension] % parts:
            sizes = " * ".join(f"{axis!r} of size {mesh.shape[axis]}" for axis in axes)
            raise ValueError(
                f"parameter {path!r} of shape {shape}: dimension {dimension} of size {shape[dimension]} does not "
                f"divide over mesh axis {sizes}; shrink the axis, pad the dimension, or give the path a rule of its own"
            )
    return NamedSharding(mesh, spec)


def shardings(tree: Any, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Any:
    """Tree of NamedShardings for a tree of arrays or `jax.ShapeDtypeStruct`s; every split must come out even."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    leaf_specs = jax.tree.leaves(specs(tree, rules), is_leaf=lambda node: isinstance(node, P))
    found = [
        _checked_sharding(path_string(key_path), leaf.shape, spec, mesh) for (key_path, leaf), spec in zip(leaves, leaf_specs, strict=True)
    ]
    return jax.tree_util.tree_unflatten(treedef, found)


def shardings_like(tree: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """Shardings for a tree with copies of the parameters: an optimizer state, accumulated gradients, averaged weights.

    A leaf whose path ends with the path of a parameter (the longest such) and that has its shape is placed like it;
    every other leaf (a count, a factored moment) is replicated.
    """
    param_leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    placed = {
        path_string(key_path): (leaf.shape, sharding)
        for (key_path, leaf), sharding in zip(param_leaves, jax.tree.leaves(param_shardings), strict=True)
    }
    replicated = NamedSharding(mesh, P())

    def place(key_path, leaf):
        components = path_string(key_path).split("/")
        suffixes = ("/".join(components[start:]) for start in range(len(components)))
        suffix = next((suffix for suffix in suffixes if suffix in placed), None)
        if suffix is None:
            return replicated
        shape, sharding = placed[suffix]
        return sharding if leaf.shape == shape else replicated

    return jax.tree_util.tree_map_with_path(place, tree)
