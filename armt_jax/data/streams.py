"""Rows as contiguous streams: what a row reads next follows on what it read last, and its memory state is carried along.

Training: the text is a ring, and the B rows start at B places spread evenly over it. Row r reads on from its place without end, so that
after an epoch every token was read as often as any other and none was left over. `seed` turns the ring, so runs cut segments elsewhere.

Validation and test: row r reads the r-th of B equal parts from its start, with an empty memory, and every target counts exactly once.
With one row that is the stateful evaluation of the whole text. Where a part ends inside a batch, the row reads on with weight 0.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from armt_jax.data.text import Places, TextSource

RESETS = ("never", "documents")


@dataclasses.dataclass(frozen=True)
class ContiguousStreams(TextSource):
    """See TextSource.

    Attributes:
        resets_at: "never", or "documents": a row's memory is emptied before every segment in which a document begins. (Documents begin
            anywhere, so the segment may hold the end of the one before.)
    """

    name: ClassVar[str] = "contiguous"
    carries_state: ClassVar[bool] = True

    resets_at: str = "never"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resets_at not in RESETS:
            raise ValueError(f"resets_at={self.resets_at!r} is unknown: use {' or '.join(map(repr, RESETS))}")

    @property
    def has_resets(self) -> bool:
        return self.resets_at != "never"

    def num_steps(self, batch_size: int, split: str) -> int:
        longest = -(-self.num_targets(split) // batch_size)
        return -(-longest // self.row_length(self.segments))

    def places(self, seed: int, step: int, batch_size: int, split: str, rows_B: np.ndarray) -> Places:
        length = self.row_length(self.segments)
        begin = step * length
        if split == "train":
            tokens = len(self.text(split).ids_N)
            turn = int(np.random.default_rng(seed).integers(tokens))
            first_B = (turn + rows_B * tokens // batch_size + begin) % tokens
            return Places(first_B, np.ones((len(rows_B), length), np.float32))
        targets = self.num_targets(split)
        first_B = rows_B * targets // batch_size + begin
        stop_B = (rows_B + 1) * targets // batch_size
        return Places(first_B, (first_B[:, None] + np.arange(length) < stop_B[:, None]).astype(np.float32))

    def resets(self, split: str, first_B: np.ndarray) -> np.ndarray | None:
        if self.resets_at == "never":
            return None
        text = self.text(split)
        tokens = len(text.ids_N)
        edges = first_B[:, None] + np.arange(self.segments + 1) * self.segment_length
        # Document starts before an edge, on a ring that may be passed more than once.
        before = edges // tokens * len(text.starts) + np.searchsorted(text.starts, edges % tokens)
        return np.diff(before, axis=1) > 0
