"""Backbones: published sizes, refused configs, initial scales, block arrangements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import BACKBONES, GPT2, PRESETS, BackboneConfig, GPTNeoX, Llama, TransformerXL
from armt_jax.nn.layers import Table, dropout, layer_norm, rms_norm, row_keys
from armt_jax.parallel.rules import path_string

# Hugging Face's counts; that of the tiny one follows from its definition (V = 128, untied head).
SIZES = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-3.2-1b": 1_235_814_400,
    # The published code's counts.
    "transformer-xl-wt103-base": 151_107_538,
    "transformer-xl-enwik8-base": 41_055_436,
    "neox-tiny-ar": 4 * (4 * 128 * 128 + 4 * 128 + 2 * 128 * 128 + 2 * 128 + 4 * 128) + 2 * 128 * 128 + 2 * 128,
}


def preset(name: str) -> BackboneConfig:
    family, fields = PRESETS[name]
    return BACKBONES[family](**fields)


def abstract(backbone):
    config = ModelConfig(backbone, recurrence=RecurrenceConfig(segment_length=8))
    return nnx.eval_shape(lambda: MemoryTransformer(config, rngs=nnx.Rngs(0)))


def test_every_preset_has_a_known_size():
    assert set(SIZES) == set(PRESETS)


@pytest.mark.parametrize("name", SIZES)
def test_parameter_count(name):
    leaves = jax.tree.leaves(nnx.state(abstract(preset(name)), nnx.Param))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == SIZES[name]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: GPT2(width=30, num_heads=4), "backbone.width = 30 is not a multiple of backbone.num_heads = 4"),
        (lambda: Llama(width=30, num_heads=4), "backbone.width = 30 is not a multiple"),
        (lambda: TransformerXL(norm_place="both"), r"backbone.norm_place = 'both' must be one of \('post', 'pre'\)"),
        (lambda: TransformerXL(clamp_len=0), "backbone.clamp_len = 0 must be at least 1, or None"),
        (lambda: TransformerXL(width=9, num_heads=3), "backbone.width = 9 must be even"),
        (lambda: TransformerXL(attention_dropout=1.5, dropout=0.1), "backbone.attention_dropout = 1.5 must lie in"),
        (lambda: TransformerXL(attention_dropout=0.1), "backbone.attention_dropout = 0.1 with backbone.dropout = 0.0"),
        (lambda: TransformerXL(vocab_size=9, cutoffs=(20,)), r"backbone.cutoffs = \(20,\) must rise .* backbone.vocab_size = 9"),
        (lambda: TransformerXL(cutoffs=("a",)), r"backbone.cutoffs = \('a',\) must be a tuple of token numbers"),
        (lambda: TransformerXL(cutoffs=(100,), tie_projections=(True,)), r"backbone.tie_projections = \(True,\) .* of the 2 clusters"),
        (lambda: TransformerXL(width=32, num_heads=4, div_val=8, cutoffs=(9, 99)), "backbone.div_val = 8 .* backbone.embedding_width = 32"),
        (lambda: GPT2(vocab_size=0), "backbone.vocab_size = 0 must be at least 1"),
        (lambda: GPT2(num_layers=0), "backbone.num_layers = 0"),
        (lambda: GPT2(max_positions=-1), "backbone.max_positions = -1"),
        (lambda: GPT2(dropout=1.0), r"backbone.dropout = 1.0 must lie in \[0, 1\)"),
        (lambda: GPT2(dropout=-0.1), "backbone.dropout = -0.1"),
        (
            lambda: GPTNeoX(width=32, num_heads=8, rotary_pct=0.25),
            "backbone.rotary_pct = 0.25 of head size 4 rotates 1 features",
        ),
        (lambda: GPTNeoX(width=48, num_heads=4, rotary_pct=0.25), "rotates 3 features: it must be an even number"),
        (lambda: Llama(num_heads=12, num_kv_heads=5), "num_heads = 12 is not a multiple of backbone.num_kv_heads = 5"),
    ],
)
def test_a_bad_config_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_head_sizes():
    assert GPT2(width=32, num_heads=4).head_size == 8
    assert Llama(width=32, num_heads=4, head_width=16).head_size == 16
    kernel = abstract(Llama(width=32, num_heads=4, num_kv_heads=2, head_width=16)).layers.block.attention.key.kernel
    assert kernel.shape == (12, 32, 2 * 16)


def test_mlp_width():
    assert GPT2(width=32, num_heads=4).hidden == 128
    assert GPT2(width=32, num_heads=4, mlp_width=40).hidden == 40


def deviations(backbone) -> dict[str, float]:
    model = MemoryTransformer(ModelConfig(backbone, recurrence=RecurrenceConfig(segment_length=8)), rngs=nnx.Rngs(0))
    return {path_string(path): float(jnp.std(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.split(model)[1])}


def test_initial_scales():
    sizes = dict(vocab_size=64, num_layers=2, width=64, num_heads=4, max_positions=64)
    fixed = deviations(GPT2(**sizes, embedding_std=0.5, position_std=0.1))
    assert fixed["embed/table"] == pytest.approx(0.5, rel=0.1)
    assert fixed["positions/table"] == pytest.approx(0.1, rel=0.1)
    assert fixed["layers/block/attention/query/kernel"] == pytest.approx(0.02, rel=0.1)
    # Maps that end a residual branch: / sqrt(2 L).
    assert fixed["layers/block/attention/output/kernel"] == pytest.approx(0.01, rel=0.1)
    assert fixed["layers/block/mlp/down/kernel"] == pytest.approx(0.01, rel=0.1)
    fan_in = deviations(GPT2(**sizes, kernel_std=None, scale_residual_init=False))
    assert fan_in["layers/block/mlp/up/kernel"] == pytest.approx(64**-0.5, rel=0.1)
    assert fan_in["layers/block/mlp/down/kernel"] == pytest.approx(256**-0.5, rel=0.1)


def test_layers_start_with_different_weights():
    sizes = dict(vocab_size=8, num_layers=3, width=16, num_heads=4, max_positions=8)
    model = MemoryTransformer(ModelConfig(GPT2(**sizes), recurrence=RecurrenceConfig(segment_length=8)), rngs=nnx.Rngs(0))
    kernel = np.asarray(model.layers.block.attention.query.kernel[...])
    assert kernel.shape == (3, 16, 16)
    assert all(np.abs(kernel[i] - kernel[j]).max() > 1e-3 for i, j in ((0, 1), (1, 2), (0, 2)))


SMALL = dict(vocab_size=8, num_layers=2, width=16, num_heads=4, max_positions=8, kernel_std=None)


@pytest.mark.parametrize("parallel", [True, False])
def test_the_two_residual_arrangements(parallel):
    block = GPTNeoX(**SMALL, rotary_pct=0.5, parallel_residual=parallel).block(jnp.float32, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    attended = block.attention(block.norm_attention(x), jnp.arange(3)).output_BxTxD
    first = x + attended
    want = first + block.mlp(block.norm_mlp(x if parallel else first))
    np.testing.assert_allclose(block(x, jnp.arange(3)).hidden_BxTxD, want, atol=1e-6)


def test_mix_changes_the_attention_branch_before_the_sum():
    block = GPT2(**SMALL).block(jnp.float32, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    first = x + 2 * block.attention(block.norm_attention(x), jnp.arange(3)).output_BxTxD
    want = first + block.mlp(block.norm_mlp(first))
    np.testing.assert_allclose(block(x, jnp.arange(3), mix=lambda h: 2 * h).hidden_BxTxD, want, atol=1e-6)


def test_norms():
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 32))
    centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(layer_norm(32, 1e-2, jnp.float32, nnx.Rngs(0))(jnp.float32(x)), centred, atol=1e-5)
    scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(rms_norm(32, 1e-2, jnp.float32, nnx.Rngs(0))(jnp.float32(x)), scaled, atol=1e-5)


def test_activations():
    """GPT-2 takes the tanh approximation of GELU, GPT-NeoX the exact one, Llama a gated SiLU."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    for config, approximate in ((GPT2(**SMALL), True), (GPTNeoX(**SMALL, rotary_pct=0.5), False)):
        mlp = config.block(jnp.float32, nnx.Rngs(0)).mlp
        np.testing.assert_allclose(mlp(x), mlp.down(jax.nn.gelu(mlp.up(x), approximate=approximate)), atol=1e-6)
        assert float(jnp.abs(mlp(x) - mlp.down(jax.nn.gelu(mlp.up(x), approximate=not approximate))).max()) > 1e-5
    mlp = Llama(**SMALL).block(jnp.float32, nnx.Rngs(0)).mlp
    np.testing.assert_allclose(mlp(x), mlp.down(jax.nn.silu(mlp.gate(x)) * mlp.up(x)), atol=1e-6)


