"""Bytes and characters as symbols."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers.base import Tokenizer, utf8
from armt_jax.data.tokenizers.gpt2 import byte_symbols

_CODE_POINTS = 0x110000
FILE = "characters.txt"


class ByteTokenizer(Tokenizer):
    """A byte is its own id. Takes any data, also what is not UTF-8. Bits per token are the "bits per character" published for enwik8."""

    kind = "bytes"

    @property
    def vocab_size(self) -> int:
        return 256

    def content(self) -> bytes:
        return b""

    def encode_chunk(self, data: bytes, *, last: bool) -> np.ndarray:
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def cut(self, data: bytes) -> int:
        return len(data) - 1

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self.check_ids(ids).astype(np.uint8).tobytes()

    def save(self, folder: Path) -> None:
        pass

    def in_library(self) -> Any:
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers

        # Byte-level BPE without a single merge.
        library = Library(models.BPE(vocab={symbol: byte for byte, symbol in byte_symbols().items()}, merges=[]))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
        return library

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls()


class CharacterTokenizer(Tokenizer):
    """Unicode characters of a corpus. Id 0 is any other character, and reads U+FFFD; the rest are in code point order."""

    kind = "characters"

    def __init__(self, characters: Iterable[str]):
        points = np.array([ord(c) for c in characters], np.int64)
        if points.size == 0 or np.any(np.diff(points) <= 0):
            raise DataError(
                f"a vocabulary of {points.size} characters must hold at least one, in rising code point order without repetition"
            )
        self._points = np.concatenate([[0xFFFD], points])
        self._ids = np.zeros(_CODE_POINTS, np.int32)
        self._ids[points] = np.arange(1, points.size + 1)

    @classmethod
    def train(cls, parts: Iterable[bytes]) -> Self:
        """The characters of a text that comes in parts, each whole UTF-8. Raises InvalidText."""
        seen: set[str] = set()
        for part in parts:
            seen.update(utf8(part))
        return cls(sorted(seen))

    @property
    def vocab_size(self) -> int:
        return len(self._points)

    @property
    def unknown_id(self) -> int:
        return 0

    def content(self) -> bytes:
        return self._points.astype("<u4").tobytes()

    def encode_chunk(self, data: bytes, *, last: bool) -> np.ndarray:
        return self._ids[np.frombuffer(utf8(data).encode("utf-32-le"), "<u4")]

    def cut(self, data: bytes) -> int:
        end = len(data) - 1
        while end > 0 and data[end] & 0xC0 == 0x80:
            end -= 1
        return end

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return "".join(map(chr, self._points[self.check_ids(ids)])).encode("utf-8")

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text("".join(f"U+{point:04X}\n" for point in self._points[1:]))

    def in_library(self) -> Any:
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Library

        ids = {"<unk>": 0} | {chr(point): i for i, point in enumerate(self._points[1:], 1)}
        library = Library(models.WordLevel(vocab=ids, unk_token="<unk>"))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
        return library

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a file of one code point a line ("U+0041"), or the folder it is in."""
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"{file} is missing: it must list the characters, one code point a line, like U+0041; or leave the path out to "
                "use those of the corpus"
            )
        try:
            return cls(chr(int(line.removeprefix("U+"), 16)) for line in file.read_text("utf-8").split())
        except (ValueError, OverflowError) as e:
            raise DataError(f"{file} is no list of code points, one a line, like U+0041: {e}") from e
