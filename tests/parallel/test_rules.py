"""The sharding rules: every parameter path has one, and what does not fit is an error. One device is enough here."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from armt_jax.parallel.mesh import AXES
from armt_jax.parallel.rules import RULES, path_string, shardings, specs

L, D, F, N, V, R, M = 2, 8, 32, 16, 64, 24, 5

EXPECTED = {
    "embed/table": ((V, D), P("tensor", "fsdp")),
    "positions/table": ((R, D), P(None, "fsdp")),
    "token_memory/tokens": ((M, D), P(None, "fsdp")),
    "final_norm/scale": ((D,), P()),
    "final_norm/bias": ((D,), P()),
    "head/kernel": ((D, V), P("fsdp", "tensor")),
    "embed/tables/1": ((V, D), P("tensor", "fsdp")),
    "embed/projections/0": ((4, D), P(None, "fsdp")),
    "head/tables/0": ((V, D), P("tensor", "fsdp")),
    "head/projections/1": ((4, D), P(None, "fsdp")),
    "head/biases/2": ((V,), P()),
    "head/cluster_kernel": ((3, D), P()),
    "head/cluster_bias": ((3,), P()),
    "layers/block/attention/distance/kernel": ((L, D, N), P("stage", "fsdp", "tensor")),
    "layers/block/attention/content_bias": ((N,), P()),
    "layers/block/attention/position_bias": ((L, N), P()),
    "layers/block/attention/output/kernel": ((L, N, D), P("stage", "tensor", "fsdp")),
    "layers/block/attention/output/bias": ((L, D), P("stage")),
    "layers/block/mlp/down/kernel": ((L, F, D), P("stage", "tensor", "fsdp")),
    "layers/block/mlp/down/bias": ((L, D), P("stage")),
    "layers/memory/query/kernel": ((L, D, 6), P("stage", "fsdp")),
    "layers/memory/key/kernel": ((L, D, 6), P("stage", "fsdp")),
    "layers/memory/value/kernel": ((L, D, D), P("stage", "fsdp")),
    "layers/memory/beta/kernel": ((L, D, 1), P("stage", "fsdp")),
    "layers/memory/beta/bias": ((L, 1), P("stage")),
    "layers/memory/tokens": ((L, M, D), P("stage", None, "fsdp")),
    "layers/memory/gates/input/kernel": ((L, D, D), P("stage", "fsdp")),
    "layers/memory/strength": ((L,), P("stage")),
}
for norm in ("norm_attention", "norm_mlp"):
    EXPECTED |= {f"layers/block/{norm}/{part}": ((L, D), P("stage")) for part in ("scale", "bias")}
for group, names, width in (("attention", ("query", "key", "value"), N), ("mlp", ("up", "gate"), F)):
    for name in names:
        EXPECTED[f"layers/block/{group}/{name}/kernel"] = ((L, D, width), P("stage", "fsdp", "tensor"))
        EXPECTED[f"layers/block/{group}/{name}/bias"] = ((L, width), P("stage"))


def tree_of(shapes):
    tree = {}
    for path, shape in shapes.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(shape, np.float32)
    return tree


def abstract_mesh(**sizes):
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def test_every_path_has_the_expected_spec():
    tree = tree_of({path: shape for path, (shape, _) in EXPECTED.items()})
    found = {
        path_string(path): spec
        for path, spec in jax.tree_util.tree_flatten_with_path(specs(tree), is_leaf=lambda node: isinstance(node, P))[0]
    }
    assert found == {path: spec for path, (_, spec) in EXPECTED.items()}


def test_everything_splits_over_every_axis_at_once():
    tree = tree_of({path: shape for path, (shape, _) in EXPECTED.items()})
    placed = shardings(tree, abstract_mesh(data=2, stage=2, fsdp=4, tensor=8))
    shapes = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), tree, placed)
    assert shapes["layers"]["block"]["mlp"]["down"]["kernel"] == (L // 2, F // 8, D // 4)
    assert shapes["embed"]["table"] == (V // 8, D // 4)
    assert shapes["final_norm"]["scale"] == (D,)


def test_paths_of_nnx_states_and_optimizer_states():
    state = nnx.State({"value": nnx.Param(np.ones(2)), "layers": {0: {"value": {"kernel": nnx.Param(np.ones(2))}}}})
    paths = [path_string(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert sorted(paths) == ["layers/0/value/kernel", "value"]
    moments = optax.scale_by_adam().init(state)
    paths = [path_string(path) for path, _ in jax.tree_util.tree_flatten_with_path(moments)[0]]
    assert set(paths) == {"count", "mu/value", "mu/layers/0/value/kernel", "nu/value", "nu/layers/0/value/kernel"}


def test_dictionary_key_named_value_is_kept():
    ((path, _),) = jax.tree_util.tree_flatten_with_path({"memory": {"value": np.ones(2)}})[0]
    assert path_string(path) == "memory/value"


def test_unknown_key_type_is_an_error():
    with pytest.raises(TypeError, match="key 3.5 of type float"):
        path_string((3.5,))


def test_specs_and_shardings_keep_the_structure_of_an_nnx_state():
    state = nnx.State({"head": {"kernel": nnx.Param(np.ones((D, V)))}})
    assert specs(state)["head"]["kernel"].get_raw_value() == P("fsdp", "tensor")
    placed = shardings(state, abstract_mesh())
    assert jax.tree.structure(placed) == jax.tree.structure(state)


def test_first_match_wins_and_matches_whole_paths():
    tree = tree_of({"head/kernel": (D, V)})
    assert specs(tree, ((r"head/.*", P()), *RULES))["head"]["kernel"] == P()
    with pytest.raises(ValueError, match="'head/kernel'.*no sharding rule"):
        specs(tree, ((r"kernel", P()), (r"head", P())))


def test_unmatched_path_is_an_error():
    with pytest.raises(ValueError, match=r"'layers/extra/kernel' of shape \(2, 8\).*add a rule"):
        specs(tree_of({"head/kernel": (D, V), "layers/extra/kernel": (L, D)}))


def test_spec_longer_than_the_rank_is_an_error():
    with pytest.raises(ValueError, match="'head/kernel' of shape .8,.*names 2 dimensions, the parameter has 1"):
        specs(tree_of({"head/kernel": (D,)}))


def test_indivisible_dimension_is_an_error():
    message = r"'embed/table' of shape \(63, 8\): dimension 0 of size 63 .*'tensor' of size 2; .*pad"
    with pytest.raises(ValueError, match=message):
        shardings(tree_of({"embed/table": (63, D)}), abstract_mesh(tensor=2))
    with pytest.raises(ValueError, match="'fsdp' of size 2 \\* 'tensor' of size 4"):
        shardings(tree_of({"a": (4,)}), abstract_mesh(fsdp=2, tensor=4), ((r"a", P(("fsdp", "tensor"))),))


def test_axis_that_the_mesh_lacks_is_an_error():
    with pytest.raises(ValueError, match="'a': .*names axis 'model'; the mesh has only data, stage, fsdp, tensor"):
        shardings(tree_of({"a": (4,)}), abstract_mesh(), ((r"a", P("model")),))
