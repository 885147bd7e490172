"""Texts tokenised once: ids that are read from disk as they are needed, with counts, document starts and a fingerprint.

A cache is a folder:

    meta.json                 fingerprints, counts and checksums, the last one over the rest of itself
    tokenizer files           what `Tokenizer.save` writes
    <split>.ids               ids, little-endian, of the smallest type that holds the vocabulary
    <split>.documents         int64, the position of each document's first token

It is written under another name and renamed when it is whole.
"""

import array
import codecs
import dataclasses
import functools
import itertools
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from armt_jax.data.errors import DataError, InvalidText
from armt_jax.data.tokenizers import TOKENIZERS, Tokenizer
from armt_jax.telemetry.progress import LongWork

FORMAT = 2
META = "meta.json"
_BLOCK = 1 << 22


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """What a split holds. words: runs of anything but white space, Unicode's like the characters. lines: line ends, and ends of documents
    whose last line lacks one. unknown: tokens that stand for what the vocabulary cannot express."""

    tokens: int
    bytes: int
    characters: int
    words: int
    lines: int
    documents: int
    unknown: int


class TokenisedText(NamedTuple):
    """A split. ids_N: read-only, mapped from disk. starts: int64, positions of the documents' first tokens, rising."""

    ids_N: np.ndarray
    starts: np.ndarray
    counts: SplitCounts


@dataclasses.dataclass(frozen=True)
class DataIdentity:
    """Where a cache's text comes from: the corpus, its fingerprint, and what a reader of results must know about it."""

    name: str
    fingerprint: str
    note: str = ""


def id_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("u1") if vocab_size <= 1 << 8 else np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenCache:
    """An open cache.

    Attributes:
        folder: where it is. data: what was tokenised. tokenizer: what with. splits: {name: TokenisedText}.
    """

    def __init__(self, folder: str | Path, fingerprint: str | None = None):
        """Opens a cache, reading it through once to check it.

        Args:
            fingerprint: that it must have; None takes any.

        Raises:
            DataError: no whole, undamaged cache of that fingerprint.
        """
        self.folder = Path(folder)
        meta = _read_meta(self.folder)
        self.data = DataIdentity(**meta["data"])
        self.fingerprint: str = meta["fingerprint"]
        check_fingerprint(self.fingerprint, fingerprint or self.fingerprint, f"the token cache {self.folder}")
        self.tokenizer = TOKENIZERS[meta["tokenizer"]["kind"]].load(self.folder)
        if self.tokenizer.fingerprint != meta["tokenizer"]["fingerprint"]:
            raise _damaged(
                self.folder, f"its tokenizer has fingerprint {self.tokenizer.fingerprint}, and {meta['tokenizer']['fingerprint']} was saved"
            )
        self.splits = {name: _open_split(self.folder, name, split, self.tokenizer.vocab_size) for name, split in meta["splits"].items()}

    def split(self, name: str) -> TokenisedText:
        if name not in self.splits:
            raise DataError(
                f"split {name!r} is not in the cache {self.folder}, which holds {', '.join(self.splits)}: add it to data.splits"
            )
        return self.splits[name]

    def report(self) -> str:
        """A table of the counts, for people."""
        tokenizer = self.tokenizer
        lines = [f"{self.data.name}, {tokenizer.kind} tokenizer, vocabulary {tokenizer.vocab_size:,}, fingerprint {self.fingerprint}"]
        lines += [f"NOTE: {self.data.note}"] if self.data.note else []
        if not tokenizer.lossless:
            lines.append("NOTE: this tokenizer does not keep every byte of the text: compare its bits per byte with no other's")
        for name, (_, _, c) in self.splits.items():
            ratio = f"{c.bytes / c.tokens:.3f} bytes/token"
            known = f", {c.unknown:,} unknown" if c.unknown else ""
            counts = f"{c.bytes:,} bytes, {c.words:,} words, {c.lines:,} lines, {c.documents:,} documents"
            lines.append(f"{name:10} {c.tokens:,} tokens, {counts}, {ratio}{known}")
        return "\n".join(lines)


