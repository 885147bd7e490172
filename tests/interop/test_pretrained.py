"""Pretrained weights into our models. No PyTorch here: the checkpoints are written by our own export."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from armt_jax.config import resolve
from armt_jax.interop import pretrained
from armt_jax.interop.export import export, load_run
from armt_jax.interop.huggingface import backbone_of, fields_of
from armt_jax.interop.pretrained import abstract_shapes, load_model, load_parameters, open_checkpoint
from armt_jax.interop.tensor_files import Tensor, open_tensors, write_safetensors
from armt_jax.memory.associative import ARMT
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, GPTNeoX, Llama
from armt_jax.nn.positions import RotaryScaling
from armt_jax.parallel.mesh import MeshConfig, make_mesh
from armt_jax.parallel.rules import path_string
from armt_jax.training import step as steps
from armt_jax.training.checks import check_init
from armt_jax.training.loop import train

SIZES = dict(vocab_size=31, num_layers=2, width=16, num_heads=4, max_positions=24)
BACKBONES = {
    "gpt2": GPT2(**SIZES),
    "gpt2-untied": GPT2(**SIZES, tie_embeddings=False, mlp_width=24, norm_epsilon=1e-6),
    "neox": GPTNeoX(**SIZES, rotary_pct=0.5, rotary_base=5000.0, mlp_width=20),
    "neox-tied": GPTNeoX(**SIZES, rotary_pct=0.5, tie_embeddings=True, parallel_residual=False),
    "llama": Llama(**SIZES, num_kv_heads=2, mlp_width=20, tie_embeddings=False, rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 16)),
    "llama-wide-heads": Llama(**SIZES, head_width=8, rotary_base=500.0),
}


def made(config: ModelConfig, seed: int = 0) -> MemoryTransformer:
    """A model with nothing left at zero."""
    graphdef, params = nnx.split(MemoryTransformer(config, rngs=nnx.Rngs(seed)))
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(params))))
    return nnx.merge(graphdef, jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), params))


def leaves(model):
    return {path_string(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(nnx.split(model)[1])}


def equal(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


def bare(backbone, **kwargs):
    return made(ModelConfig(backbone, recurrence=RecurrenceConfig(12)), **kwargs)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a bare backbone, by name, and its model."""
    folder, there = tmp_path_factory.mktemp("checkpoints"), {}

    def get(name):
        if name not in there:
            there[name] = bare(BACKBONES[name])
            export(there[name], folder / name, "backbone", check=False)
        return folder / name, there[name]

    return get


@pytest.mark.parametrize("name", BACKBONES)
def test_configs_go_both_ways(name):
    again = backbone_of(json.loads(json.dumps(fields_of(BACKBONES[name]))))
    for field in ("vocab_size", "hidden", "norm_epsilon", "tie_embeddings", "head_size", "max_positions"):
        assert getattr(again, field) == getattr(BACKBONES[name], field)


@pytest.mark.parametrize("name", BACKBONES)
def test_export_then_import_gives_identical_bytes(name, checkpoint):
    path, model = checkpoint(name)
    equal(load_model(path, recurrence=RecurrenceConfig(12)), model)


