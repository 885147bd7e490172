"""The memory systems that the contract is checked for.

A new system earns its place by a row in `SYSTEMS`; `test_every_memory_has_a_row` fails until it has one. One row is a toy
defined here, a gated bank of slots. It uses the part of the interface that no built-in system uses, `mix`, and runs under
every schedule and gradient strategy; no line of the driver knows of it.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from armt_jax.memory.associative import ARMT
from armt_jax.memory.hidden_cache import TransformerXLCache
from armt_jax.memory.interface import LayerMemory, MemoryConfig
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.presets import ARMTXL, RMTXL, NoMemory
from armt_jax.memory.recurrent_tokens import RMT
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, BackboneConfig, GPTNeoX, Llama, TransformerXL
from armt_jax.nn.layers import linear

B, S, T, L, V = 2, 4, 4, 2, 32


# ---- a system that the library does not have ----


class Kept(NamedTuple):
    """The new value and the one it replaces, so that a commit can be undone."""

    new: Any
    old: Any


class GatedSlots(LayerMemory):
    """A bank of slots, read by cross-attention out of the attention branch and overwritten through a gate (as LM2 does)."""

    training_free: ClassVar[bool] = False

    def __init__(self, slots: int, backbone: BackboneConfig, dtype, rngs):
        D, self.slots, self.width = backbone.width, slots, backbone.width
        kwargs = dict(bias=False, init=backbone.init, dtype=dtype, rngs=rngs)
        self.query, self.value = linear(D, D, **kwargs), linear(D, D, **kwargs)
        self.candidate, self.gate = linear(D, slots * D, **kwargs), linear(D, slots, **kwargs)

    def init_state(self, batch):
        return jnp.zeros((batch, self.slots, self.width))

    def mix(self, x_BxTxD, state):
        share = jax.nn.softmax(jnp.einsum("btd,bnd->btn", self.query(x_BxTxD), state) / self.width**0.5, axis=-1)
        return x_BxTxD + jnp.einsum("btn,bnd->btd", share, self.value(state)).astype(x_BxTxD.dtype)

    def write(self, trace, state):
        y = trace.outputs_BxTxD
        real = jnp.ones(y.shape[:2]) if trace.valid_BxT is None else trace.valid_BxT
        mean = jnp.sum(y * real[..., None], axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)[:, None]
        new = jnp.tanh(self.candidate(mean)).reshape(-1, self.slots, self.width)
        gate = jax.nn.sigmoid(self.gate(mean))[..., None]
        return Kept((1 - gate) * state + gate * new, state)

    def commit(self, state, update):
        return update.new

    def undo(self, state, update):
        return update.old


@dataclasses.dataclass(frozen=True)
class GatedSlotsConfig(MemoryConfig):
    slots: int = 3

    layer_class: ClassVar[type] = GatedSlots

    def layer_memory(self, backbone, dtype, rngs):
        return GatedSlots(self.slots, backbone, dtype, rngs)


# ---- the rows ----

SIZES = dict(
    vocab_size=V, num_layers=L, width=16, num_heads=4, mlp_width=24, max_positions=32, kernel_std=None, embedding_std=0.5,
    position_std=0.5, tie_embeddings=False, dropout=0.1,
)  # fmt: skip
GPT2_, NEOX, LLAMA = GPT2(**SIZES), GPTNeoX(**SIZES, rotary_pct=0.5), Llama(**SIZES, num_kv_heads=2)
# Embeddings are scaled by sqrt(width).
XL = TransformerXL(**SIZES | dict(embedding_std=0.125), attention_dropout=0.1, clamp_len=5)
XL_ADAPTIVE = dataclasses.replace(XL, cutoffs=(9, 20), div_val=2, projection_std=0.5, tie_biases=False)


@dataclasses.dataclass(frozen=True)
class System:
    """`reach`: how many segments back the memory lets one see, through all layers."""

    name: str
    backbone: BackboneConfig
    memory: MemoryConfig
    reach: int = S
    align: str = "left"

    @property
    def local(self) -> bool:
        return self.memory.layer_class.layer_local and self.memory.token_class.layer_local

    def model(self, **backbone) -> MemoryTransformer:
        recurrence = RecurrenceConfig(segment_length=T, anchor_every=4, align=self.align)
        return build(dataclasses.replace(self.backbone, **backbone), self.memory, recurrence)


def build(backbone, memory, recurrence):
    return MemoryTransformer(ModelConfig(backbone, memory, recurrence), rngs=nnx.Rngs(0))


# Sizes at which one rounding of the weights moves no gradient by more than the bar of 3e-5: with fewer features than these, what compilers
# round differently is told as a difference between schedules.
SMALL = dict(num_memory_tokens=2, d_mem=16, value_std=None)
SYSTEMS = (
    System("none", GPT2_, NoMemory(), reach=0),
    System("armt", GPT2_, ARMT(num_memory_tokens=3, d_mem=12, value_std=None, positions="table")),
    System("armt-heads-l2", LLAMA, ARMT(**SMALL, num_heads=2, key_norm="l2"), align="right"),
    System("armt-no-correction", NEOX, ARMT(**SMALL, correction=False, key_norm="l2")),
    System("rmt", GPT2_, RMT(num_memory_tokens=2), align="right"),
    System("parallel-rmt", LLAMA, ParallelRMT(num_memory_tokens=2)),
    System("transformer-xl", XL_ADAPTIVE, TransformerXLCache(3), reach=L),
    System("cache-rotary", LLAMA, TransformerXLCache(3), reach=L, align="right"),
    System("armt-xl", XL, ARMTXL(**SMALL | dict(d_mem=8), key_norm="l2", read_floor=0.5, cache_length=3), align="right"),
    System("rmt-xl", XL, RMTXL(num_memory_tokens=2, cache_length=6, cached="text")),
    System("gated-slots", NEOX, GatedSlotsConfig()),
)
