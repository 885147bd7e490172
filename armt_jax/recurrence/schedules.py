"""The order in which cells run: segment by segment, or diagonal by diagonal. Same numbers either way.

sequential: scan over segments, inside it scan over layers.
diagonal (arXiv 2506.05229): cell (l, s) needs (l-1, s) and (l, s-1) alone when memory is layer-local, so all cells with the same l + s
run at once, as one batched cell over the stacked layers: S + L - 1 steps of L cells instead of S L steps of one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from armt_jax.nn.placement import LAYERS, ROWS, WHOLE, constrain, constrain_state, pass_up, topmost
from armt_jax.recurrence import gradients
from armt_jax.recurrence.cell import Cell
from armt_jax.recurrence.segments import Frame


class GridParams(NamedTuple):
    layers: Any  # stacked [L, ...]
    around: Any  # of what stands around the layers: token memory, positions, final norm


class GridState(NamedTuple):
    """Memory state between segments: `layers` leaves [L, B, ...], `tokens` leaves [B, ...]; float32."""

    layers: Any
    tokens: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """What a schedule runs.

    enter(around, x_BxTxD, tokens, frame) -> hidden states with memory tokens and positions
    leave(around, hidden, tokens, frame) -> (hidden states of the real tokens after the final norm, next tokens)
    """

    cell: Cell
    num_layers: int
    enter: Callable
    leave: Callable


def sequential(grid: Grid, strategy: str, anchor_every: int, params: GridParams, state: GridState, x_SxBxTxD, frames: Frame):
    """Returns (hidden [S, B, T, D], state after the last segment)."""
    resets = None if frames.reset_B is None else (lambda frame: jnp.any(frame.reset_B))
    ticks = gradients.Ticks(
        functools.partial(_segment, grid), _over_layers(grid.cell.advance), _over_layers(grid.cell.undo),
        functools.partial(_pull_segment, grid), resets,
    )  # fmt: skip
    S, B = x_SxBxTxD.shape[:2]
    extra = gradients.padding(strategy, S, anchor_every)
    if extra:
        x_SxBxTxD, frames = jnp.pad(x_SxBxTxD, ((0, extra), (0, 0), (0, 0), (0, 0))), _append_dead(frames, S, B, extra)
    layers, tokens, y = gradients.run(ticks, strategy, anchor_every, params, state.layers, state.tokens, x_SxBxTxD, frames)
    return y[:S], GridState(layers, tokens)


def _append_dead(frames: Frame, S: int, B: int, extra: int) -> Frame:
    """`extra` more segments in which no row is live, so nothing is written."""
    segment = jnp.arange(S + extra)
    inside = (segment < S)[:, None]
    longer = jax.tree.map(lambda a: a[jnp.minimum(segment, S - 1)], frames)
    live = jnp.broadcast_to(inside, (S + extra, B)) if longer.live_B is None else longer.live_B & inside
    return longer._replace(live_B=live, reset_B=None if longer.reset_B is None else longer.reset_B & inside)


class SegmentRecord(NamedTuple):
    """Of one segment: the updates of its layers, and the inputs of its layers [L, B, T, D] with the last one's output."""

    updates: Any
    inputs_LxBxTxD: jax.Array
    output_BxTxD: jax.Array


def _segment(grid: Grid, params: GridParams, layers, tokens, x, frame):
    def layer(h, inputs):
        p, s, i = inputs
        out, s, update = grid.cell.forward(p, h, s, frame, i)
        return out, (s, update, h)

    h = grid.enter(params.around, x, tokens, frame)
    h, (layers, updates, inputs) = jax.lax.scan(layer, h, (params.layers, layers, jnp.arange(grid.num_layers)))
    y, tokens = grid.leave(params.around, h, tokens, frame)
    return constrain_state(layers), tokens, constrain(y, ROWS), SegmentRecord(updates, inputs, h)


