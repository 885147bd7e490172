"""Sentences with every word of the generated stories (qa1 to qa10), for a tokenizer that is trained on books.

Books say "Sandra", "hallway" and "journeyed" seldom or never, so pieces made from them alone would split the words that all questions are
about. Mixed into a few hundredths of the training text, each becomes a piece of its own.
"""

import functools
import hashlib
import re
from collections.abc import Iterator

from armt_jax.data.babi.worlds import GENERATED, generate

# By story 20 of each task all words have occurred but "three": qa7 first says it in story 718.
_TOLD = (*((task, index) for task in GENERATED for index in range(20)), ("qa7", 718))
# Of the bytes of the text. What is less than one round of the sentences counts as one round.
SHARE = 0.04


def words(sentence: str) -> list[str]:
    return re.findall(r"\w+", sentence)


@functools.cache
def worded() -> tuple[str, ...]:
    """Always the same lines: sentences, and questions with their answers, each with a word that those before it lack; and all the
    words in a row. A space stands before each, as before facts in running text.
    """
    seen, kept = {}, []
    for sentence in _told():
        if new := dict.fromkeys(word for word in words(sentence) if word not in seen):
            seen |= new
            kept.append(f" {sentence}")
    # SentencePiece tries as a piece what two different words of the text share, and cuts words at spaces alone: "journeyed" comes into
    # consideration where "journeyed," is another word.
    return (*kept, f" {', '.join(seen)}.")


def _told() -> Iterator[str]:
    for task, index in _TOLD:
        story = generate(task, 0, index)
        yield from story.facts
        yield f"{story.question} {story.answer}"


def training_lines(text_bytes: int) -> list[bytes]:
    """The sentences, as often as makes SHARE of a text of so many bytes; copies of one stand together, so every n-th line has all."""
    lines = [sentence.encode() for sentence in worded()]
    rounds = max(1, int(SHARE * text_bytes) // sum(map(len, lines)))
    return [line for line in lines for _ in range(rounds)]


def fingerprint() -> str:
    """Of the sentences and their share."""
    return hashlib.sha256(repr((worded(), SHARE)).encode()).hexdigest()[:16]
