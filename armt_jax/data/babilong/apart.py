"""Rows whose facts stand whole in a segment each, or share one, and whose questions have one each: where a curriculum begins.

    Mary went to the kitchen. It was a | dark and stormy night, | John moved to the office. and the | Where is Mary?  kitchen <end>
    It was a Mary went to the kitchen. | dark and stormy night, | and John moved to the office. the | rain Where is Mary?  kitchen <end>
    Mary went to the kitchen. It was John moved to the office. | a dark and stormy night, and the rain | Where is Mary?  kitchen <end>

In running text a segment's end may cut a fact in two, and two facts may have to share its memory tokens: a model learns which rooms were
said, and not for a long time whose they are. In the first two rows above there is one fact to a write: it opens its segment
(facts="apart"), or stands anywhere in it (facts="alone"). In the third, facts share segments (facts="whole"), and none is cut. With as many
segments as facts and questions nothing else is in the way; with more of them, text fills the others, and what is left beside a fact.
"""

from collections.abc import Callable, Sequence

import numpy as np

from armt_jax.data.babilong.background import Passages

# (rng, lengths of facts, segments, tokens of a segment) -> the segment of each fact in order, or None where they do not fit
Assign = Callable[[np.random.Generator, Sequence[int], int, int], np.ndarray | None]
# (rng, tokens of a segment, lengths of what stands in it, in order) -> where each begins
Place = Callable[[np.random.Generator, int, Sequence[int]], np.ndarray]
# Draws in which facts that share segments are to fit.
_DRAWS = 50


def own_segments(rng: np.random.Generator, lengths: Sequence[int], segments: int, T: int) -> np.ndarray | None:
    if len(lengths) > segments or max(lengths) > T:
        return None
    return np.sort(rng.permutation(segments)[: len(lengths)])


def shared_segments(rng: np.random.Generator, lengths: Sequence[int], segments: int, T: int) -> np.ndarray | None:
    """Drawn with replacement, as gaps are in running text."""
    for _ in range(_DRAWS if segments and sum(lengths) <= segments * T else 0):
        drawn = np.sort(rng.integers(segments, size=len(lengths)))
        if np.bincount(drawn, lengths).max() <= T:
            return drawn
    return None


def opening(rng: np.random.Generator, T: int, lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths])[:-1]


def anywhere(rng: np.random.Generator, T: int, lengths: Sequence[int]) -> np.ndarray:
    """Behind text drawn from what the segment has room for."""
    return np.sort(rng.integers(T - sum(lengths) + 1, size=len(lengths))) + np.cumsum([0, *lengths])[:-1]


FACTS: dict[str, tuple[Assign, Place]] = {
    "apart": (own_segments, opening),
    "alone": (own_segments, anywhere),
    "whole": (shared_segments, anywhere),
}
QUESTIONS: dict[str, Place] = {"apart": opening, "running": anywhere}


def lay_apart(
    rng: np.random.Generator,
    passages: Passages,
    facts: Sequence[np.ndarray],
    questions: Sequence[tuple[np.ndarray, np.ndarray]],
    segments: int,
    T: int,
    where: tuple[str, str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(ids, groups, real) of a row, [segments * T + 1] each: facts in their order in drawn segments, text around them and in the segments
    without one, then a segment for each question (ids of question and answer). Groups are 1, 2, ... at the answers; padding, which is what
    stands behind an answer, is not real. None where facts or questions do not fit.

    where: keys of FACTS and of QUESTIONS.
    """
    assign, place_facts = FACTS[where[0]]
    before = segments - len(questions)
    segment_of = assign(rng, [len(fact) for fact in facts], before, T)
    if segment_of is None or max(len(asked) + len(said) for asked, said in questions) > T:
        return None
    ids, group, real = (np.zeros(segments * T + 1, kind) for kind in (np.int32, np.int32, bool))
    first = int(passages.place(int(rng.integers(passages.num_sentences))))
    text, used = passages.read(first, first + segments * T), 0

    def fill(begin: int, end: int) -> None:
        nonlocal used
        ids[begin:end] = text[used : used + end - begin]
        real[begin:end] = True
        used += end - begin

    for segment in range(before):
        here = [fact for fact, its in zip(facts, segment_of, strict=True) if its == segment]
        at = segment * T
        for fact, begin in zip(here, segment * T + place_facts(rng, T, [len(fact) for fact in here]), strict=True):
            fill(at, begin)
            at = begin + len(fact)
            ids[begin:at], real[begin:at] = fact, True
        fill(at, (segment + 1) * T)
    for number, (asked, said) in enumerate(questions, start=1):
        (within,) = QUESTIONS[where[1]](rng, T, [len(asked) + len(said)])
        begin = (before + number - 1) * T + within
        answer, end = begin + len(asked), begin + len(asked) + len(said)
        fill((before + number - 1) * T, begin)
        ids[begin:end], real[begin:end] = np.concatenate([asked, said]), True
        group[answer:end] = number
    return ids, group, real
