"""Several memories in one model: a LayerMemory made of LayerMemories, and at most one TokenMemory around the stack.

A combination is a class that names its parts and says nothing else:

    @dataclasses.dataclass(frozen=True)
    class ARMTXL(Combination, ARMT, TransformerXLCache, parts=(ARMT, TransformerXLCache)): ...

Its config fields are those of all parts. It can do what all parts can.
"""

import functools
from typing import ClassVar

from flax import nnx

from armt_jax.memory.interface import LayerMemory, Layout, MemoryConfig, TokenMemory


class CompositeMemory(LayerMemory):
    """Parts one after the other: each reads and mixes what the one before it made. The state is the tuple of theirs.

    Raises:
        ValueError: two parts want to be seen by the block's attention.
    """

    def __init__(self, parts: list[LayerMemory]):
        self.parts = nnx.List(parts)

    def init_state(self, batch):
        return tuple(part.init_state(batch) for part in self.parts)

    def read(self, x_BxTxD, state, layout):
        for part, own in zip(self.parts, state):
            x_BxTxD = part.read(x_BxTxD, own, layout)
        return x_BxTxD

    def attend(self, state):
        contexts = [(part, part.attend(own)) for part, own in zip(self.parts, state)]
        contexts = [(part, context) for part, context in contexts if context is not None]
        if len(contexts) > 1:
            names = " and ".join(type(part).__name__ for part, _ in contexts)
            raise ValueError(f"{names} both add entries to the block's attention, which takes those of one memory: combine others")
        return contexts[0][1] if contexts else None

    def mix(self, x_BxTxD, state):
        for part, own in zip(self.parts, state):
            x_BxTxD = part.mix(x_BxTxD, own)
        return x_BxTxD

    def write(self, trace, state):
        return tuple(part.write(trace, own) for part, own in zip(self.parts, state))

    def commit(self, state, update):
        return tuple(part.commit(own, more) for part, own, more in zip(self.parts, state, update))

    def undo(self, state, update):
        return tuple(part.undo(own, more) for part, own, more in zip(self.parts, state, update))


@functools.cache
def composite(*parts: type[LayerMemory]) -> type[LayerMemory]:
    """The class of these parts together, with the capabilities that follow from theirs."""
    if len(parts) == 1:
        return parts[0]
    capabilities = {name: all(getattr(p, name) for p in parts) for name in ("layer_local", "reversible", "segment_causal", "training_free")}
    capabilities["needs_rng"] = any(p.needs_rng for p in parts)
    return type("And".join(p.__name__ for p in parts), (CompositeMemory,), capabilities)


class Combination(MemoryConfig):
    """Base of the configs that combine others; comes first among the bases. TypeError for a class with memory tokens from two parts."""

    parts: ClassVar[tuple[type[MemoryConfig], ...]] = ()
    token_part: ClassVar[type[MemoryConfig]] = MemoryConfig
    layer_parts: ClassVar[tuple[type[MemoryConfig], ...]] = ()

    def __init_subclass__(cls, parts: tuple[type[MemoryConfig], ...], **kwargs):
        super().__init_subclass__(**kwargs)
        with_tokens = [part for part in parts if part.token_class is not TokenMemory]
        if len(with_tokens) > 1:
            raise TypeError(f"{cls.__name__}: {' and '.join(p.__name__ for p in with_tokens)} both have memory tokens; one part may")
        cls.parts = parts
        cls.token_part = with_tokens[0] if with_tokens else MemoryConfig
        cls.layer_parts = tuple(part for part in parts if part.layer_class is not LayerMemory)
        cls.layer_class = composite(*(part.layer_class for part in cls.layer_parts)) if cls.layer_parts else LayerMemory
        cls.token_class = cls.token_part.token_class

    def __post_init__(self):
        for part in self.parts:
            part.__post_init__(self)

    def layout(self, backbone):
        layouts = {part: part.layout(self, backbone) for part in self.parts}
        return layouts.get(self.token_part, Layout())

    def token_memory(self, backbone, rngs):
        return self.token_part.token_memory(self, backbone, rngs)

    def layer_memory(self, backbone, dtype, rngs):
        memories = [part.layer_memory(self, backbone, dtype, rngs) for part in self.layer_parts]
        return memories[0] if len(memories) == 1 else self.layer_class(memories)
