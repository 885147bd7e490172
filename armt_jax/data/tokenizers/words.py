"""Words of a corpus as symbols, with the conventions of the published word-level results on WikiText.

Words are what stands between white space. Every line end is the token <eos>, and so is the end of a document whose last line has none.
Words outside the vocabulary are <unk>. Ids: <eos> is 0, then the words by falling count (the order that adaptive softmax needs), those
of equal count in order of first appearance: 267,735 types for WikiText-103, 33,278 for WikiText-2.
"""

import collections
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers import base
from armt_jax.data.tokenizers.base import Tokenizer, utf8

EOS, UNK = "<eos>", "<unk>"
FILE = "vocabulary.txt"


class _Ids(dict):
    """word -> id; the id of <unk> for any other word."""

    def __missing__(self, word: str) -> int:
        return self[UNK]


class WordTokenizer(Tokenizer):
    kind = "words"

    def __init__(self, words: Iterable[str], where: str = "the vocabulary"):
        self._words = list(words)
        for number, word in enumerate(self._words, 1):
            if word.split() != [word]:
                raise DataError(
                    f"{where} holds {word!r} in line {number}, which is no word: every line must be one word without white space, also "
                    "none at its ends (a line end of Windows counts as some)"
                )
        self._ids = _Ids((word, i) for i, word in enumerate(self._words))
        for needed, meaning in ((UNK, "words outside the vocabulary"), (EOS, "line ends")):
            if needed not in self._ids:
                raise DataError(f"{where} of {len(self._words)} words lacks {needed}, which {meaning} are read as: add a line {needed}")
        if len(self._ids) < len(self._words):
            word, count = collections.Counter(self._words).most_common(1)[0]
            raise DataError(f"{where} lists {word!r} {count} times: list every word once")

    @classmethod
    def train(cls, parts: Iterable[bytes], max_size: int | None = None) -> Self:
        """The vocabulary of a text, but for words that encoding cuts (longer than `base.LONGEST_UNCUT`): they would never be given.

        Args:
            parts: of UTF-8 text; no word may lie across the end of a part.
            max_size: keep only the most frequent words, so that there are at most this many ids.
        """
        counts: collections.Counter[str] = collections.Counter()
        for part in parts:
            counts.update(utf8(part).split())
        del counts[EOS]
        for word in [word for word in counts if len(word.encode()) > base.LONGEST_UNCUT]:
            del counts[word]
        # Sorting is stable and a Counter keeps the order of first appearance.
        words = [EOS] + [word for word, _ in sorted(counts.items(), key=lambda item: -item[1])]
        if max_size is not None and max_size < 3:
            raise DataError(f"vocab_size={max_size} must leave room for {EOS}, {UNK} and at least one word: raise it")
        if UNK not in counts:
            words.insert(1, UNK)
        if max_size is not None and len(words) > max_size:
            kept = words[:max_size]
            words = kept if UNK in kept else [*kept[:-1], UNK]
        return cls(words)

    @property
    def vocab_size(self) -> int:
        return len(self._words)

    @property
    def unknown_id(self) -> int:
        return self._ids[UNK]

    @property
    def lossless(self) -> bool:
        return False  # white space other than line ends is not kept

    def content(self) -> bytes:
        return "\n".join(self._words).encode("utf-8")

    def encode_chunk(self, data: bytes, *, last: bool) -> np.ndarray:
        text = utf8(data)
        words = text.replace("\n", f" {EOS} ").split()
        if last and not text.endswith("\n"):
            words.append(EOS)
        return np.fromiter(map(self._ids.__getitem__, words), np.int32, len(words))

    def cut(self, data: bytes) -> int:
        # Between a word and the white space after it, or between two pieces of white space: anywhere before one.
        return max(data.rfind(b" ", 1), data.rfind(b"\n", 1), 0)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Words with one space between them; <eos> is a line end."""
        text = " ".join("\n" if self._words[i] == EOS else self._words[i] for i in self.check_ids(ids))
        return text.replace(" \n ", "\n").replace(" \n", "\n").replace("\n ", "\n").encode("utf-8")

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text("".join(f"{word}\n" for word in self._words), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file of one word a line, in the order of the ids, or the folder it is in."""
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"{file} is missing: it must list the words, one a line, with {UNK} and {EOS}; or leave the path out to use "
                "those of the corpus"
            )
        try:
            text = utf8(file.read_bytes())
        except DataError as e:
            raise DataError(f"vocabulary file {file}: {e}") from e
        return cls(text.removesuffix("\n").split("\n"), f"vocabulary file {file}")
