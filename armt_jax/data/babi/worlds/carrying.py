"""qa7: how many things is somebody carrying? qa8: which?"""

from collections.abc import Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babi.worlds.house import House
from armt_jax.data.babi.worlds.telling import Asked, Event, tell
from armt_jax.data.babi.worlds.words import THINGS

# Who is given to first, when several are in the room.
_PEOPLE = ("John", "Mary", "Sandra", "Daniel")
_NUMBERS = ("none", "one", "two", "three")


def how_many(rng: np.random.Generator) -> Iterator[Story]:
    """qa7."""
    return tell(rng, "qa7", House(rng, people=_PEOPLE, things=THINGS, giving=True).happen, _ask_number)


def which_things(rng: np.random.Generator) -> Iterator[Story]:
    """qa8."""
    return tell(rng, "qa8", House(rng, things=THINGS).happen, _ask_list)


def _hands(events: list[Event], person: str) -> dict[str, list[int]]:
    """When each thing came into or left these hands, in the order of the first times. One is held after an odd number of times."""
    found: dict[str, list[int]] = {}
    for i, event in enumerate(events):
        if event.thing is not None and person in (event.person, event.receiver):
            found.setdefault(event.thing, []).append(i)
    return found


def _ask_number(rng: np.random.Generator, events: list[Event], about: int) -> Asked | None:
    if events[about].thing is None:
        return None
    person = events[about].person
    hands = _hands(events, person)
    held = sum(len(times) % 2 for times in hands.values())
    supports = tuple(sorted(i for times in hands.values() for i in times))
    return Asked(f"How many objects is {person} carrying?", _NUMBERS[held], supports)


def _ask_list(rng: np.random.Generator, events: list[Event], about: int) -> Asked | None:
    if events[about].thing is None:
        return None
    person = events[about].person
    hands = _hands(events, person)
    held = [thing for thing, times in hands.items() if len(times) % 2]
    supports = tuple(i for times in hands.values() for i in times)
    return Asked(f"What is {person} carrying?", ",".join(held) or "nothing", supports)
