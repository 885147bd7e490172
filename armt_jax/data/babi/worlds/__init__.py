"""Stories like those of the published files of qa1 to qa10, drawn from worlds that were inferred from these files.

    story = generate("qa1", seed=0, index=17)

A story is a pure function of its arguments, so any worker may make any of them, in any order.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from armt_jax.data.babi.story import Story, require_task
from armt_jax.data.babi.worlds import carrying, giving, present, relations, reports, where
from armt_jax.data.babi.worlds.telling import BETWEEN
from armt_jax.data.errors import DataError

WORLDS: dict[str, Callable[[np.random.Generator], Iterator[Story]]] = {
    "qa1": where.where_is_who,
    "qa2": where.where_is_what,
    "qa3": where.where_was_what,
    "qa4": relations.which_way,
    "qa5": giving.who_gave_what,
    "qa6": present.is_present,
    "qa7": carrying.how_many,
    "qa8": carrying.which_things,
    "qa9": reports.is_not_there,
    "qa10": reports.may_be_there,
}
GENERATED = tuple(WORLDS)

# SeedSequence reads its entropy as 32-bit words: a larger number would spill into the next word.
_WORD = 2**32
# As in armt_jax.tasks.base. Part of the key of the random stream, as is the place in WORLDS: renumbering one changes the data of every run.
_SPLIT_IDS = {"train": 0, "validation": 1, "test": 2}


def questions_per_story(task: str) -> int:
    """Questions that the published files ask in the course of one story."""
    require_task(task, GENERATED, "that can be generated")
    return 1 if task == "qa4" else 5


def generate(task: str, seed: int, index: int, split: str = "train") -> Story:
    """One question, drawn from the five of a story of its own, so that no two indices share facts.

    Args:
        task: "qa1" to "qa10".
        seed: of the data set. index: of the question in it. Both from 0 to 2**32 - 1.
        split: "train", "validation" or "test", which are separate streams.
    """
    return generate_short(task, seed, index, split, math.inf)


def generate_short(task: str, seed: int, index: int, split: str, max_facts: float) -> Story | None:
    """`generate`, or None where that story has more than so many facts: often without telling it."""
    rng = _generator(task, seed, index, split)
    number = int(rng.integers(questions_per_story(task)))
    if BETWEEN * (number + 1) > max_facts:
        return None
    story = next(itertools.islice(WORLDS[task](rng), number, None))
    return story if len(story.facts) <= max_facts else None


def generate_story(task: str, seed: int, index: int, split: str = "train") -> tuple[Story, ...]:
    """All questions of one story, as in the published files: each comes after more facts than the one before.

    `generate` of the same arguments gives one of them.
    """
    rng = _generator(task, seed, index, split)
    count = questions_per_story(task)
    rng.integers(count)
    return tuple(itertools.islice(WORLDS[task](rng), count))


def stream(task: str, seed: int, split: str = "train", start: int = 0) -> Iterator[Story]:
    """The questions of `generate` from index `start` on, to the last index there is."""
    return (generate(task, seed, index, split) for index in range(start, _WORD))


def _generator(task: str, seed: int, index: int, split: str) -> np.random.Generator:
    require_task(task, GENERATED, "that can be generated")
    for field, value in (("seed", seed), ("index", index)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < _WORD:
            raise DataError(f"{field}={value!r} is not an integer from 0 to {_WORD - 1}: set it to one")
    if split not in _SPLIT_IDS:
        raise DataError(f"split {split!r} is unknown: use one of {', '.join(map(repr, _SPLIT_IDS))}")
    entropy = [int(seed), _SPLIT_IDS[split], GENERATED.index(task), int(index)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
