"""PyTorch, and models of ours to hand over to it. Whoever imports this is skipped where PyTorch is not installed."""

import pytest
from flax import nnx

from armt_jax.memory.associative import ARMT
from armt_jax.memory.interface import MemoryConfig
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, GPTNeoX, Llama

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

V = 101
SIZES = dict(vocab_size=V, num_layers=2, width=32, num_heads=4, kernel_std=None, embedding_std=0.5, position_std=0.5)
MODELS = {
    "armt-gpt2": (GPT2(**SIZES, max_positions=24), ARMT(3, d_mem=8, positions="table", value_std=None)),
    "armt-llama-heads": (
        Llama(**SIZES, max_positions=64, num_kv_heads=2, tie_embeddings=False),
        # With fewer features (d_mem 8, nu 2) some q z are almost 0, and float32 itself is 6e-5 (JAX) and 2e-4 (PyTorch) from float64.
        ARMT(3, d_mem=16, num_heads=2, key_norm="l2", beta_max=0.7, read_floor=0.3, value_std=None, correction=False),
    ),
    "armt-neox-hard": (
        GPTNeoX(**SIZES, max_positions=64),
        ARMT(3, d_mem=16, key_norm="l2", gate="hard", write_cost=0.1, like_writes="share", read_floor=1.0, first_layer=1, value_std=None),
    ),
    "rmt-neox": (GPTNeoX(**SIZES, max_positions=64), RMT(3)),
    "none-gpt2": (GPT2(**SIZES, max_positions=24), MemoryConfig()),
}


def made(name, **recurrence):
    backbone, memory = MODELS[name]
    config = ModelConfig(backbone, memory, RecurrenceConfig(**{"segment_length": 12, **recurrence}))
    return MemoryTransformer(config, rngs=nnx.Rngs(0))
