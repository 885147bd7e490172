"""What every source of batches from a text shares. A batch is a pure function of (seed, split, step) and the rows asked for."""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np

from armt_jax.data.cache import SplitCounts, TokenisedText
from armt_jax.data.corpus import CorpusConfig
from armt_jax.data.metrics import PUBLISHED_AS, text_metrics
from armt_jax.data.tokenizers import Tokenizer
from armt_jax.tasks.base import Batch, BatchSource, require_batch, require_int


class Places(NamedTuple):
    """Where the rows of a batch lie in their split.

    first_B: int64. Position of the first token of each row.
    weights_BxN: float32. Loss weight of each prediction.
    """

    first_B: np.ndarray
    weights_BxN: np.ndarray


@dataclasses.dataclass(frozen=True)
class TextSource(BatchSource):
    """Rows of `segments` segments of `segment_length` tokens of a text.

    Position p of a split of n tokens predicts the token at p + 1, so n - 1 predictions are made in all ("targets"); the very first token is
    predicted by nobody. Rows that run over the end of the text go on at its start, with weight 0 where they predict across.

    Attributes:
        corpus: which text, under which tokenizer.
        segment_length: tokens in a segment. segments: in a row.
    """

    size_name: ClassVar[str] = "segments"

    corpus: CorpusConfig
    segment_length: int = 128
    segments: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.corpus, CorpusConfig):
            raise ValueError(f"corpus={self.corpus!r} must be a CorpusConfig, like CorpusConfig('enwik8', path=...)")
        require_int("segment_length", self.segment_length, 1)
        require_int("segments", self.segments, 1)

    @abc.abstractmethod
    def places(self, seed: int, step: int, batch_size: int, split: str, rows_B: np.ndarray) -> Places:
        """Where rows_B of the global batch lie."""

    @abc.abstractmethod
    def num_steps(self, batch_size: int, split: str) -> int:
        """Steps that see every target of the split: on "validation" and "test" each exactly once, and no step may follow; training goes on
        with the next epoch."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.open().tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def fingerprint(self) -> str:
        """Of the data and the tokenizer; a checkpoint keeps it, and `cache.check_fingerprint` compares."""
        return self.corpus.open().fingerprint

    def figures(self, loss: float, weight: float, split: str) -> dict[str, float]:
        """Perplexity per token, and what the corpus's published figures are in (`metrics.PUBLISHED_AS`)."""
        found = text_metrics(loss, weight, self.counts(split))
        return {name: found[name] for name in ("perplexity", PUBLISHED_AS[self.corpus.name])}

    @property
    def num_answers(self) -> int:
        return 0

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.segments,)

    def row_length(self, size: int) -> int:
        return size * self.segment_length

    def largest(self) -> "TextSource":
        return self

    def text(self, split: str) -> TokenisedText:
        """Raises DataError when the corpus was opened without this split."""
        return self.corpus.open().split(split)

    def counts(self, split: str) -> SplitCounts:
        """Tokens, words and bytes of a split, to convert losses with (see `metrics`)."""
        return self.text(split).counts

    def num_targets(self, split: str) -> int:
        return len(self.text(split).ids_N) - 1

    @property
    def has_resets(self) -> bool:
        """Whether memories are emptied on the way."""
        return False

    def resets(self, split: str, first_B: np.ndarray) -> np.ndarray | None:
        """reset_BxS of rows that begin at first_B; None: never."""
        return None

    def batch(self, seed: int, step: int, batch_size: int, split: str = "train", rows: slice | None = None) -> Batch:
        """As in BatchSource. Raises ValueError for a step after the end of "validation" or "test"."""
        require_batch(seed, step, batch_size, split, rows)
        if split != "train" and step >= (steps := self.num_steps(batch_size, split)):
            raise ValueError(
                f"step={step} is past the end of split {split!r}, which {steps} steps of {batch_size} rows read once: stop there"
            )
        ids_N = self.text(split).ids_N
        rows_B = np.arange(batch_size, dtype=np.int64)[slice(None) if rows is None else rows]
        first_B, weights_BxN = self.places(seed, step, batch_size, split, rows_B)
        positions = (first_B[:, None] + np.arange(self.row_length(self.segments) + 1)) % len(ids_N)
        tokens = ids_N[positions].astype(np.int32)
        # The token after the last is the first: nothing precedes it, so nothing predicts it.
        weights_BxN = weights_BxN * (positions[:, 1:] != 0)
        return Batch(
            tokens_BxN=np.ascontiguousarray(tokens[:, :-1]),
            targets_BxN=np.ascontiguousarray(tokens[:, 1:]),
            weights_BxN=weights_BxN.astype(np.float32),
            answers_BxN=np.zeros(weights_BxN.shape, np.int32),
            reset_BxS=self.resets(split, first_B),
        )
