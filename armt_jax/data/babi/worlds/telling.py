"""How a story goes: two things happen, then a question is asked if there is one to ask; and so on.

A question is about one of the last five events, each as likely of those that it can be about.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babi.worlds.words import choose

# Events between two chances to ask. So question n of a story (counted from 1) stands behind n times as many facts, at least.
BETWEEN = 2
# Events that a question may be about.
_RECENT = 5


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened and what was said of it.

    kind: "move", "get", "drop", "give"; or what was reported ("at", "not", "either").
    person: who did it, or of whom it was said.
    rooms: where they then were, if anything was said of it.
    thing: moved by hand, if any. receiver: of a gift.
    """

    sentence: str
    kind: str
    person: str
    rooms: tuple[str, ...] = ()
    thing: str | None = None
    receiver: str | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question, its answer, and the indices of the events that support it."""

    question: str
    answer: str
    supports: tuple[int, ...]


# Events so far and the index of a recent one -> what is asked about that one; None: nothing can be.
Ask = Callable[[np.random.Generator, list[Event], int], Asked | None]


def tell(rng: np.random.Generator, task: str, happen: Callable[[], Event], ask: Ask) -> Iterator[Story]:
    """The questions of one story, without end.

    Args:
        task: the stories are of.
        happen: makes the next event.
        ask: makes the question about an event.
    """
    events: list[Event] = []
    while True:
        events.extend(happen() for _ in range(BETWEEN))
        recent = np.arange(max(0, len(events) - _RECENT), len(events))
        for about in rng.permutation(recent).tolist():
            asked = ask(rng, events, about)
            if asked is not None:
                yield Story(task, tuple(event.sentence for event in events), asked.question, asked.answer, asked.supports)
                break


def last(events: list[Event], of: Callable[[Event], bool], before: int | None = None) -> int | None:
    """The index of the latest event that is so, before a given one; None: there is none."""
    for i in range(len(events) if before is None else before, 0, -1):
        if of(events[i - 1]):
            return i - 1
    return None


def last_move(events: list[Event], person: str, before: int | None = None) -> int | None:
    """When somebody last moved."""
    return last(events, lambda event: event.kind == "move" and event.person == person, before)


def yes_or_no(rng: np.random.Generator, person: str, room: str, rooms: tuple[str, ...]) -> tuple[str, str]:
    """(question, answer) whether somebody is in a room, where they are: in half of the questions, or any of the others."""
    yes = rng.random() < 0.5
    asked = room if yes else choose(rng, [other for other in rooms if other != room])
    return f"Is {person} in the {asked}?", "yes" if yes else "no"
