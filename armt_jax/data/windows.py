"""Rows as windows, each read with a fresh memory: a block of text to predict, after the history that precedes it.

The targets of a split are cut into blocks of `stride`; a window ends with its block. Blocks near the start of the text have less history
than fits, there the window begins with the text and reads on past its block with weight 0; where the last block is short, it has more.

Training draws every window once an epoch, in an order shuffled anew by (seed, epoch). Validation and test take them in order: with
overlap that is the sliding-window evaluation, every target counted exactly once.
"""

import dataclasses
import functools
from typing import ClassVar

import numpy as np

from armt_jax.data.errors import DataError
from armt_jax.data.text import Places, TextSource
from armt_jax.tasks.base import SPLIT_IDS, require_int

LOSSES = ("block", "window")


@dataclasses.dataclass(frozen=True)
class Windows(TextSource):
    """See TextSource. segments=8 with a stride of one segment: 7 segments of history and one to predict, as in ARMT's published scripts.

    Attributes:
        stride: targets in a block, at most a row. None: one segment.
        loss: what training weighs: "block", or "window", history too. (Evaluation always weighs the block.)
    """

    name: ClassVar[str] = "windows"

    stride: int | None = None
    loss: str = "block"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is not None:
            require_int("stride", self.stride, 1, self.row_length(self.segments))
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is unknown: use {' or '.join(map(repr, LOSSES))}")

    @property
    def block(self) -> int:
        return self.segment_length if self.stride is None else self.stride

    def num_windows(self, split: str) -> int:
        targets, length = self.num_targets(split), self.row_length(self.segments)
        if targets < length:
            raise DataError(f"split {split!r} has {targets} targets, fewer than the {length} of a window: lower segments or segment_length")
        return -(-targets // self.block)

    def num_steps(self, batch_size: int, split: str) -> int:
        return -(-self.num_windows(split) // batch_size)

    def places(self, seed: int, step: int, batch_size: int, split: str, rows_B: np.ndarray) -> Places:
        windows = self.num_windows(split)
        numbers_B = step * batch_size + rows_B
        if split == "train":
            epochs_B, at_B = np.divmod(numbers_B, windows)
            orders = {epoch: _order(seed, split, int(epoch), windows) for epoch in np.unique(epochs_B)}
            windows_B = np.array([orders[epoch][at] for epoch, at in zip(epochs_B, at_B)], np.int64)
        else:
            windows_B = np.minimum(numbers_B, windows - 1)
        begin_B = windows_B * self.block
        end_B = np.minimum(begin_B + self.block, self.num_targets(split))
        first_B = np.maximum(end_B - self.row_length(self.segments), 0)
        positions = first_B[:, None] + np.arange(self.row_length(self.segments))
        weights_BxN = positions < end_B[:, None]
        if split != "train" or self.loss == "block":
            weights_BxN &= positions >= begin_B[:, None]
        if split != "train":
            weights_BxN &= (numbers_B < windows)[:, None]
        return Places(first_B, weights_BxN.astype(np.float32))


@functools.lru_cache(maxsize=4)
def _order(seed: int, split: str, epoch: int, windows: int) -> np.ndarray:
    return np.random.default_rng([seed, SPLIT_IDS[split], epoch]).permutation(windows)