@pytest.mark.parametrize("memory", [ARMT(3, d_mem=4, positions="table"), RMT(3, positions="table"), RMT(3)])
@pytest.mark.parametrize("format", ["hf", "reference"])
def test_memories_go_both_ways(memory, format, tmp_path):
    model = made(ModelConfig(BACKBONES["gpt2"], memory, RecurrenceConfig(8)))
    export(model, tmp_path / "out", format, check=False)
    again = load_model(tmp_path / "out")
    assert again.config.memory == memory and again.config.recurrence == model.config.recurrence
    equal(again, model)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_import_then_export_gives_the_tensors_back(dtype, checkpoint, tmp_path):
    path, _ = checkpoint("neox")
    first = open_tensors(path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text((path / "config.json").read_text())
    short = {name: first[name].astype(dtype) for name in first}
    write_safetensors(tmp_path / "in" / "model.safetensors", [Tensor(n, a.shape, a.dtype, lambda a=a: a) for n, a in short.items()])
    model = load_model(tmp_path / "in", ARMT(3, d_mem=4), RecurrenceConfig(8))
    export(model, tmp_path / "out", "backbone", dtype=np.dtype(dtype).name, check=False)
    again = open_tensors(tmp_path / "out")
    assert set(again) == set(short)
    assert all(again[name].tobytes() == short[name].tobytes() and again[name].dtype == dtype for name in short)


@pytest.mark.parametrize("memory, first", [(ARMT(3, d_mem=4, positions="table"), 0), (RMT(3, positions="table"), 3)])
def test_a_grown_position_table_has_small_new_rows(memory, first, checkpoint):
    path, model = checkpoint("gpt2")
    table, old = (leaves(m)["positions/table"] for m in (load_model(path, memory, RecurrenceConfig(8)), model))
    assert np.array_equal(table[first : first + 24], old)
    new = np.delete(table, np.s_[first : first + 24], axis=0)
    assert len(new) == first + 3 and 0 < np.abs(new).max() < 0.1


def test_memory_tokens_start_at_the_scale_of_the_imported_embeddings(checkpoint):
    path, model = checkpoint("gpt2")
    found = leaves(load_model(path, ARMT(12, d_mem=4), RecurrenceConfig(8), seed=3))
    std = np.std(leaves(model)["embed/table"])
    assert 0.7 < np.std(found["token_memory/tokens"]) / std < 1.4
    fixed = leaves(load_model(path, ARMT(12, d_mem=4, memory_std=0.001), RecurrenceConfig(8)))
    assert np.std(fixed["token_memory/tokens"]) < 0.002


def test_parameters_land_where_the_mesh_wants_them(checkpoint):
    path, model = checkpoint("llama")
    config = ModelConfig(BACKBONES["llama"], recurrence=RecurrenceConfig(12))
    params = load_parameters(open_checkpoint(path, config), config, steps.abstract_params(config, make_mesh(MeshConfig())))
    specs = {path_string(k): v.sharding.spec for k, v in jax.tree_util.tree_leaves_with_path(params)}
    assert specs["layers/block/attention/query/kernel"] == P("stage", "fsdp", "tensor")
    equal(nnx.merge(nnx.split(model)[0], params), model)


ON_FOUR_DEVICES = """
import sys
import jax
import numpy as np
from flax import nnx
from armt_jax.interop.pretrained import load_model, load_parameters, open_checkpoint
from armt_jax.parallel.mesh import MeshConfig, make_mesh
from armt_jax.training import step as steps

assert jax.device_count() == 4
for path in sys.argv[1:]:
    one = load_model(path)
    want = jax.tree.leaves(nnx.split(one)[1])
    for axes in (dict(fsdp=4), dict(stage=2, fsdp=2), dict(data=4)):
        like = steps.abstract_params(one.config, make_mesh(MeshConfig(**axes)))
        params = load_parameters(open_checkpoint(path, one.config), one.config, like)
        for a, b, c in zip(jax.tree.leaves(params), want, jax.tree.leaves(like)):
            assert a.sharding == c.sharding and a.dtype == np.float32
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    # A parameter that lies on four devices as one piece of memory of the host: a step that works in place leaves the others alone.
    double = jax.jit(lambda tree: jax.tree.map(lambda a: 2 * a, tree), donate_argnums=0)
    for a, b in zip(jax.tree.leaves(double(params)), want):
        assert all(np.array_equal(shard.data, 2 * np.asarray(b)) for shard in a.addressable_shards)
print("the same")
"""


def test_four_devices_get_the_values_of_one(checkpoint):
    paths = [str(checkpoint(name)[0]) for name in ("gpt2", "neox", "llama")]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES, *paths], capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": flags},
    )  # fmt: skip
    assert done.returncode == 0 and "the same" in done.stdout, done.stderr


def test_every_tensor_is_read_once_for_every_parameter_it_holds(checkpoint, monkeypatch):
    path, model = checkpoint("gpt2")
    found = open_checkpoint(path, model.config)
    read = []
    monkeypatch.setattr(type(found.tensors), "__getitem__", lambda self, name: read.append(name) or self.stored[name].read(slice(None)))
    load_parameters(found, model.config, nnx.split(model)[1])
    assert {name: read.count(name) for name in read} == {entry.theirs: len(entry.ours) for entry in found.entries}


