"""What every task provides: batches as a pure function of (seed, split, step), and the exact-match metric.

A task is a frozen dataclass whose fields are its config section. Its rows are generated on the host with numpy.
One batch is drawn, whole, from one generator keyed with (seed, split, step); a host then keeps its own rows. So the
global batch is the same on any number of hosts, and resuming at step n needs nothing but n.
"""

import abc
import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

# Part of the key of the random stream: renumbering an entry changes the data of every run.
SPLIT_IDS = {"train": 0, "validation": 1, "test": 2}

# SeedSequence reads its entropy as 32-bit words: a larger seed would spill into the word that holds the split.
_WORD = 2**32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of token ids with what to predict at each position, a pytree.

    tokens_BxN    int32. The model's input.
    targets_BxN   int32. What position i must predict: the next token. The last one may be any id, its weight is then 0.
    weights_BxN   float32. Loss weight of the prediction made at this position.
    answers_BxN   int32. 0: this position is not part of an answer. g >= 1: it predicts a part of answer g of its row.
                  An answer is an exact match when every position of its group is predicted right.
    valid_BxN     bool, or None when nothing is padded. Padding is at the right end of a row, or of a segment.
    reset_BxS     bool, or None when no memory is emptied on the way. The row's memory is emptied before segment s.
    peek_BxS      bool, or None when all is kept. Segment s is read, and leaves the row's memory as it was.
    """

    tokens_BxN: np.ndarray | jax.Array
    targets_BxN: np.ndarray | jax.Array
    weights_BxN: np.ndarray | jax.Array
    answers_BxN: np.ndarray | jax.Array
    valid_BxN: np.ndarray | jax.Array | None = None
    reset_BxS: np.ndarray | jax.Array | None = None
    peek_BxS: np.ndarray | jax.Array | None = None


class BatchSource(abc.ABC):
    """Where a run's batches come from. Subclasses are frozen dataclasses that check their fields in `__post_init__`.

    carries_state: row r of the batch of step n + 1 goes on where row r of step n ended, so the memory state is kept between batches of one
        split. False: every batch starts with empty memories.
    """

    name: ClassVar[str]
    size_name: ClassVar[str]  # what `size` counts, for the x axis of plots
    carries_state: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The vocabulary a model needs: every id is smaller."""

    @property
    @abc.abstractmethod
    def segment_length(self) -> int:
        """The natural length of a segment, in tokens. The last segment of a row may be shorter."""

    @property
    @abc.abstractmethod
    def num_answers(self) -> int:
        """Answer groups per row; the same for every row."""

    @property
    @abc.abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """The sizes that batches are drawn with, one a step."""

    @abc.abstractmethod
    def row_length(self, size: int) -> int:
        """Tokens in a row of this size."""

    @abc.abstractmethod
    def batch(self, seed: int, step: int, batch_size: int, split: str = "train", rows: slice | None = None) -> Batch:
        """The global batch of (seed, split, step), or the given rows of it.

        Args:
          seed: of the run.
          step: of this split, from 0.
          batch_size: rows of the global batch. Another size gives other rows, not more of the same.
          split: "train", "validation" or "test".
          rows: the shard this host keeps, as a contiguous slice of the global batch.
        """

    @property
    def size(self) -> int:
        """The largest size."""
        return max(self.sizes)

    @property
    def fingerprint(self) -> str | None:
        """Of the data that batches are read from; a run goes on with the same data only. None: they are generated."""
        return None

    @property
    def tokenizer(self) -> Any:
        """Of a text (armt_jax.data.tokenizers); None: ids are symbols of a task."""
        return None

    def num_steps(self, batch_size: int, split: str) -> int | None:
        """Steps that "validation" or "test" has; no step may follow. None: there is no end."""
        return None

    def figures(self, loss: float, weight: float, split: str) -> dict[str, float]:
        """What else a summed loss over this many predictions of a split is called in the field, such as perplexity."""
        return {}

    def largest(self) -> Self:
        """The same source at its largest size alone: what validation measures, so that its figure is not a mean over drawn sizes."""
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: max(v) for name, v in sizes.items() if isinstance(v, tuple)})


class Task(BatchSource):
    """A source whose rows are generated. The splits of one seed are separate streams."""

    @abc.abstractmethod
    def generate(self, rng: np.random.Generator, batch_size: int, size: int) -> Batch:
        """Draws all rows of a batch, each of the given size."""

    def batch(self, seed: int, step: int, batch_size: int, split: str = "train", rows: slice | None = None) -> Batch:
        require_batch(seed, step, batch_size, split, rows)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLIT_IDS[split], step])))
        # One size for the whole batch: shapes stay few, and each is compiled once.
        size = self.sizes[0] if len(self.sizes) == 1 else self.sizes[rng.integers(len(self.sizes))]
        batch = self.generate(rng, batch_size, size)
        if rows is None:
            return batch
        return jax.tree.map(lambda leaf: leaf[rows], batch)