def fingerprint_of(data: DataIdentity, tokenizer: Tokenizer) -> str:
    """Of text and tokenizer together, readable: both parts can be told apart."""
    return f"{data.name}:{data.fingerprint[:24]}/{tokenizer.kind}:{tokenizer.fingerprint[:24]}"


def check_fingerprint(found: str, expected: str, where: str) -> None:
    """Raises DataError unless both are equal. For checkpoints too: `where` says whose fingerprint `found` is."""
    if found != expected:
        raise DataError(
            f"{where} was made from other data or with another tokenizer: its fingerprint is {found}, expected is {expected}. "
            "Use the data and the tokenizer it was made with, or start anew in another folder"
        )


def write_cache(
    folder: str | Path,
    tokenizer: Tokenizer,
    data: DataIdentity,
    splits: Mapping[str, Callable[[], Iterable[tuple[int, bytes]]]],
    unreadable: Callable[[str, int, InvalidText], DataError] | None = None,
) -> TokenCache:
    """Tokenises text into a new cache.

    Args:
        folder: must not exist yet. splits: for each split, what gives its pieces (document, text) in order.
        unreadable: makes the error about text that is not UTF-8, from split, document and place in the document; None: of these alone.

    Raises:
        DataError: text that the tokenizer cannot read, or none at all; nothing is left at `folder`.
    """
    folder, unreadable = Path(folder), unreadable or _unreadable
    if folder.exists():
        raise DataError(f"{folder} exists already: a cache is never written over; delete the folder to make it anew")
    # Not named by the process: in two containers that share a disk, two processes may have the same number.
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        tokenizer.save(partial)
        meta = {
            "format": FORMAT,
            "fingerprint": fingerprint_of(data, tokenizer),
            "data": dataclasses.asdict(data),
            "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
            "splits": {
                name: _write_split(partial, name, pieces(), tokenizer, functools.partial(unreadable, name))
                for name, pieces in splits.items()
            },
        }
        meta |= {"crc32": _crc32_of(meta)}
        with (partial / META).open("w") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TokenCache(folder)


def _unreadable(split: str, document: int, error: InvalidText) -> DataError:
    return DataError(f"split {split!r}, document {document} (counted from 0), counted from its start: {error}")


class _Counter:
    """Counts the bytes, characters, words and lines of a split as its pieces go by, which may end anywhere."""

    def __init__(self):
        self.bytes = self.characters = self.words = self.lines = 0
        self._begin_document()

    def _begin_document(self) -> None:
        # Of what is not UTF-8 ("bytes" takes it) no byte is white space.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._in_word, self._ends_line = False, True

    def add(self, text: bytes) -> bytes:
        self.bytes += len(text)
        self.characters += int(np.count_nonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80))
        self.lines += text.count(b"\n")
        self._ends_line = text.endswith(b"\n")
        self._add_words(self._decoder.decode(text))
        return text

    def _add_words(self, text: str) -> None:
        if text:
            self.words += len(text.split()) - (self._in_word and not text[0].isspace())
            self._in_word = not text[-1].isspace()

    def end_document(self) -> None:
        self._add_words(self._decoder.decode(b"", final=True))
        self.lines += not self._ends_line
        self._begin_document()


