"""Text that says the words of the facts often, and tells no fact: what a memory must learn to leave alone.

    ... he looked into the garden and laughed ...        ... poor Mary had been ill for a week ...

Books say "garden" and "bedroom", "John" and "Mary", in their own sentences, too; a memory that is trained on short rows hardly meets them,
and writes wherever one stands. In a million tokens it has lost its facts by then: with ARMT of configs/babilong_qa1_cpu.py the segments
that moved a memory most all said a room, and none said who was there (docs/results/babilong.md).

In every `every` tokens some are overwritten with a few tokens of the same text around such a word, and the word is replaced by another of
its kind: books have no "hallway". Kinds are the words that facts begin and end with (of qa1, people and rooms). What has both kinds in it
could tell a fact, and is left out. Where the text has none of the words it stays as it is.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from armt_jax.data.babilong.background import Passages
from armt_jax.data.babilong.overwritten import Overwritten
from armt_jax.data.babilong.tokens import Codec

# Tokens around a word: so many before it at most, and as many behind it.
AROUND = 12
# Of a large library the beginning is enough: 64 million tokens have some ten thousand such places.
SEARCHED = 1 << 26
_TRIES = 4

Kinds = tuple[tuple[tuple[int, ...], ...], ...]


def shortest_block(kinds: Kinds) -> int:
    """Tokens that a piece may take, and so the fewest that `every` may be."""
    return 2 * AROUND + max(len(word) for kind in kinds for word in kind)


def kinds_of(facts: Sequence[str], codec: Codec) -> Kinds:
    """Ids of the words that facts begin with, and of those that they end with."""
    ends = zip(*((words[0], words[-1]) for words in (re.findall(r"\w+", fact) for fact in facts)), strict=True)
    return tuple(tuple(tuple(codec.fact(word).tolist()) for word in sorted(set(words))) for words in ends)


@dataclasses.dataclass(frozen=True, eq=False)
class NamedPassages(Overwritten):
    """Passages with a word of one of `kinds`, among a few tokens that stand around such a word in the text, in every `every` places."""

    kinds: Kinds

    def pieces(self, rng):
        for _ in range(_TRIES):
            kind = int(rng.integers(len(self.kinds)))
            places_P, ends_P = self._places(kind)
            if not len(places_P):
                continue
            at = int(rng.integers(len(places_P)))
            place, end = int(places_P[at]), int(ends_P[at])
            before, behind = (int(n) for n in rng.integers(1, AROUND + 1, size=2))
            first, last = max(place - before, 0), min(end + behind, self.tokens)
            if any(_any_within(*self._places(other), first, last) for other in range(len(self.kinds)) if other != kind):
                continue
            words = self.kinds[kind]
            word = np.array(words[int(rng.integers(len(words)))], np.int32)
            ids = self.under.read(first, last)
            return [(0, np.concatenate([ids[: place - first], word, ids[end - first :]]))]
        return []

    def _places(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        return _places(self.file, self.dtype, self.tokens, self.kinds[kind])


def named(passages: Passages, kinds: Kinds, every: int, seed: int) -> NamedPassages:
    return NamedPassages.over(passages, every=every, seed=seed, kinds=kinds)


@functools.lru_cache(maxsize=64)
def _places(file: Path, dtype: np.dtype, tokens: int, words: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """(beginning, end) of every occurrence of the words in the text, in order."""
    ids = np.fromfile(file, dtype, min(tokens, SEARCHED))
    found = [(_found(ids, word), len(word)) for word in words]
    places_P = np.concatenate([places for places, _ in found])
    ends_P = np.concatenate([places + length for places, length in found])
    order = np.lexsort((ends_P, places_P))
    return places_P[order], ends_P[order]


def _any_within(places_P: np.ndarray, ends_P: np.ndarray, first: int, last: int) -> bool:
    """Whether an occurrence has a token among [first, last), be it cut."""
    began = int(np.searchsorted(places_P, last))
    return bool(began) and ends_P[began - 1] > first


def _found(ids_N: np.ndarray, word: Sequence[int]) -> np.ndarray:
    """Where a word begins."""
    starts = len(ids_N) - len(word) + 1
    if starts < 1:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.logical_and.reduce([ids_N[i : starts + i] == one for i, one in enumerate(word)]))