def _pull_segment(grid: Grid, params: GridParams, layers, tokens, x, frame, record: SegmentRecord, cotangents, d_params: GridParams):
    """The transpose of `_segment`, layer by layer from the recorded inputs: one layer's inside exists at a time."""
    d_layers, d_tokens, d_y = cotangents

    def layer(d_h, inputs):
        p, s, i, h, d_s, d_p = inputs
        _, pull = jax.vjp(lambda p, h, s: grid.cell.forward(p, h, s, frame, i)[:2], p, h, s)
        more, d_h, d_s = pull((d_h, d_s))
        return d_h, (d_s, jax.tree.map(jnp.add, d_p, more))

    _, pull = jax.vjp(lambda *args: grid.leave(*args, frame), params.around, record.output_BxTxD, tokens)
    d_around, d_h, d_tokens = pull((d_y, d_tokens))
    stacked = (params.layers, layers, jnp.arange(grid.num_layers), record.inputs_LxBxTxD, d_layers, d_params.layers)
    d_h, (d_layers, d_layer_params) = jax.lax.scan(layer, d_h, stacked, reverse=True)
    _, pull = jax.vjp(lambda *args: grid.enter(*args, frame), params.around, x, tokens)
    more_around, d_x, more_tokens = pull(d_h)
    add = functools.partial(jax.tree.map, lambda *parts: sum(parts))
    return GridParams(d_layer_params, add(d_params.around, d_around, more_around)), d_layers, add(d_tokens, more_tokens), d_x


def _over_layers(function):
    def mapped(params: GridParams, state, record: SegmentRecord, frame):
        return jax.vmap(function, in_axes=(0, 0, 0, None))(params.layers, state, record.updates, frame)

    return mapped


def diagonal(grid: Grid, strategy: str, anchor_every: int, params: GridParams, state: GridState, x_SxBxTxD, frames: Frame):
    """As `sequential`. The tokens of a segment must not depend on the stack's output for the one before."""
    S, B, L = x_SxBxTxD.shape[0], x_SxBxTxD.shape[1], grid.num_layers
    h = jax.vmap(grid.enter, in_axes=(None, 0, None, 0))(params.around, x_SxBxTxD, state.tokens, frames)
    more = L - 1 + gradients.padding(strategy, S + L - 1, anchor_every)
    feed = constrain(jnp.concatenate([h, jnp.zeros((more, *h.shape[1:]), h.dtype)]), WHOLE, ROWS)
    ticks = _diagonal_ticks(grid, L, frames)
    start = constrain(jnp.zeros((L, *h.shape[1:]), h.dtype), LAYERS, ROWS)
    times = _frames_of_diagonals(frames, S, S + more, L, B)
    layers, _, out = gradients.run(ticks, strategy, anchor_every, params.layers, state.layers, start, feed, times)
    y, _ = jax.vmap(grid.leave, in_axes=(None, 0, None, 0))(params.around, out[L - 1 : L - 1 + S], state.tokens, frames)
    return constrain(y, WHOLE, ROWS), GridState(layers, state.tokens)


def _frames_of_diagonals(frames: Frame, S: int, diagonals: int, L: int, B: int) -> Frame:
    """Frames [diagonals, L, ...]: on diagonal t layer l works on segment t - l; outside the grid no row is live."""
    segment = jnp.arange(diagonals)[:, None] - jnp.arange(L)
    inside = (segment >= 0) & (segment < S)
    shifted = jax.tree.map(lambda a: a[jnp.clip(segment, 0, S - 1)], frames)
    live = jnp.broadcast_to(inside[..., None], (*inside.shape, B))
    live = live if shifted.live_B is None else live & shifted.live_B
    reset = None if shifted.reset_B is None else shifted.reset_B & inside[..., None]
    detach = None if shifted.detach is None else shifted.detach & inside
    return shifted._replace(live_B=live, reset_B=reset, detach=detach)


def _diagonal_ticks(grid: Grid, L: int, frames: Frame) -> gradients.Ticks:
    numbers = jnp.arange(L)

    def tick(params, layers, hidden_LxBxTxD, new_BxTxD, frame):
        inputs = constrain(pass_up(new_BxTxD, hidden_LxBxTxD), LAYERS, ROWS)
        outputs, layers, updates = jax.vmap(grid.cell.forward)(params, inputs, layers, frame, numbers)
        outputs = constrain(outputs, LAYERS, ROWS)
        return constrain_state(layers), outputs, constrain(topmost(outputs), ROWS), updates

    def pull(params, layers, hidden, new, frame, record, cotangents, d_params):
        _, pull = jax.vjp(lambda *args: tick(*args, frame)[:3], params, layers, hidden, new)
        more, d_layers, d_hidden, d_new = pull(cotangents)
        return jax.tree.map(jnp.add, d_params, more), d_layers, d_hidden, d_new

    resets = None if frames.reset_B is None else (lambda frame: jnp.any(frame.reset_B))
    return gradients.Ticks(tick, jax.vmap(grid.cell.advance), jax.vmap(grid.cell.undo), pull, resets)


SCHEDULES: dict[str, Callable] = {"sequential": sequential, "diagonal": diagonal}
