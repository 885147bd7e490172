"""What the worlds talk about, and the sentences they say it in. The lists are the vocabulary of the published files, word for word."""

from collections.abc import Sequence

import numpy as np

PEOPLE = ("Mary", "John", "Sandra", "Daniel")
ROOMS = ("bathroom", "hallway", "garden", "office", "kitchen", "bedroom")
THINGS = ("milk", "football", "apple")

_MOVED = ("moved to", "went to", "went back to", "travelled to", "journeyed to")
_GOT = ("got", "took", "grabbed", "picked up")
_DROPPED = ("dropped", "left", "discarded", "put down")
_GAVE = ("gave", "handed", "passed")
# How often "there" ends a sentence that may go without.
_THERE = 0.2


def choose(rng: np.random.Generator, options: Sequence):
    """One of the options, each as likely."""
    return options[rng.integers(len(options))]


def moved(rng: np.random.Generator, person: str, room: str) -> str:
    return f"{person} {choose(rng, _MOVED)} the {room}."


def got(rng: np.random.Generator, person: str, thing: str, always_there: bool) -> str:
    there = " there" if always_there else _there(rng)
    return f"{person} {choose(rng, _GOT)} the {thing}{there}."


def dropped(rng: np.random.Generator, person: str, thing: str) -> str:
    return f"{person} {choose(rng, _DROPPED)} the {thing}{_there(rng)}."


def gave(rng: np.random.Generator, person: str, thing: str, receiver: str) -> str:
    return f"{person} {choose(rng, _GAVE)} the {thing} to {receiver}."


def _there(rng: np.random.Generator) -> str:
    return " there" if rng.random() < _THERE else ""
