"""Cutting text into sentences by a rule, in bounded memory.

1. A blank line ends a paragraph, and a paragraph ends a sentence. Inside it every run of white space is one space.
2. A sentence ends after "." "!" "?" or "…" (with the quotes and brackets that close behind them), where a space follows and then anything
   but a lower-case letter, quotes and brackets that open not counted.
3. A single full stop ends nothing after one of ABBREVIATIONS or after initials: "Mr. Bennet", "J. Smith", "T.M. Newson". I is no initial.

A paragraph longer than LONGEST_PARAGRAPH bytes is cut at a space, and a sentence with it.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from armt_jax.data.errors import InvalidText
from armt_jax.data.tokenizers.base import utf8

RULE = "sentences 1"
"""Part of the fingerprint of everything made with the rule: a changed rule gets another name."""

LONGEST_PARAGRAPH = 1 << 22
_TITLES = "Mr Mrs Ms Messrs Mme Mlle Dr Prof Rev Hon St Mt Gen Col Capt Lieut Lt Maj Sergt Sgt Gov Sen Rep Jr Sr Esq"
ABBREVIATIONS = frozenset(f"{_TITLES} Vol vol viz vs cf i.e e.g".split())

_BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")
_END = re.compile(r"([.!?…]+)[\"'”’»)\]_]* ")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_OPENING = "\"'“‘«([_*—-"


class Sentence(NamedTuple):
    """place: a position in the text, in bytes, that is at most that of the sentence and after that of the one before."""

    place: int
    text: str


def sentences(parts: Iterable[bytes]) -> Iterator[Sentence]:
    """The sentences of a text (UTF-8) that comes in parts, which may end anywhere.

    Raises:
        InvalidText: it is not UTF-8.
    """
    for start, paragraph in _paragraphs(parts):
        try:
            text = " ".join(utf8(paragraph).split())
        except InvalidText as e:
            raise InvalidText(start + e.offset, e.reason) from None
        start += len(paragraph) - len(paragraph.lstrip())
        begin = 0
        for end in _ends(text):
            yield Sentence(start + begin, text[begin:end].rstrip())
            begin = end
        if begin < len(text):
            yield Sentence(start + begin, text[begin:])


def _paragraphs(parts: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(place, text) of the paragraphs."""
    waiting, place = b"", 0
    for part in parts:
        waiting += part
        begin = 0
        for blank in _BLANK_LINE.finditer(waiting):
            yield place + begin, waiting[begin : blank.start()]
            begin = blank.end()
        while len(waiting) - begin > LONGEST_PARAGRAPH:
            space = max(waiting.rfind(mark, begin + 1, begin + LONGEST_PARAGRAPH) for mark in (b" ", b"\n"))
            end = space if space > 0 else _between_characters(waiting, begin + LONGEST_PARAGRAPH)
            yield place + begin, waiting[begin:end]
            begin = end
        waiting, place = waiting[begin:], place + begin
    yield place, waiting


def _between_characters(data: bytes, end: int) -> int:
    while data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _ends(text: str) -> Iterator[int]:
    """Where sentences begin that are not the first."""
    for mark in _END.finditer(text):
        rest = text[mark.end() : mark.end() + 8].lstrip(_OPENING)
        if rest[:1].islower():
            continue
        if mark[1] == "." and _is_abbreviated(text, mark.start()):
            continue
        yield mark.end()


def _is_abbreviated(text: str, stop: int) -> bool:
    word = text[text.rfind(" ", 0, stop) + 1 : stop].lstrip(_OPENING)
    return word in ABBREVIATIONS or (_INITIALS.fullmatch(word) is not None and word.isupper() and word != "I")
