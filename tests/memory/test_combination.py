"""Memories combined from parts: capabilities, order, refusals."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from armt_jax.memory.associative import ARMT, AssociativeMemory
from armt_jax.memory.combination import Combination, CompositeMemory, composite
from armt_jax.memory.hidden_cache import HiddenCache, TransformerXLCache
from armt_jax.memory.interface import LayerMemory
from armt_jax.memory.layer_tokens import LayerTokens, ParallelRMT
from armt_jax.memory.presets import ARMTXL, RMTXL
from armt_jax.memory.recurrent_tokens import RMT, RecurrentTokens
from armt_jax.memory.write_tokens import WriteTokens
from armt_jax.model import MemoryTransformer, ModelConfig, RecurrenceConfig
from armt_jax.nn.backbones import GPT2, TransformerXL

SIZES = dict(vocab_size=20, num_layers=2, width=16, num_heads=4, mlp_width=24, kernel_std=None, embedding_std=0.2)
XL = TransformerXL(**SIZES)
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 12)).astype(np.int32)


class Drawing(LayerMemory):
    layer_local: ClassVar[bool] = False
    reversible: ClassVar[bool] = False
    needs_rng: ClassVar[bool] = True


def test_a_combination_can_do_what_all_its_parts_can():
    both = composite(AssociativeMemory, HiddenCache)
    assert issubclass(both, CompositeMemory) and both is composite(AssociativeMemory, HiddenCache)
    assert (both.layer_local, both.reversible, both.segment_causal, both.needs_rng, both.training_free) == (True, True, True, False, False)
    worse = composite(HiddenCache, Drawing)
    assert (worse.layer_local, worse.reversible, worse.needs_rng, worse.training_free) == (False, False, True, True)
    assert composite(HiddenCache) is HiddenCache


def test_the_parts_of_the_presets():
    assert (ARMTXL.layer_class, ARMTXL.token_class) == (composite(AssociativeMemory, HiddenCache), WriteTokens)
    assert (RMTXL.layer_class, RMTXL.token_class) == (HiddenCache, RecurrentTokens)
    names = lambda kind: {f.name for f in dataclasses.fields(kind)}
    assert names(ARMTXL) == names(ARMT) | names(TransformerXLCache)
    assert names(RMTXL) == names(RMT) | names(TransformerXLCache)


def moved_by(memory, place: int) -> list[bool]:
    """Which positions of a one-layer model another token at `place` changes."""
    backbone = dataclasses.replace(XL, num_layers=1)
    made = MemoryTransformer(ModelConfig(backbone, memory, RecurrenceConfig(segment_length=4)), rngs=nnx.Rngs(0))
    other = TOKENS.copy()
    other[:, place] = (other[:, place] + 1) % 20
    return (np.abs(np.asarray(made(other)[0]) - np.asarray(made(TOKENS)[0])).max(axis=(0, 2)) > 1e-6).tolist()


def test_each_part_reaches_where_it_reaches_alone():
    """Token 1 is past the cache of two after its segment, token 3 is in it for one segment more; the matrix keeps both."""
    cache, matrix = dict(cache_length=2, cached="text"), dict(num_memory_tokens=2, d_mem=8, value_std=None)
    assert moved_by(TransformerXLCache(**cache), 1) == [False] + [True] * 3 + [False] * 8
    assert moved_by(TransformerXLCache(**cache), 3) == [False] * 3 + [True] * 5 + [False] * 4
    assert moved_by(ARMTXL(**cache, **matrix), 1) == [False] + [True] * 11
    assert moved_by(RMTXL(**cache, num_memory_tokens=2), 3) == [False] * 3 + [True] * 9


def test_parts_of_a_state_are_those_of_the_systems_alone():
    """One layer, first segment: what each part has stored is what it stores alone, since nothing was there to read."""
    backbone = dataclasses.replace(XL, num_layers=1)
    fields = dict(num_memory_tokens=2, d_mem=8, value_std=None)
    recurrence = RecurrenceConfig(segment_length=4)
    both = MemoryTransformer(ModelConfig(backbone, ARMTXL(**fields, cache_length=3, cached="text"), recurrence), rngs=nnx.Rngs(0))
    state = both(TOKENS[:, :4])[1]
    alone = MemoryTransformer(ModelConfig(backbone, TransformerXLCache(3), recurrence), rngs=nnx.Rngs(0))
    alone.embed = both.embed
    np.testing.assert_allclose(state.layers[1].hidden_BxCxD, alone(TOKENS[:, :4])[1].layers.hidden_BxCxD, atol=1e-6)
    assert np.any(state.layers[0].A_BxHxKxd)


def test_two_memories_of_tokens_are_refused():
    with pytest.raises(TypeError, match="ARMT and RMT both have memory tokens; one part may"):

        class Both(Combination, ARMT, RMT, parts=(ARMT, RMT)):
            pass


def test_two_memories_in_the_attention_are_refused():
    parts = composite(HiddenCache, HiddenCache)([HiddenCache(2, 4, None, "all"), HiddenCache(2, 4, None, "all")])
    with pytest.raises(ValueError, match="HiddenCache and HiddenCache both add entries to the block's attention"):
        parts.attend(parts.init_state(1))


def test_a_new_combination_is_a_class_and_nothing_else():
    @dataclasses.dataclass(frozen=True)
    class ParallelXL(Combination, ParallelRMT, TransformerXLCache, parts=(ParallelRMT, TransformerXLCache)):
        pass

    assert ParallelXL.layer_class is composite(LayerTokens, HiddenCache)
    recurrence = RecurrenceConfig(segment_length=4)
    made = MemoryTransformer(ModelConfig(XL, ParallelXL(num_memory_tokens=2, cache_length=5), recurrence), rngs=nnx.Rngs(0))
    want = made(TOKENS)[0]
    np.testing.assert_allclose(made.with_recurrence(schedule="diagonal")(TOKENS)[0], want, atol=1e-5)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: ARMTXL(cache_length=0), "memory.cache_length = 0"),
        (lambda: RMTXL(num_memory_tokens=0), "memory.num_memory_tokens = 0"),
        (
            lambda: ModelConfig(XL, RMTXL(), RecurrenceConfig(schedule="diagonal")),
            "schedule = 'diagonal' needs layer-local memory, and memory RMTXL is not",
        ),
        (
            lambda: ModelConfig(GPT2(**SIZES), ARMTXL(cache_length=7), RecurrenceConfig(segment_length=8)),
            "memory.cache_length = 7: a cache needs a backbone that knows distances, and GPT2 has a table of positions",
        ),
        (lambda: ModelConfig(XL, ARMTXL(positions="table")), "memory.positions = 'table' needs a backbone with a learned position table"),
    ],
)
def test_refused_configs(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_mixing_goes_through_every_part():
    class Adding(LayerMemory):
        def init_state(self, batch):
            return jnp.ones((batch, 1, 1))

        def mix(self, x_BxTxD, state):
            return 2 * x_BxTxD + state

    both = composite(Adding, Adding)([Adding(), Adding()])
    np.testing.assert_array_equal(both.mix(jnp.ones((2, 1, 1)), both.init_state(2)), np.full((2, 1, 1), 7.0))
