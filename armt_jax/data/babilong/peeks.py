"""Questions along the way of a training row, each in a segment of which the memory keeps nothing.

    It was a Mary went to the | It was a Mary went to the kitchen. Where is Mary? kitchen <end> <pad> | kitchen. dark and stormy night, ...

A row of 32 segments with four questions at its end has eight tokens to learn from, all of them far from most of its facts. So before a
segment is read, its beginning is: as far as a place drawn, with questions about the facts until there behind it, just as an evaluation asks
on its way (`MemoryTransformer.peek`). Then the segment itself is read, to a memory that knows nothing of the questions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Places that are drawn for a peek.
_DRAWS = 20


class Peek(NamedTuple):
    """Before which segment of the row, its ids (no longer than a segment), and their groups (as in Batch.answers_BxN)."""

    segment: int
    ids: np.ndarray
    groups: np.ndarray


# (generator, number of facts told, at least 1) -> (ids, groups) of questions and answers
Ask = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def draw_peek(rng: np.random.Generator, context: np.ndarray, spans: Sequence[tuple[int, int]], T: int, ask: Ask) -> Peek:
    """A peek at a place drawn of the context, behind its first fact and inside none: half of them anywhere, half of them no more than a
    segment's length behind a fact, where it shows whether a fact was written at all. At none, where questions do not fit behind the places
    drawn (a segment of padding).

    spans: [begin, end) of each fact in the context, in order. T: tokens of a segment.
    """
    for _ in range(_DRAWS):
        first, last = spans[0][1], len(context)
        if rng.integers(2):
            first = spans[int(rng.integers(len(spans)))][1]
            last = min(first + T, last)
        place = int(rng.integers(first, last + 1))
        if any(begin < place < end for begin, end in spans):
            continue
        asked, groups = ask(rng, sum(end <= place for _, end in spans))
        read = context[place - place % T : place]
        if len(read) + len(asked) <= T:
            return Peek(place // T, np.concatenate([read, asked]), np.concatenate([np.zeros(len(read), np.int32), groups]))
    return Peek(0, np.zeros(0, np.int32), np.zeros(0, np.int32))


def insert_peeks(
    ids: np.ndarray, groups: np.ndarray, real: np.ndarray, peeks: Sequence[Peek], T: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ids, groups, real, whether each segment is a peek) of a row [segments * T + 1] with its peeks inserted."""
    order = sorted(peeks, key=lambda peek: peek.segment)
    before = np.array([peek.segment for peek in order], int)
    out = [np.insert(leaf[:-1].reshape(-1, T), before, 0, axis=0) for leaf in (ids, groups, real)]
    at = before + np.arange(len(order))
    for segment, peek in zip(at, order, strict=True):
        own = slice(len(peek.ids))
        out[0][segment, own], out[1][segment, own], out[2][segment, own] = peek.ids, peek.groups, True
    is_peek = np.zeros(len(out[0]), bool)
    is_peek[at] = True
    return *(np.append(new, leaf[-1]) for new, leaf in zip(out, (ids, groups, real), strict=True)), is_peek
