"""qa4: three rooms in a line, each pair of neighbours told in a sentence."""

from collections.abc import Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babi.worlds.words import ROOMS, choose

_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
# How often a sentence begins with the room in the middle.
_MIDDLE_FIRST = 1 / 3


def which_way(rng: np.random.Generator) -> Iterator[Story]:
    """qa4. The answer is always the room that the supporting sentence begins with."""
    middle, *ends = (ROOMS[i] for i in rng.permutation(len(ROOMS))[:3])
    way = choose(rng, list(_OPPOSITE))
    told = []
    for end, direction in zip(ends, (way, _OPPOSITE[way])):
        # The end lies in that direction from the middle.
        inward = rng.random() < _MIDDLE_FIRST
        told.append((middle, _OPPOSITE[direction], end) if inward else (end, direction, middle))
    facts = tuple(f"The {room} is {direction} of the {other}." for room, direction, other in told)
    support = int(rng.integers(2))
    room, direction, other = told[support]
    question = choose(rng, (f"What is {direction} of the {other}?", f"What is the {other} {_OPPOSITE[direction]} of?"))
    yield Story("qa4", facts, question, room, (support,))