def _write_split(
    folder: Path,
    name: str,
    pieces: Iterable[tuple[int, bytes]],
    tokenizer: Tokenizer,
    unreadable: Callable[[int, InvalidText], DataError],
) -> dict[str, Any]:
    """Writes the files of a split. Returns its entry in meta.json."""
    dtype, counter = id_dtype(tokenizer.vocab_size), _Counter()
    starts, tokens, unknown, checksum = array.array("q"), 0, 0, 0
    with (folder / f"{name}.ids").open("wb") as out, LongWork(f"tokenising {name}, MB") as progress:
        for document, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
            starts.append(tokens)
            for ids in _encoded(tokenizer, (counter.add(text) for _, text in group if text), functools.partial(unreadable, document)):
                unknown += 0 if tokenizer.unknown_id is None else int(np.count_nonzero(ids == tokenizer.unknown_id))
                block = ids.astype(dtype).tobytes()
                checksum = zlib.crc32(block, checksum)
                tokens += ids.size
                out.write(block)
                progress.reached(counter.bytes >> 20, tokens=tokens)
            counter.end_document()
        out.flush()
        os.fsync(out.fileno())
    if tokens == 0:
        raise DataError(f"split {name!r} has no tokens ({counter.bytes} bytes of text): it must hold some")
    np.asarray(starts, "<i8").tofile(folder / f"{name}.documents")
    counts = SplitCounts(tokens, counter.bytes, counter.characters, counter.words, counter.lines, len(starts), unknown)
    return {"counts": dataclasses.asdict(counts), "crc32": [checksum, zlib.crc32(np.asarray(starts, "<i8").tobytes())]}


def _encoded(tokenizer: Tokenizer, parts: Iterator[bytes], unreadable: Callable[[InvalidText], DataError]) -> Iterator[np.ndarray]:
    try:
        for ids in tokenizer.encode_parts(parts):
            if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
                raise DataError(
                    f"the {tokenizer.kind!r} tokenizer gave ids {ids.min()} to {ids.max()}, outside its vocabulary of "
                    f"{tokenizer.vocab_size}"
                )
            yield ids
    except InvalidText as e:
        raise unreadable(e) from e


def _read_meta(folder: Path) -> dict[str, Any]:
    file = folder / META
    if not file.is_file():
        raise DataError(f"{folder} is no whole token cache: it has no {META}. Make it again")
    try:
        meta = json.loads(file.read_bytes())
    except ValueError as e:
        raise _damaged(folder, f"{META} cannot be read ({e})") from e
    if not isinstance(meta, dict) or "format" not in meta:
        raise _damaged(folder, f"{META} does not say its format")
    # Format 1 has no checksum. A corpus has another folder for each format, so it is made anew; any other cache is refused here.
    if meta["format"] != FORMAT:
        raise DataError(
            f"the token cache {folder} has format {meta['format']!r}, and this version reads {FORMAT}: delete the folder, and "
            "it is made again"
        )
    checksum = meta.pop("crc32", None)
    # Of the right checksum, it is what was written: nothing is missing or odd.
    if checksum != (found := _crc32_of(meta)):
        raise _damaged(folder, f"{META} has checksum {found}, and {checksum} was written")
    kind = meta["tokenizer"]["kind"]
    if kind not in TOKENIZERS:
        raise DataError(f"the token cache {folder} needs the tokenizer {kind!r}, which this version lacks (it has {', '.join(TOKENIZERS)})")
    return meta


def _open_split(folder: Path, name: str, entry: dict[str, Any], vocab_size: int) -> TokenisedText:
    counts, dtype = SplitCounts(**entry["counts"]), id_dtype(vocab_size)
    arrays = []
    parts = (("ids", counts.tokens, dtype), ("documents", counts.documents, np.dtype("<i8")))
    for (part, length, kind), checksum in zip(parts, entry["crc32"], strict=True):
        file = folder / f"{name}.{part}"
        size = file.stat().st_size if file.is_file() else None
        if size != length * kind.itemsize:
            raise _damaged(folder, f"{file.name} has {'no' if size is None else size} bytes, and {length * kind.itemsize} were written")
        if (found := _crc32(file)) != checksum:
            raise _damaged(folder, f"{file.name} has checksum {found:#010x}, and {checksum:#010x} was written")
        arrays.append(np.memmap(file, kind, mode="r"))
    return TokenisedText(arrays[0], np.asarray(arrays[1], np.int64), counts)


def _crc32_of(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as source:
        while block := source.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(f"the token cache {folder} is damaged: {what}. Delete the folder, and it is made again")
