"""qa6: is somebody in a room, yes or no?"""

from collections.abc import Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babi.worlds.house import House
from armt_jax.data.babi.worlds.telling import Asked, Event, last_move, tell, yes_or_no
from armt_jax.data.babi.worlds.words import ROOMS, THINGS


def is_present(rng: np.random.Generator) -> Iterator[Story]:
    """qa6."""
    return tell(rng, "qa6", House(rng, things=THINGS).happen, _ask_present)


def _ask_present(rng: np.random.Generator, events: list[Event], about: int) -> Asked | None:
    if events[about].kind != "move":
        return None
    person = events[about].person
    moved = last_move(events, person)
    return Asked(*yes_or_no(rng, person, events[moved].rooms[0], ROOMS), (moved,))
