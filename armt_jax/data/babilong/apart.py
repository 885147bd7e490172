"""Rows whose facts and questions each open a segment of their own: where a curriculum begins.

    Mary went to the kitchen. It was a | dark and stormy night, and the | John moved to the office. rain | Where is Mary?  kitchen <end>

In running text a segment's end may cut a fact in two, and two facts may have to share its memory tokens: a model learns which rooms were
said, and not for a long time whose they are. Here there is one fact to a write. With as many segments as facts and questions nothing else
is in the way; with more of them, text fills the others, and what is left behind a fact.
"""

from collections.abc import Sequence

import numpy as np

from armt_jax.data.babilong.background import Passages


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, groups, real) of a row, [segments * T + 1] each: facts in their order in drawn segments, text behind them and in the segments
    without one, then a segment for each question (ids of question and answer). Groups are 1, 2, ... at the answers; padding is not real."""
    ids, group, real = (np.zeros(segments * T + 1, kind) for kind in (np.int32, np.int32, bool))
    before = segments - len(questions)
    text = int(passages.place(int(rng.integers(passages.num_sentences))))
    places = dict(zip(np.sort(rng.permutation(before)[: len(facts)]).tolist(), facts, strict=True))
    for segment in range(before):
        fact = places.get(segment, np.zeros(0, np.int32))
        behind = T - len(fact)
        ids[segment * T : (segment + 1) * T] = np.concatenate([fact, passages.read(text, text + behind)])
        text += behind
    real[: before * T] = True
    for number, (asked, said) in enumerate(questions, start=1):
        begin = (before + number - 1) * T
        answer, end = begin + len(asked), begin + len(asked) + len(said)
        ids[begin:end], real[begin:end] = np.concatenate([asked, said]), True
        group[answer:end] = number
    return ids, group, real
