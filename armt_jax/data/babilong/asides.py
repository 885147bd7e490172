"""Questions along the way: every so many tokens of a training row one is asked, and the text goes on without an answer.

    Mary went to the kitchen. It was a dark Where is Mary? and stormy night, and John moved to the office. the rain Where is John? fell

What is to be predicted behind "Mary?" is the first id that tells answers apart (what all of them begin with, a space where that is an id,
stands behind the question); what is read there is the text. So nothing is told that a later
question could be answered from, and people may be asked about again and again, near to the fact and far from it. A row of 32 segments with
four questions at its end has eight tokens to learn from, and with one in every 64 tokens some seventy.

A question overwrites text, wherever it happens to stand; where it would overwrite a fact, or nobody was heard of yet, none is asked.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np


def asides(
    rng: np.random.Generator,
    spans: Sequence[tuple[int, int]],
    stop: int,
    every: int,
    ask: Callable[[np.random.Generator, int], tuple[np.ndarray, int]],
) -> Iterator[tuple[int, np.ndarray, int]]:
    """(place, ids of the question, id that is to be predicted behind it), in order, in [0, stop).

    spans: [begin, end) of each fact, in order. every: one in each so many tokens. ask(rng, n): a question (its ids, and the id behind it)
    about somebody in the first n facts, n >= 1.
    """
    free = 0
    for first in range(0, stop - every + 1, every):
        place = first + int(rng.integers(every))
        known = sum(end <= place for _, end in spans)
        if not known:
            continue
        ids, wanted = ask(rng, known)
        end = place + len(ids)
        if free <= place and end <= stop and not any(begin < end and place < behind for begin, behind in spans):
            yield place, ids, wanted
            free = end