def exact_match(correct_BxN, answers_BxN, num_answers: int) -> tuple[jax.Array, jax.Array]:
    """Counts the answers that are right in every position.

    Works on numpy and JAX arrays, also under jit with a static `num_answers`.

    Args:
      correct_BxN: bool, whether the prediction made at a position equals its target.
      answers_BxN: as in Batch; groups above `num_answers` are not counted.
      num_answers: answer groups per row.

    Returns:
      (number of answers present and right, number of answers present), two float32 scalars to be summed over batches
      and hosts before the one division at the end.
    """
    groups_G = jnp.arange(1, num_answers + 1)
    # A comparison under a sum, which the compiler fuses: a scatter would be slow on TPU.
    member_BxGxN = jnp.asarray(answers_BxN)[:, None, :] == groups_G[:, None]
    wrong_Bx1xN = ~jnp.asarray(correct_BxN, bool)[:, None, :]
    present_BxG = jnp.any(member_BxGxN, axis=-1)
    right_BxG = present_BxG & ~jnp.any(member_BxGxN & wrong_Bx1xN, axis=-1)
    return jnp.sum(right_BxG, dtype=jnp.float32), jnp.sum(present_BxG, dtype=jnp.float32)


def next_token_batch(sequence: np.ndarray, answers_N: np.ndarray, weights_N: np.ndarray | None = None) -> Batch:
    """The batch that reads sequence[:, :-1] and predicts sequence[:, 1:].

    Args:
      sequence: int [B, N + 1].
      answers_N: answer group of each prediction, the same for all rows.
      weights_N: loss weight of each prediction; None weighs the answers with 1 and all else with 0.
    """
    sequence = sequence.astype(np.int32)
    weights_N = answers_N > 0 if weights_N is None else weights_N
    num_rows = sequence.shape[0]
    return Batch(
        tokens_BxN=np.ascontiguousarray(sequence[:, :-1]),
        targets_BxN=np.ascontiguousarray(sequence[:, 1:]),
        weights_BxN=np.tile(weights_N.astype(np.float32), (num_rows, 1)),
        answers_BxN=np.tile(answers_N.astype(np.int32), (num_rows, 1)),
    )


def last_positions(row_length: int, count: int) -> np.ndarray:
    """Answer group 1 on the last `count` of `row_length` predictions, 0 before."""
    return (np.arange(row_length) >= row_length - count).astype(np.int32)


def require_int(field: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Raises unless value is an int within [minimum, maximum]."""
    allowed = f"an integer of at least {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field}={value!r} has type {type(value).__name__}: set it to {allowed}.")
    if value < minimum or (maximum is not None and value > maximum):
        raise ValueError(f"{field}={value} is out of range: set it to {allowed}.")


def require_sizes(field: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Raises unless value is a size or a tuple of different sizes, each within [minimum, maximum]."""
    if not isinstance(value, tuple):
        if isinstance(value, list):
            raise ValueError(f"{field}={value!r} is a list, which cannot be part of a fixed config: write a tuple.")
        require_int(field, value, minimum, maximum)
        return
    if not value:
        raise ValueError(f"{field}=() holds no size to draw from: list at least one, or give a single integer.")
    if len(set(value)) < len(value):
        raise ValueError(f"{field}={value!r} repeats a size: sizes are drawn uniformly, list each once.")
    for index, size in enumerate(value):
        require_int(f"{field}[{index}]", size, minimum, maximum)


def require_segments(segments: object, row_length: int) -> None:
    """Raises unless a row can be cut into this many segments."""
    require_int("segments", segments, 1)
    if segments > row_length:
        raise ValueError(
            f"segments={segments} is more than the {row_length} tokens of a row: a segment holds at least one token, "
            f"set segments to at most {row_length} or make the rows longer."
        )


def as_sizes(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """A checked size field as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def require_batch(seed: object, step: object, batch_size: object, split: object, rows: slice | None) -> None:
    """Raises unless these are arguments for `BatchSource.batch`."""
    require_int("seed", seed, 0, _WORD - 1)
    require_int("step", step, 0, _WORD - 1)
    require_int("batch_size", batch_size, 1)
    if split not in SPLIT_IDS:
        raise ValueError(f"split={split!r} is unknown: use one of {', '.join(map(repr, SPLIT_IDS))}.")
    if rows is not None:
        _check_rows(rows, batch_size)


def _check_rows(rows: slice, batch_size: int) -> None:
    if not isinstance(rows, slice):
        raise ValueError(f"rows={rows!r} is no slice: give slice(start, stop) with 0 <= start < stop <= {batch_size}.")
    # slice.indices clips, and a host would silently train on fewer rows than the others: compare before and after.
    start, stop, stride = rows.indices(batch_size)
    asked = (0 if rows.start is None else rows.start, batch_size if rows.stop is None else rows.stop)
    if stride != 1 or (start, stop) != asked or start >= stop:
        raise ValueError(
            f"rows={rows} is not a shard of a batch of {batch_size} rows: give slice(start, stop) with "
            f"0 <= start < stop <= {batch_size}. The usual cause: the number of hosts does not divide the batch size."
        )