def test_table():
    table = Table(5, 3, 1.0, nnx.Rngs(0))
    np.testing.assert_array_equal(table(jnp.array([[4, 0]]), jnp.float32)[0], np.asarray(table.table[...])[[4, 0]])


def test_the_gradient_of_a_frequent_row_is_added_up_in_float32():
    """1,000 times 1: bfloat16 stops counting at 256."""
    table = Table(5, 3, 1.0, nnx.Rngs(0))
    graphdef, params = nnx.split(table)
    grads = jax.grad(lambda p: nnx.merge(graphdef, p)(jnp.full(1000, 2), jnp.bfloat16).astype(jnp.float32).sum())(params)
    np.testing.assert_array_equal(grads["table"][...], np.where(np.arange(5) == 2, 1000.0, 0.0)[:, None].repeat(3, 1))


def test_dropout():
    x, key = jnp.ones((20, 10, 50)), row_keys(jax.random.key(0), 20)
    dropped = np.asarray(dropout(x, 0.25, key, 0))
    assert np.any(dropped[0] != dropped[1])
    np.testing.assert_array_equal(dropout(x[5:9], 0.25, key[5:9], 0), dropped[5:9])  # whatever rows stand beside it
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(dropout(x, 0.25, key, 0), dropped)
    assert np.any(np.asarray(dropout(x, 0.25, key, 1)) != dropped)
    assert dropout(x, 0.25, None, 0) is x and dropout(x, 0.0, key, 0) is x


@pytest.mark.parametrize("output_norm", [True, False])
def test_a_norm_behind_the_last_block_bounds_what_rmt_carries(output_norm):
    backbone = TransformerXL(
        vocab_size=16, num_layers=2, width=16, num_heads=2, mlp_width=32, kernel_std=None, norm_place="pre", output_norm=output_norm
    )
    model = MemoryTransformer(ModelConfig(backbone, RMT(2), RecurrenceConfig(4)), rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (2, 160), 0, 16)
    early, late = (jnp.sqrt(jnp.mean(model.ingest(tokens[:, :n]).tokens ** 2)) for n in (16, 160))
    if output_norm:
        np.testing.assert_allclose([early, late], 1.0, atol=1e-3)
    else:
        assert late > 2 * early
