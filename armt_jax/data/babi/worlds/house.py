"""People who walk from room to room, and get, drop and give things.

Everyone and everything is somewhere from the beginning, which no sentence tells. A person is drawn, and tries the deed that is drawn; when
it cannot be done (to move to the room one is in, to get what is not there, to drop with empty hands), both are drawn again. So those
who have more that they can do, do more.
"""

from collections.abc import Callable

import numpy as np

from armt_jax.data.babi.worlds import words
from armt_jax.data.babi.worlds.telling import Event
from armt_jax.data.babi.worlds.words import choose


class House:
    """The state of a world: who is where with what.

    people: given to in this order, when several are in the room. rooms: there are. things: that can be carried.
    giving: whether they give. always_there: whether "there" ends each sentence about getting.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        people: tuple[str, ...] = words.PEOPLE,
        rooms: tuple[str, ...] = words.ROOMS,
        things: tuple[str, ...] = (),
        giving: bool = False,
        always_there: bool = True,
    ):
        self.rng, self.people, self.rooms, self.always_there = rng, people, rooms, always_there
        self.place = {person: choose(rng, rooms) for person in people}
        self.lying = {thing: choose(rng, rooms) for thing in things}
        self.carrying: dict[str, list[str]] = {person: [] for person in people}
        self.deeds: list[Callable[[str], Event | None]] = [self.move]
        if things:
            self.deeds += [self.get, self.drop]
        if giving:
            self.deeds += [self.give]

    def happen(self) -> Event:
        """The next thing that somebody does."""
        while True:
            person = choose(self.rng, self.people)
            event = choose(self.rng, self.deeds)(person)
            if event is not None:
                return event

    def move(self, person: str) -> Event | None:
        room = choose(self.rng, self.rooms)
        if room == self.place[person]:
            return None
        self.place[person] = room
        return Event(words.moved(self.rng, person, room), "move", person, (room,))

    def get(self, person: str) -> Event | None:
        here = [thing for thing, room in self.lying.items() if room == self.place[person]]
        if not here:
            return None
        thing = choose(self.rng, here)
        del self.lying[thing]
        self.carrying[person].append(thing)
        return Event(words.got(self.rng, person, thing, self.always_there), "get", person, thing=thing)

    def drop(self, person: str) -> Event | None:
        if not self.carrying[person]:
            return None
        thing = choose(self.rng, self.carrying[person])
        self.carrying[person].remove(thing)
        self.lying[thing] = self.place[person]
        return Event(words.dropped(self.rng, person, thing), "drop", person, thing=thing)

    def give(self, person: str) -> Event | None:
        """Not by the person drawn: of everything in somebody's hands, the first in the alphabet that can be given is."""
        holders = {thing: holder for holder, things in self.carrying.items() for thing in things}
        for thing, holder in sorted(holders.items()):
            for receiver in self.people:
                if receiver != holder and self.place[receiver] == self.place[holder]:
                    self.carrying[holder].remove(thing)
                    self.carrying[receiver].append(thing)
                    return Event(words.gave(self.rng, holder, thing, receiver), "give", holder, thing=thing, receiver=receiver)
        return None
