"""Sentences and questions of qa1 to qa10 as tuples of words. Written from the published files alone; shares nothing with the generator."""

import re
from typing import NamedTuple

from armt_jax.data.babi.story import Story
from armt_jax.data.errors import DataError

_WHO, _WHAT, _ROOM = r"(?P<who>[A-Z]\w*)", r"(?P<what>\w+)", r"(?P<room>\w+)"
_SENTENCES = {
    "move": rf"{_WHO} (?:moved|went|went back|travelled|journeyed) to the {_ROOM}\.",
    "at": rf"{_WHO} is in the {_ROOM}\.",
    "not": rf"{_WHO} is (?:not|no longer) in the {_ROOM}\.",
    "either": rf"{_WHO} is either in the {_ROOM} or the (?P<other>\w+)\.",
    "get": rf"{_WHO} (?:got|took|grabbed|picked up) the {_WHAT}(?: there)?\.",
    "drop": rf"{_WHO} (?:dropped|left|discarded|put down) the {_WHAT}(?: there)?\.",
    "give": rf"{_WHO} (?:gave|handed|passed) the {_WHAT} to (?P<to>[A-Z]\w*)\.",
    "beside": rf"The {_ROOM} is (?P<way>north|south|east|west) of the (?P<other>\w+)\.",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _SENTENCES.items()}


class Sentence(NamedTuple):
    """kind: as in the table above; the rest: the words found, "" where there is none."""

    kind: str
    who: str = ""
    what: str = ""
    room: str = ""
    other: str = ""
    to: str = ""
    way: str = ""


def read(story: Story) -> list[Sentence]:
    """Raises DataError for a sentence that is none of qa1 to qa10."""
    return [_sentence(fact) for fact in story.facts]


def ask(story: Story, *patterns: str) -> tuple[int, dict[str, str]]:
    """(which of the patterns the question has, the words it names). Raises DataError when it has none."""
    for i, pattern in enumerate(patterns):
        if match := re.fullmatch(pattern, story.question):
            return i, match.groupdict()
    raise DataError(f"question {story.question!r} is none of task {story.task!r}: it must read like {patterns[0]!r}")


def cannot_answer(story: Story) -> DataError:
    return DataError(f"the {len(story.facts)} facts do not answer {story.question!r} (task {story.task!r})")


def _sentence(fact: str) -> Sentence:
    for kind, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(fact):
            return Sentence(kind, **match.groupdict())
    raise DataError(f"sentence {fact!r} is none of qa1 to qa10: the solvers read no other")
