"""SentencePiece: a published model, or one trained on the corpus."""

import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers.base import Tokenizer, last_gap, utf8

FILE = "sentencepiece.model"

# Training sees lines spread evenly over the corpus, up to about this many bytes: more changes the pieces little and costs minutes.
TRAINING_BYTES = 10_000_000
_LONGEST_LINE = 4000
_SOON_TRAINED = 1_000_000  # bytes

# The library slows down on longer texts.
_PIECE_BYTES = 1 << 12


class PieceTokenizer(Tokenizer):
    """A SentencePiece model. What it does with white space is the model's own: many published ones read a line end as a space (`lossless`
    says so); one trained here keeps every byte."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str = "the SentencePiece model"):
        from sentencepiece import SentencePieceProcessor

        try:
            self._library = SentencePieceProcessor(model_proto=model)
        except RuntimeError as e:
            raise DataError(
                f"{where} of {len(model)} bytes is no SentencePiece model ({e}): take it again from where it was published"
            ) from e
        self._model = model
        encode = self._library.encode
        # Gaps are the white space that text may be cut at. A model that puts its own space before every text gets the rest without one.
        self._gaps = bytes(s for s in b" \n" if encode(f"a{chr(s)}b") == encode("a") + encode(f"{chr(s)}b"))
        self._drop_space = b" " not in self._gaps and encode("a b") == encode("a") + encode("b")
        if self._drop_space:
            self._gaps = b" "

    @classmethod
    def train(cls, lines: Iterable[bytes], vocab_size: int, total_bytes: int, model_type: str = "unigram") -> Self:
        """A model of `vocab_size` pieces, always the same for the same text. It falls back on bytes, so it has ids for every text.

        Args:
            lines: of UTF-8 text, whole ones, with their ends. total_bytes: of all of them.
            model_type: "unigram" or "bpe".
        """
        from sentencepiece import SentencePieceTrainer

        if total_bytes > _SOON_TRAINED:
            print(f"training a SentencePiece model of {vocab_size} pieces: minutes, once", file=sys.stderr, flush=True)
        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=_sample(lines, total_bytes), model_writer=model, vocab_size=vocab_size, model_type=model_type,
                num_threads=1,  # more give other pieces
                byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
                character_coverage=0.9995, max_sentence_length=2 * _LONGEST_LINE,
                unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
            )  # fmt: skip
        except (RuntimeError, OSError) as e:
            raise DataError(
                f"SentencePiece cannot train vocab_size={vocab_size} on {total_bytes} bytes of text ({e}): choose another size. "
                "It must hold the 256 bytes and the characters of the corpus, and a small corpus has few pieces"
            ) from e
        return cls(model.getvalue())

    @property
    def vocab_size(self) -> int:
        return self._library.vocab_size()

    @property
    def unknown_id(self) -> int:
        return self._library.unk_id()

    @property
    def end_id(self) -> int | None:
        end = self._library.eos_id()
        return None if end < 0 else end

    @property
    def lossless(self) -> bool:
        probe = " a  b\n\nc\td "
        return self._library.decode(self._library.encode(probe)) == probe

    def content(self) -> bytes:
        return self._model

    def encode_chunk(self, data: bytes, *, last: bool) -> np.ndarray:
        utf8(data)  # the place of a bad byte, counted from the start
        pieces = self._library.encode([piece.decode() for piece in self.pieces(data, _PIECE_BYTES)])
        return np.fromiter(itertools.chain.from_iterable(pieces), np.int32)

    def cut(self, data: bytes) -> int:
        return last_gap(data, self._gaps) if self._gaps else 0

    def after_cut(self, data: bytes) -> bytes:
        return data[1:] if self._drop_space and data.startswith(b" ") else data

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._library.decode(self.check_ids(ids).tolist()).encode("utf-8")

    def save(self, folder: Path) -> None:
        (folder / FILE).write_bytes(self._model)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a model file, or the folder it is in."""
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise DataError(
                f"{file} is missing: give the path of a SentencePiece .model file, or leave it out and set vocab_size to train one"
            )
        return cls(file.read_bytes(), str(file))


def _sample(lines: Iterable[bytes], total_bytes: int) -> Iterator[str]:
    """Every n-th piece of a line, without its end: short lines whole, long ones cut, which the trainer would skip."""
    stride = -(-total_bytes // TRAINING_BYTES)
    return itertools.islice(_line_pieces(lines), 0, None, stride)


def _line_pieces(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        text = utf8(line.rstrip(b"\n"))
        yield from (text[i : i + _LONGEST_LINE // 4] for i in range(0, len(text), _LONGEST_LINE // 4))
