"""Cutting rows into segments, and what each segment needs to know besides its tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from armt_jax.memory.interface import Layout
from armt_jax.nn.layers import fold_keys

ALIGNMENTS = ("left", "right")


class Frame(NamedTuple):
    """Facts of one segment (stacked: leading axis S). None everywhere means: full segments, no resets, no truncation, no dropout.

    Attributes:
        valid_BxT: True at real tokens and memory tokens.
        live_B: rows with at least one real token whose segment is no peek; the others write nothing.
        reset_B: rows whose state becomes fresh before this segment.
        detach: [] True where no gradient flows into the incoming state.
        keys_B: PRNG key of each row in this segment.
    """

    valid_BxT: jax.Array | None = None
    live_B: jax.Array | None = None
    reset_B: jax.Array | None = None
    detach: jax.Array | None = None
    keys_B: jax.Array | None = None


class Marks(NamedTuple):
    """What is particular about rows and their segments; None: nothing is.

    Attributes:
        valid_BxN: bool, False at padding. reset_BxS: bool, the row's memory is emptied before the segment.
        peek_BxS: bool, the segment is read and leaves the row's memory as it was.
    """

    valid_BxN: jax.Array | None = None
    reset_BxS: jax.Array | None = None
    peek_BxS: jax.Array | None = None


PLAIN = Marks()


def num_segments(length: int, segment_length: int) -> int:
    return -(-length // segment_length)


def _padding(length: int, segment_length: int, align: str) -> tuple[int, int]:
    missing = num_segments(length, segment_length) * segment_length - length
    return (0, missing) if align == "left" else (missing, 0)


def split(x_BxN: jax.Array, segment_length: int, align: str = "left") -> jax.Array:
    """[B, N, ...] -> [S, B, T, ...], zero-filled: at the end of the last segment ("left") or at the start of the first ("right")."""
    B, N = x_BxN.shape[:2]
    pad = _padding(N, segment_length, align)
    if any(pad):
        x_BxN = jnp.pad(x_BxN, ((0, 0), pad) + ((0, 0),) * (x_BxN.ndim - 2))
    return jnp.swapaxes(x_BxN.reshape(B, -1, segment_length, *x_BxN.shape[2:]), 0, 1)


def join(x_SxBxT: jax.Array, length: int, align: str = "left") -> jax.Array:
    """The inverse of `split`: [S, B, T, ...] -> [B, N, ...]."""
    S, B, T = x_SxBxT.shape[:3]
    x_BxN = jnp.swapaxes(x_SxBxT, 0, 1).reshape(B, S * T, *x_SxBxT.shape[3:])
    before, _ = _padding(length, T, align)
    return x_BxN[:, before : before + length]


def frames(
    *,
    batch: int,
    length: int,
    segment_length: int,
    layout: Layout,
    align: str = "left",
    marks: Marks = PLAIN,
    bptt_segments: int | None = None,
    keys_B: jax.Array | None = None,
) -> tuple[Frame, jax.Array | None]:
    """Frames [S, ...] of a row of `length` tokens, and the mask of its real tokens [S, B, T] (None: all are real).

    Truncation cuts the row into stretches of `bptt_segments` segments counted from the end; no gradient crosses from a stretch to the one
    before. So a loss in the last segment reaches exactly the last `bptt_segments` segments; and one in the first stretch reaches what the
    row starts from, be it a memory's learned first state.
    """
    S = num_segments(length, segment_length)
    ragged = S * segment_length != length
    valid = None
    if marks.valid_BxN is not None or ragged:
        given = jnp.ones((batch, length), bool) if marks.valid_BxN is None else marks.valid_BxN
        valid = split(given, segment_length, align)
    frame = Frame(
        valid_BxT=None if valid is None else jax.vmap(layout.wrap_valid)(valid),
        live_B=_live(None if marks.valid_BxN is None else valid, marks.peek_BxS),
        reset_B=None if marks.reset_BxS is None else jnp.swapaxes(marks.reset_BxS, 0, 1),
        detach=None if bptt_segments is None or bptt_segments >= S else _cuts(S, bptt_segments),
        keys_B=None if keys_B is None else jax.vmap(lambda s: fold_keys(keys_B, s))(jnp.arange(S)),
    )
    return frame, valid


def _live(valid_SxBxT: jax.Array | None, peek_BxS: jax.Array | None) -> jax.Array | None:
    real = None if valid_SxBxT is None else jnp.any(valid_SxBxT, axis=-1)
    if peek_BxS is None:
        return real
    kept = ~jnp.swapaxes(peek_BxS, 0, 1)
    return kept if real is None else real & kept


def _cuts(S: int, every: int) -> jax.Array:
    """[S] True where a stretch begins, but for the first."""
    segment = jnp.arange(S)
    return ((S - segment) % every == 0) & (segment > 0)


def choose(rows_B: jax.Array, new, old):
    """Leaf-wise: `new` in the rows marked, `old` elsewhere. Leaves are [B, ...]."""
    return jax.tree.map(lambda n, o: jnp.where(rows_B.reshape(rows_B.shape + (1,) * (n.ndim - 1)), n, o), new, old)


def renew(state, fresh, frame: Frame):
    """The state that a segment starts from: detached where the frame says so, fresh in the rows that reset."""
    if frame.detach is not None:
        state = jax.tree.map(lambda a: jnp.where(frame.detach, jax.lax.stop_gradient(a), a), state)
    if frame.reset_B is not None:
        state = choose(frame.reset_B, fresh(), state)
    return state
