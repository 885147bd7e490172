"""qa1: where is somebody? qa2: where is a thing? qa3: where was it before?"""

from collections.abc import Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babi.worlds.house import House
from armt_jax.data.babi.worlds.telling import Asked, Event, last, last_move, tell
from armt_jax.data.babi.worlds.words import THINGS, choose


def where_is_who(rng: np.random.Generator) -> Iterator[Story]:
    """qa1."""
    return tell(rng, "qa1", House(rng).happen, _ask_person)


def where_is_what(rng: np.random.Generator) -> Iterator[Story]:
    """qa2."""
    return tell(rng, "qa2", House(rng, things=THINGS).happen, _ask_thing)


def where_was_what(rng: np.random.Generator) -> Iterator[Story]:
    """qa3."""
    return tell(rng, "qa3", House(rng, things=THINGS, always_there=False).happen, _ask_before)


def _ask_person(rng: np.random.Generator, events: list[Event], about: int) -> Asked:
    person = events[about].person
    moved = last_move(events, person)
    return Asked(f"Where is {person}?", events[moved].rooms[0], (moved,))


def _recently_handled(events: list[Event], about: int) -> int | None:
    """When the thing of an event was last got or dropped."""
    thing = events[about].thing
    return None if thing is None else last(events, lambda event: event.thing == thing)


def _ask_thing(rng: np.random.Generator, events: list[Event], about: int) -> Asked | None:
    """It must have been dropped in a room that was named, or carried to one."""
    handled = _recently_handled(events, about)
    if handled is None:
        return None
    hand = events[handled]
    moved = last_move(events, hand.person, handled if hand.kind == "drop" else None)
    if moved is None or (hand.kind == "get" and moved < handled):
        return None
    return Asked(f"Where is the {hand.thing}?", events[moved].rooms[0], (handled, moved))


def _ask_before(rng: np.random.Generator, events: list[Event], about: int) -> Asked | None:
    """It must have been carried to two rooms in the same hands. Asked about is the last arrival in a room drawn from those it came to.

    In the published files one chance in about 250 to ask is not taken; here all are.
    """
    handled = _recently_handled(events, about)
    if handled is None:
        return None
    hand = events[handled]
    got = last(events, lambda event: event.kind == "get" and event.thing == hand.thing)
    end = handled if hand.kind == "drop" else len(events)
    moves = [i for i in range(got, end) if events[i].kind == "move" and events[i].person == hand.person]
    if len(moves) < 2:
        return None
    # The latest move of each room. The first room of all has none before it, and is drawn again.
    latest = {events[move].rooms[0]: place for place, move in enumerate(moves)}
    place = 0
    while place == 0:
        place = latest[events[choose(rng, moves)].rooms[0]]
    here, before = moves[place], moves[place - 1]
    question = f"Where was the {hand.thing} before the {events[here].rooms[0]}?"
    return Asked(question, events[before].rooms[0], (handled, here, before))
