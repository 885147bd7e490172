"""Small models of several memories, and rows to read."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from armt_jax.memory.associative import ARMT
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, GPTNeoX, Llama

V, B, T, N = 20, 2, 4, 10
SIZES = dict(
    vocab_size=V, num_layers=2, width=16, num_heads=4, mlp_width=24, max_positions=16, kernel_std=None, embedding_std=0.5
)
LLAMA, GPT2_ = Llama(**SIZES, num_kv_heads=2), GPT2(**SIZES, position_std=0.5)
ARMT_ = ARMT(num_memory_tokens=2, d_mem=8, value_std=None)
CONFIGS = {
    "armt": ModelConfig(LLAMA, ARMT_, RecurrenceConfig(segment_length=T)),
    "armt-table": ModelConfig(GPT2_, dataclasses.replace(ARMT_, positions="table"), RecurrenceConfig(segment_length=T)),
    "rmt": ModelConfig(GPT2_, RMT(num_memory_tokens=2), RecurrenceConfig(segment_length=T)),
    "parallel-rmt": ModelConfig(GPTNeoX(**SIZES, rotary_pct=0.5), ParallelRMT(2), RecurrenceConfig(segment_length=T)),
}


@functools.cache
def build(config) -> MemoryTransformer:
    return MemoryTransformer(config, rngs=nnx.Rngs(0))


def random_tokens(seed=0, batch=B, length=N):
    return np.random.default_rng(seed).integers(0, V, (batch, length)).astype(np.int32)


TOKENS, TARGETS = random_tokens(0), random_tokens(1)


def same(a, b, atol=2e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol * max(1.0, float(np.max(np.abs(y)))))
