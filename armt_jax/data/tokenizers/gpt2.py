"""GPT-2's byte-level BPE, from its published vocabulary and merges, through the `tokenizers` library."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers.base import Tokenizer, last_gap, utf8

VOCABULARY_FILES = ("vocab.json", "encoder.json")
MERGES_FILES = ("merges.txt", "vocab.bpe")
END_OF_TEXT = "<|endoftext|>"

# Pieces that the library encodes in parallel; its memory grows with the piece.
_PIECE_BYTES = 1 << 15


class GPT2Tokenizer(Tokenizer):
    """Every text has ids and every list of ids of whole characters its text. "<|endoftext|>" in a text is read as ordinary text."""

    kind = "gpt2"

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], where: str = "the vocabulary"):
        from tokenizers import Tokenizer as Library
        from tokenizers import models, pre_tokenizers

        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise DataError(
                f"{where} of {len(vocabulary)} tokens must number them 0 to {len(vocabulary) - 1}, each once: the file is damaged"
            )
        # The library would drop a byte without a symbol, and say nothing.
        if missing := [byte for byte, symbol in byte_symbols().items() if symbol not in vocabulary]:
            raise DataError(
                f"{where} has no token for byte {missing[0]:#04x} ({len(missing)} of 256 lack one): it is no byte-level vocabulary"
            )
        self._vocabulary, self._merges = vocabulary, merges
        try:
            self._library = Library(models.BPE(vocab=vocabulary, merges=merges))
        except Exception as e:  # the library raises nothing more precise
            raise DataError(f"{where} and its merges do not fit together ({e}): take both files from the same model") from e
        self._library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary)

    @property
    def end_id(self) -> int | None:
        return self._vocabulary.get(END_OF_TEXT)

    def content(self) -> bytes:
        return json.dumps([sorted(self._vocabulary.items(), key=lambda item: item[1]), self._merges]).encode()

    def encode_chunk(self, data: bytes, *, last: bool) -> np.ndarray:
        utf8(data)  # the place of a bad byte, counted from the start
        pieces = [piece.decode() for piece in self.pieces(data, _PIECE_BYTES)]
        encoded = self._library.encode_batch_fast(pieces, add_special_tokens=False)
        return np.concatenate([np.asarray(piece.ids, np.int32) for piece in encoded])

    def cut(self, data: bytes) -> int:
        # No token of GPT-2's pattern holds white space after anything else, so words always end before white space.
        return last_gap(data, b" \n")

    @functools.cached_property
    def _bytes_of_ids(self) -> list[bytes]:
        bytes_of = {symbol: byte for byte, symbol in byte_symbols().items()}
        tokens = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        # Special tokens like <|endoftext|> are written in plain characters.
        return [bytes(bytes_of[c] for c in token) if all(c in bytes_of for c in token) else token.encode() for token in tokens]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes_of_ids[i] for i in self.check_ids(ids))

    def save(self, folder: Path) -> None:
        (folder / VOCABULARY_FILES[0]).write_text(json.dumps(self._vocabulary), encoding="utf-8")
        merges = "".join(f"{left} {right}\n" for left, right in self._merges)
        (folder / MERGES_FILES[0]).write_text("#version: 0.2\n" + merges, encoding="utf-8")

    def in_library(self) -> Any:
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders

        library = Library.from_str(self._library.to_str())
        library.decoder = decoders.ByteLevel()
        return library

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a folder with vocab.json (or encoder.json) and merges.txt (or vocab.bpe)."""
        found = [next((path / name for name in names if (path / name).is_file()), None) for names in (VOCABULARY_FILES, MERGES_FILES)]
        for file, names in zip(found, (VOCABULARY_FILES, MERGES_FILES)):
            if file is None:
                raise DataError(
                    f"{path} holds no {' or '.join(names)}: the 'gpt2' tokenizer needs both its vocabulary and its merges in one folder"
                )
        try:
            vocabulary = json.loads(found[0].read_text(encoding="utf-8"))
        except ValueError as e:
            raise DataError(f"{found[0]} is not JSON ({e}): take it again from where it was published") from e
        if not isinstance(vocabulary, dict) or not all(isinstance(i, int) for i in vocabulary.values()):
            raise DataError(f"{found[0]} is no dict of tokens and their ids: take it again from where it was published")
        lines = found[1].read_text(encoding="utf-8").split("\n")
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        if bad := [merge for merge in merges if len(merge) != 2]:
            raise DataError(f"{found[1]} has the line {' '.join(bad[0])!r}: every line must be two tokens with a space between them")
        return cls(vocabulary, merges, str(found[0]))


@functools.cache
def byte_symbols() -> dict[int, str]:
    """The visible character that stands for each byte in GPT-2's vocabulary: itself where it has a shape, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}