def test_what_the_checkpoint_has_is_not_initialised(checkpoint, monkeypatch):
    """All that is new is computed as in a model made from scratch, and nothing else is kept."""
    path, _ = checkpoint("gpt2")
    memory, asked = ARMT(3, d_mem=4, memory_std=0.1), []
    real = pretrained._initial
    monkeypatch.setattr(pretrained, "_initial", lambda config, seed, placed: asked.extend(placed) or real(config, seed, placed))
    got = leaves(load_model(path, memory, RecurrenceConfig(8), seed=5))
    fresh = leaves(MemoryTransformer(ModelConfig(BACKBONES["gpt2"], memory, RecurrenceConfig(8)), rngs=nnx.Rngs(5)))
    assert asked and all("memory" in name for name in asked)
    for name in asked:
        np.testing.assert_allclose(got[name], fresh[name], rtol=1e-5, err_msg=name)  # another program: other rounding


# ---- what does not fit ----


def rewritten(path, target, change):
    """A copy of a checkpoint after `change(arrays, fields)`."""
    arrays, fields = dict(open_tensors(path)), json.loads((path / "config.json").read_text())
    change(arrays, fields)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(fields))
    write_safetensors(target / "model.safetensors", [Tensor(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()])
    return target


def drop(arrays, fields):
    del arrays["transformer.h.1.mlp.c_fc.bias"]


def add(arrays, fields):
    arrays["transformer.h.0.attn.extra"] = np.zeros(3, np.float32)


def cut(arrays, fields):
    arrays["transformer.h.1.attn.c_attn.weight"] = arrays["transformer.h.1.attn.c_attn.weight"][:, :-1]


def whole_numbers(arrays, fields):
    arrays["transformer.ln_f.bias"] = arrays["transformer.ln_f.bias"].astype(np.int32)


def another_head(arrays, fields):
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"] + 1


def another_architecture(arrays, fields):
    fields["model_type"] = "bert"


def another_activation(arrays, fields):
    fields["activation_function"] = "relu"


def no_layers(arrays, fields):
    del fields["n_layer"]


@pytest.mark.parametrize(
    "change, message",
    [
        (drop, "model.safetensors: tensor 'transformer.h.1.mlp.c_fc.bias' is missing"),
        (add, "1 tensors have no place in this GPT2 model, the first is 'transformer.h.0.attn.extra'"),
        (cut, r"tensor 'transformer.h.1.attn.c_attn.weight' has shape \[16, 47\], .* needs \[16, 48\]"),
        (whole_numbers, "tensor 'transformer.ln_f.bias' is of int32"),
        (another_head, "tensor 'lm_head.weight' differs from the token table"),
        (another_architecture, "model_type = 'bert' is another architecture"),
        (another_activation, "activation_function = 'relu' of a gpt2 checkpoint is not supported"),
        (no_layers, "a gpt2 config.json has no field 'n_layer'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(change, message, checkpoint, tmp_path):
    path = rewritten(checkpoint("gpt2")[0], tmp_path / "bad", change)
    with pytest.raises(ValueError, match=message):
        load_model(path, recurrence=RecurrenceConfig(8))


def test_names_without_their_prefix_buffers_and_a_repeated_head_are_read(checkpoint, tmp_path):
    path, model = checkpoint("gpt2")

    def change(arrays, fields):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
        arrays["lm_head.weight"] = arrays["wte.weight"]

    equal(load_model(rewritten(path, tmp_path / "bare", change), recurrence=RecurrenceConfig(12)), model)


def config_with(**backbone):
    return ModelConfig(GPT2(**SIZES | backbone), recurrence=RecurrenceConfig(8))


@pytest.mark.parametrize(
    "config, message",
    [
        (config_with(num_layers=3), "has num_layers = 2, and backbone.num_layers = 3"),
        (config_with(mlp_width=32), "has mlp_width = 64, and backbone.mlp_width = 32"),
        (ModelConfig(BACKBONES["llama"], recurrence=RecurrenceConfig(8)), "is a GPT2, and the config's backbone a Llama"),
    ],
)
def test_a_config_of_another_size_is_refused(config, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        open_checkpoint(checkpoint("gpt2")[0], config)


def test_folders_that_are_none(tmp_path):
    config = config_with()
    with pytest.raises(ValueError, match="absent' does not exist"):
        open_checkpoint(tmp_path / "absent", config)
    write_safetensors(tmp_path / "model.safetensors", [])
    with pytest.raises(ValueError, match="config.json cannot be read"):
        open_checkpoint(tmp_path, config)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json says no model_type"):
        open_checkpoint(tmp_path, config)


# ---- training from a checkpoint ----


def run_of(path, **changes):
    return dict(
        backbone=dict(name="gpt2", vocab_size=31, num_layers=2, width=16, num_heads=4, max_positions=24),
        memory=dict(name="armt", num_memory_tokens=2, d_mem=4, positions="table"), init=dict(path=str(path)),
        task=dict(name="associative_retrieval", mode="remember", pairs=2, num_keys=4),
        train=dict(
            batch_size=4, log_every=1, validate_every=1, validation_batches=1, stages=[dict(steps=1)],
            optimizer=dict(learning_rate=1e-30),
        ),
        evaluation=dict(batch_size=4, batches=1), mesh={}, seed=0,
    ) | changes  # fmt: skip


def test_training_starts_from_the_checkpoint_and_the_run_is_exported(tmp_path):
    backbone = GPT2(**SIZES | dict(vocab_size=128))
    model = bare(backbone)
    export(model, tmp_path / "start", "backbone", check=False)
    raw = run_of(tmp_path / "start", backbone=dict(name="gpt2", **SIZES | dict(vocab_size=128)))
    train(resolve(raw), raw, tmp_path / "run")
    trained, origin = load_run(tmp_path / "run")
    export(trained, tmp_path / "end", "backbone", check=False, origin=origin)
    start, end = open_tensors(tmp_path / "start"), open_tensors(tmp_path / "end")
    assert all(np.allclose(start[name], end[name], atol=1e-20) for name in start) and set(start) == set(end)
    card = (tmp_path / "end" / "README.md").read_text()
    assert "Step 1 of the run `run`" in card and "associative_retrieval" in card and "exact_match" in card
    assert not list(tmp_path.glob(".*partial*"))


def test_a_checkpoint_that_does_not_fit_is_refused_before_training(checkpoint, tmp_path):
    path, _ = checkpoint("gpt2")
    raw = run_of(path, backbone=dict(name="gpt2", **SIZES | dict(vocab_size=128)))
    with pytest.raises(ValueError, match="has vocab_size = 31, and backbone.vocab_size = 128"):
        check_init(resolve(raw))
    with pytest.raises(ValueError, match="unknown key init.folder"):
        resolve(run_of(path, init=dict(folder="x")))


# ---- what cannot be exported ----


def test_an_existing_folder_is_refused_and_left_alone(checkpoint, tmp_path):
    path, model = checkpoint("gpt2")
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    with pytest.raises(ValueError, match="exists"):
        export(model, path, "hf", check=False)
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before
    with pytest.raises(ValueError, match="no existing folder"):
        export(model, tmp_path / "no" / "where", "hf", check=False)


@pytest.mark.parametrize(
    "memory, format, message",
    [
        (ARMT(2, d_mem=4, key_norm="l2"), "reference", "the published code computes memory.num_heads = 1, key_norm = 'none'"),
        (None, "reference", "the published code has no memory"),
        (ARMT(2, d_mem=4), "onnx", "--format=onnx must be one of"),
    ],
)
def test_a_model_without_such_a_form_is_refused(memory, format, message, tmp_path):
    config = ModelConfig(BACKBONES["llama"], **({} if memory is None else dict(memory=memory)), recurrence=RecurrenceConfig(8))
    with pytest.raises(ValueError, match=message):
        export(made(config), tmp_path / "out", format, check=False)
    assert not list(tmp_path.iterdir())


def test_every_parameter_is_exported_once():
    config = ModelConfig(BACKBONES["gpt2"], ARMT(2, d_mem=4), RecurrenceConfig(8))
    shapes = abstract_shapes(config)
    assert sum(int(np.prod(s)) for s in shapes.values()) == sum(a.size for a in leaves(made(config)).values())


def test_a_failing_write_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    _, model = checkpoint("gpt2")
    monkeypatch.setattr("armt_jax.interop.export.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(model, tmp_path / "out", "hf", check=False)
    assert not list(tmp_path.iterdir())


def test_logits_survive_the_way_through_the_file(checkpoint):
    path, model = checkpoint("llama")
    ids = jnp.arange(20).reshape(2, 10)
    assert np.array_equal(load_model(path, recurrence=RecurrenceConfig(12))(ids)[0], model(ids)[0])
