"""Memory systems by name."""

import dataclasses

from armt_jax.memory.associative import ARMT
from armt_jax.memory.combination import Combination
from armt_jax.memory.hidden_cache import TransformerXLCache
from armt_jax.memory.interface import MemoryConfig
from armt_jax.memory.layer_tokens import ParallelRMT
from armt_jax.memory.recurrent_tokens import RMT


@dataclasses.dataclass(frozen=True)
class NoMemory(MemoryConfig):
    """The bare backbone: every segment is read on its own."""


@dataclasses.dataclass(frozen=True)
class ARMTXL(Combination, ARMT, TransformerXLCache, parts=(ARMT, TransformerXLCache)):
    """ARMT with a cache of hidden states in every layer: the recent past exactly, the far past through the associative matrix."""


@dataclasses.dataclass(frozen=True)
class RMTXL(Combination, RMT, TransformerXLCache, parts=(RMT, TransformerXLCache)):
    """RMT on Transformer-XL (arXiv 2207.06881): recurrent memory tokens and a cache of hidden states."""


MEMORIES: dict[str, type[MemoryConfig]] = {
    "none": NoMemory,
    "armt": ARMT,
    "rmt": RMT,
    "parallel_rmt": ParallelRMT,
    "transformer_xl": TransformerXLCache,
    "armt_xl": ARMTXL,
    "rmt_xl": RMTXL,
}
