"""What every tokenizer provides: text to ids and back, piece by piece in bounded memory, and a fingerprint."""

import abc
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from armt_jax.data.errors import DataError, InvalidText

# Text is encoded in chunks of about this many bytes, so that memory does not grow with the length of a document or a line.
CHUNK_BYTES = 1 << 19

# A stretch without a gap (see `Tokenizer.cut`) is cut anyway after this many bytes.
LONGEST_UNCUT = 1 << 20


class Tokenizer(abc.ABC):
    """Text (UTF-8) to ids in [0, vocab_size) and back.

    A document is encoded as a whole: `encode_parts` gives the ids of `encode(b"".join(parts))`, however it is cut into parts, in bounded
    memory. To that end text is cut at gaps, where no token can lie across the cut. Only in a stretch of more than LONGEST_UNCUT bytes
    without a single gap (no space, no line end) is it cut between two characters, where an uncut encoding might have one token instead of
    two. No text is ever dropped: what the vocabulary cannot express becomes `unknown_id`, which caches count.

    kind: the name in a config.
    """

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Every id is smaller."""

    @property
    def unknown_id(self) -> int | None:
        """The id of what the vocabulary cannot express. None: it expresses every text."""
        return None

    @property
    def end_id(self) -> int | None:
        """The id that ends a text. No text has it: `encode` never gives it. None: the vocabulary has none."""
        return None

    @property
    def lossless(self) -> bool:
        """Whether decode(encode(text)) == text for every text without unknowns. Only then do bits per byte compare between tokenizers."""
        return True

    @abc.abstractmethod
    def content(self) -> bytes:
        """Everything that the ids depend on."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """64 hex digits. Two tokenizers with equal fingerprints give equal ids."""
        return hashlib.sha256(self.kind.encode() + b"\0" + self.content()).hexdigest()

    @abc.abstractmethod
    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The text of ids. Raises DataError for an id outside the vocabulary."""

    def decode(self, ids: Iterable[int]) -> str:
        """As `decode_bytes`; a character that the ids hold only a part of reads U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into an existing folder."""

    def in_library(self) -> Any | None:
        """A `tokenizers.Tokenizer` that gives the same ids and text, for programs without this package. None: there is none."""
        return None

    @classmethod
    @abc.abstractmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote, or the files as they are published. Raises DataError when they are missing or wrong."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """int32 ids [N] of a document. Raises InvalidText."""
        data = text.encode() if isinstance(text, str) else text
        # Bounded pieces: appending to one whole document at a time would copy it once a chunk.
        parts = (data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES))
        return np.concatenate([np.zeros(0, np.int32), *self.encode_parts(parts)])

    def encode_parts(self, parts: Iterable[bytes]) -> Iterator[np.ndarray]:
        """int32 ids of one document that comes in parts, which may end anywhere. Raises InvalidText."""
        waiting, done = b"", 0
        for part in parts:
            waiting += part
            while len(waiting) > CHUNK_BYTES and (end := self._end_of_chunk(waiting)):
                yield self._encode_at(done, waiting[:end], last=False)
                rest = self.after_cut(waiting[end:])
                waiting, done = rest, done + len(waiting) - len(rest)
        if waiting:
            yield self._encode_at(done, waiting, last=True)

    def _end_of_chunk(self, data: bytes) -> int:
        """Where the first chunk of data ends; 0 to wait for more."""
        if end := self.cut(data[: CHUNK_BYTES + 1]) or self.cut(data[: LONGEST_UNCUT + 1]):
            return end
        if len(data) <= LONGEST_UNCUT:
            return 0
        end = LONGEST_UNCUT
        while end > LONGEST_UNCUT - 4 and data[end] & 0xC0 == 0x80:
            end -= 1
        return end

    def _encode_at(self, offset: int, data: bytes, *, last: bool) -> np.ndarray:
        try:
            return self.encode_chunk(data, last=last)
        except InvalidText as e:
            raise InvalidText(offset + e.offset, e.reason) from None

    @abc.abstractmethod
    def encode_chunk(self, data: bytes, *, last: bool) -> np.ndarray:
        """int32 ids of a piece of a document that ends at a gap, or (last) where the document ends. Data is not empty."""

    def cut(self, data: bytes) -> int:
        """The last gap of data: 0 < gap < len(data), and encoding data[:gap] and data[gap:] apart gives the ids of the whole. 0: none."""
        return last_gap(data, b" \n")

    def after_cut(self, data: bytes) -> bytes:
        """What is left to encode of the text after a cut."""
        return data

    def pieces(self, data: bytes, size: int) -> list[bytes]:
        """Data cut at gaps into pieces of at most `size` bytes, where there are gaps."""
        pieces = []
        while len(data) > size and (end := self.cut(data[: size + 1])):
            pieces.append(data[:end])
            data = self.after_cut(data[end:])
        return [*pieces, data]

    def check_ids(self, ids: Iterable[int]) -> np.ndarray:
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            bad = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise DataError(
                f"id {bad} is outside the vocabulary of {self.vocab_size} of the {self.kind!r} tokenizer: decode with the "
                "tokenizer that encoded"
            )
        return ids


def last_gap(data: bytes, separators: bytes) -> int:
    """The last place before one of the separators and after a visible ASCII character; 0: none."""
    end = len(data)
    while (end := max(data.rfind(bytes([s]), 1, end) for s in separators)) > 0:
        if 0x21 <= data[end - 1] <= 0x7E:
            return end
    return 0


def utf8(data: bytes) -> str:
    """Raises InvalidText."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InvalidText(e.start, e.reason) from None
