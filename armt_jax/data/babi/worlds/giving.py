"""qa5: who gave what to whom?"""

from collections.abc import Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babi.worlds.house import House
from armt_jax.data.babi.worlds.telling import Asked, Event, last, tell
from armt_jax.data.babi.worlds.words import THINGS, choose

_PEOPLE = ("Mary", "Fred", "Bill", "Jeff")
# (question, answer). The first is asked twice as often as each other one.
_FORMS = (
    ("What did {0.person} give to {0.receiver}?", "{0.thing}"),
    ("What did {0.person} give to {0.receiver}?", "{0.thing}"),
    ("Who gave the {0.thing}?", "{0.person}"),
    ("Who gave the {0.thing} to {0.receiver}?", "{0.person}"),
    ("Who received the {0.thing}?", "{0.receiver}"),
    ("Who did {0.person} give the {0.thing} to?", "{0.receiver}"),
)


def who_gave_what(rng: np.random.Generator) -> Iterator[Story]:
    """qa5."""
    return tell(rng, "qa5", House(rng, people=_PEOPLE, things=THINGS, giving=True).happen, _ask_gift)


def _ask_gift(rng: np.random.Generator, events: list[Event], about: int) -> Asked | None:
    """It must be the last time that the thing was given."""
    gift = events[about]
    if gift.kind != "give" or last(events, lambda event: event.kind == "give" and event.thing == gift.thing) != about:
        return None
    question, answer = choose(rng, _FORMS)
    return Asked(question.format(gift), answer.format(gift), (about,))
