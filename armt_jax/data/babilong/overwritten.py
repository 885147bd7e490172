"""Text that is overwritten here and there, the same however it is read."""

import abc
import dataclasses

import numpy as np

from armt_jax.data.babilong.background import Passages


@dataclasses.dataclass(frozen=True, eq=False)
class Overwritten(Passages, abc.ABC):
    """Passages with pieces of something else in every `every` places, drawn from `seed` and the place alone. Lengths, and places, stay.

    Attributes:
        under: the text itself.
    """

    under: Passages
    every: int
    seed: int

    @classmethod
    def over(cls, passages: Passages, **fields) -> "Overwritten":
        known = {field.name: getattr(passages, field.name) for field in dataclasses.fields(Passages)}
        return cls(**known, under=passages, **fields)

    @abc.abstractmethod
    def pieces(self, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
        """(places from the first one's, ids) of what stands in one block of `every` places; none where the text stays."""

    def read(self, start: int, stop: int) -> np.ndarray:
        out = self.under.read(start, stop)
        for block in range(start // self.every, -(-stop // self.every)):
            for place, ids in self._placed(block):
                begin, end = max(place, start), min(place + len(ids), stop)
                if begin < end:
                    out[begin - start : end - start] = ids[begin - place : end - place]
        return out

    def _placed(self, block: int) -> list[tuple[int, np.ndarray]]:
        """(place, ids) in the places [block * every, (block + 1) * every)."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, block])))
        pieces = self.pieces(rng)
        if not pieces:
            return []
        length = pieces[-1][0] + len(pieces[-1][1])
        first = block * self.every + int(rng.integers(self.every - length + 1))
        return [(first + at, ids) for at, ids in pieces]
