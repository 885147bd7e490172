"""One cell of the grid: one layer of one segment."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from armt_jax.memory.interface import LayerMemory, Layout, Trace
from armt_jax.nn.blocks import Block
from armt_jax.nn.layers import fold_keys
from armt_jax.nn.placement import ROWS, constrain
from armt_jax.recurrence.segments import Frame, choose, renew


class Layer(nnx.Module):
    """A block and the memory that belongs to it."""

    def __init__(self, block: Block, memory: LayerMemory):
        self.block = block
        self.memory = memory


@dataclasses.dataclass(frozen=True)
class Cell:
    """Pure functions of one layer's parameters. The schedules call them under scan or vmap over the stacked layers."""

    graphdef: Any
    layout: Layout
    batch: int

    def _layer(self, params) -> Layer:
        return nnx.merge(self.graphdef, params)

    def positions(self, x_BxTxD: jax.Array, frame: Frame) -> jax.Array:
        real = x_BxTxD.shape[1] - self.layout.front - self.layout.back
        return self.layout.positions(real, None if frame.valid_BxT is None else self.layout.real(frame.valid_BxT))

    def forward(self, params, x_BxTxD: jax.Array, state, frame: Frame, index: jax.Array):
        """Returns (outputs [B, T, D], the state after the segment, the update that made it). `index` is the layer's number."""
        layer = self._layer(params)
        memory = layer.memory
        keys_B = None if frame.keys_B is None else fold_keys(frame.keys_B, index)
        state = renew(state, lambda: memory.init_state(self.batch), frame)
        x = memory.read(constrain(x_BxTxD, ROWS), state, self.layout)
        out = layer.block(
            x, self.positions(x, frame), frame.valid_BxT, context=memory.attend(state), mix=lambda h: memory.mix(h, state), keys_B=keys_B
        )
        trace = Trace(x, out.hidden_BxTxD, out.keys_BxTxHxd, out.values_BxTxHxd, frame.valid_BxT, self.layout, keys_B, frame.live_B, index)
        update = memory.write(trace, state)
        return constrain(out.hidden_BxTxD, ROWS), self._commit(memory, state, update, frame), update

    def advance(self, params, state, update, frame: Frame):
        """The state after the segment, from the one before and the update."""
        memory = self._layer(params).memory
        state = renew(state, lambda: memory.init_state(self.batch), frame)
        return self._commit(memory, state, update, frame)

    def undo(self, params, state, update, frame: Frame):
        """The state that the segment started from (after a reset, if there was one), from the one after it and the update."""
        before = self._layer(params).memory.undo(state, update)
        return before if frame.live_B is None else choose(frame.live_B, before, state)

    def _commit(self, memory: LayerMemory, state, update, frame: Frame):
        after = memory.commit(state, update)
        return after if frame.live_B is None else choose(frame.live_B, after, state)
