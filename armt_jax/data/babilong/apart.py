"""Rows whose facts and questions have a segment each: where a curriculum begins.

    Mary went to the kitchen. It was a | dark and stormy night, | John moved to the office. and the | Where is Mary?  kitchen <end>
    It was a Mary went to the kitchen. | dark and stormy night, | and John moved to the office. the | rain Where is Mary?  kitchen <end>

In running text a segment's end may cut a fact in two, and two facts may have to share its memory tokens: a model learns which rooms were
said, and not for a long time whose they are. Here there is one fact to a write. In the first of the rows above it opens its segment
(facts="apart"), in the second it stands anywhere in it (facts="alone"). With as many segments as facts and questions nothing else is in
the way; with more of them, text fills the others, and what is left beside a fact.
"""

from collections.abc import Callable, Sequence

import numpy as np

from armt_jax.data.babilong.background import Passages

# (rng, tokens of a segment, tokens of what stands in it) -> where that begins
Place = Callable[[np.random.Generator, int, int], int]


def opening(rng: np.random.Generator, T: int, length: int) -> int:
    return 0


def anywhere(rng: np.random.Generator, T: int, length: int) -> int:
    return int(rng.integers(T - length + 1))


def fits(facts: Sequence[np.ndarray], questions: Sequence[tuple[np.ndarray, np.ndarray]], segments: int, T: int) -> bool:
    """Whether there is a segment for each, that is long enough for it."""
    longest = max([*map(len, facts), *(len(asked) + len(said) for asked, said in questions)])
    return len(facts) + len(questions) <= segments and longest <= T


def lay_apart(
    rng: np.random.Generator,
    passages: Passages,
    facts: Sequence[np.ndarray],
    questions: Sequence[tuple[np.ndarray, np.ndarray]],
    segments: int,
    T: int,
    place_fact: Place,
    place_question: Place,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, groups, real) of a row, [segments * T + 1] each: facts in their order in drawn segments, text around them and in the segments
    without one, then a segment for each question (ids of question and answer). Groups are 1, 2, ... at the answers; padding, which is what
    stands behind an answer, is not real.

    place_fact, place_question: where in their segment they stand, behind text.
    """
    ids, group, real = (np.zeros(segments * T + 1, kind) for kind in (np.int32, np.int32, bool))
    before = segments - len(questions)
    text = int(passages.place(int(rng.integers(passages.num_sentences))))

    def fill(begin: int, end: int) -> None:
        nonlocal text
        ids[begin:end] = passages.read(text, text + end - begin)
        real[begin:end] = True
        text += end - begin

    places = dict(zip(np.sort(rng.permutation(before)[: len(facts)]).tolist(), facts, strict=True))
    for segment in range(before):
        fact = places.get(segment, np.zeros(0, np.int32))
        begin = segment * T + place_fact(rng, T, len(fact))
        end = begin + len(fact)
        fill(segment * T, begin)
        ids[begin:end], real[begin:end] = fact, True
        fill(end, (segment + 1) * T)
    for number, (asked, said) in enumerate(questions, start=1):
        begin = (before + number - 1) * T + place_question(rng, T, len(asked) + len(said))
        answer, end = begin + len(asked), begin + len(asked) + len(said)
        fill((before + number - 1) * T, begin)
        ids[begin:end], real[begin:end] = np.concatenate([asked, said]), True
        group[answer:end] = number
    return ids, group, real
