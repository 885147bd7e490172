"""Text with pieces of facts in it that are no facts: what a memory must learn to leave alone.

    Mary went | it was a dark and | to the garden. | stormy night, | John moved to and the rain the kitchen.

Books name the same people and rooms now and then: of 41 of them one segment of 512 tokens in 140 had both, so 50 million tokens have
hundreds of them, and a memory that writes wherever a name meets a room has lost the facts by then. Rows that one trains on are too
short for a model to be told so. Here they are told often.

Of every `every` tokens some are overwritten with a piece of a fact: its beginning (two thirds at most, without what is said last), its end
(without who it is about), or the beginning of one and the end of another with text in between. Lengths and places stay as they are.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from armt_jax.data.babilong.background import Passages
from armt_jax.data.babilong.overwritten import Overwritten

# Tokens of text between two pieces, at most.
GAP = 12


def shortest_block(facts: Sequence[np.ndarray]) -> int:
    """Tokens that a piece may take, and so the fewest that `every` may be."""
    return 2 * max(map(len, facts)) + GAP


@dataclasses.dataclass(frozen=True, eq=False)
class TornPassages(Overwritten):
    """Passages with a piece of one of `facts` in every `every` places."""

    facts: tuple[np.ndarray, ...]

    def pieces(self, rng):
        kind, one, other = rng.integers([3, len(self.facts), len(self.facts)])
        beginning, end = _beginning(rng, self.facts[one]), _end(rng, self.facts[other])
        gap = int(rng.integers(1, GAP + 1))
        return [[(0, beginning)], [(0, end)], [(0, beginning), (len(beginning) + gap, end)]][kind]


def _beginning(rng: np.random.Generator, fact: np.ndarray) -> np.ndarray:
    """Two thirds at most: not what is said last."""
    return fact[: int(rng.integers(1, len(fact) - len(fact) // 3 + 1))]


def _end(rng: np.random.Generator, fact: np.ndarray) -> np.ndarray:
    """Two thirds at most: not who it is about. More than the full stop."""
    return fact[int(rng.integers(max(len(fact) // 3, 1), len(fact) - 1)) :]


def torn(passages: Passages, facts: Sequence[np.ndarray], every: int, seed: int) -> TornPassages:
    return TornPassages.over(passages, every=every, seed=seed, facts=tuple(facts))
