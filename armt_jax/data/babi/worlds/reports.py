"""qa9: where somebody is not. qa10: where somebody may be.

Half of the moves are told as such, a quarter as where the person now is, and a quarter in the way of the task.
"""

from collections.abc import Callable, Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babi.worlds.house import House
from armt_jax.data.babi.worlds.telling import Asked, Event, last, tell, yes_or_no
from armt_jax.data.babi.worlds.words import ROOMS, choose

_PEOPLE_10 = ("Fred", "Mary", "Bill", "Julie")
_ROOMS_10 = ("bedroom", "kitchen", "school", "office", "park", "cinema")

_Vague = Callable[[np.random.Generator, str, str, str], Event]


def is_not_there(rng: np.random.Generator) -> Iterator[Story]:
    """qa9."""
    house = House(rng)
    return tell(rng, "qa9", lambda: _report(house, _not), _ask_not)


def may_be_there(rng: np.random.Generator) -> Iterator[Story]:
    """qa10."""
    house = House(rng, people=_PEOPLE_10, rooms=_ROOMS_10)
    return tell(rng, "qa10", lambda: _report(house, _either), _ask_either)


def _report(house: House, vague: _Vague) -> Event:
    """Somebody moves, and it is told in one of the three ways."""
    before = dict(house.place)
    event = house.happen()
    person, (room,) = event.person, event.rooms
    way = house.rng.random()
    if way < 0.5:
        return event
    if way < 0.75:
        return Event(f"{person} is in the {room}.", "at", person, (room,))
    return vague(house.rng, person, before[person], room)


def _not(rng: np.random.Generator, person: str, before: str, room: str) -> Event:
    """Only what was left is told."""
    return Event(f"{person} is {choose(rng, ('not', 'no longer'))} in the {before}.", "not", person, (before,))


def _either(rng: np.random.Generator, person: str, before: str, room: str) -> Event:
    """The room and any other, before or behind; "either in the park or the park" is found in the published files as well."""
    rooms = [room, choose(rng, _ROOMS_10)]
    rng.shuffle(rooms)
    return Event(f"{person} is either in the {rooms[0]} or the {rooms[1]}.", "either", person, (rooms[0], rooms[1]))


def _last_report(events: list[Event], about: int) -> int:
    person = events[about].person
    return last(events, lambda event: event.person == person)


def _ask_not(rng: np.random.Generator, events: list[Event], about: int) -> Asked:
    told = _last_report(events, about)
    report = events[told]
    if report.kind == "not":
        return Asked(f"Is {report.person} in the {report.rooms[0]}?", "no", (told,))
    return Asked(*yes_or_no(rng, report.person, report.rooms[0], ROOMS), (told,))


def _ask_either(rng: np.random.Generator, events: list[Event], about: int) -> Asked:
    """Whether in the room where they are, or in any other: "maybe", where that was said to be possible."""
    told = _last_report(events, about)
    report = events[told]
    if report.kind != "either":
        return Asked(*yes_or_no(rng, report.person, report.rooms[0], _ROOMS_10), (told,))
    is_in = choose(rng, report.rooms)
    asked = is_in if rng.random() < 0.5 else choose(rng, [room for room in _ROOMS_10 if room != is_in])
    return Asked(f"Is {report.person} in the {asked}?", "maybe" if asked in report.rooms else "no", (told,))
