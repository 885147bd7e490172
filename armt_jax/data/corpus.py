"""A corpus under a tokenizer, as a config names it: found or fetched, cut into documents, tokenised once, opened."""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from absl import logging

from armt_jax.data.cache import FORMAT, DataIdentity, TokenCache, write_cache
from armt_jax.data.download import one_at_a_time
from armt_jax.data.errors import DataError, InvalidText
from armt_jax.data.sources import SPLITS, Source, located
from armt_jax.data.tokenizers import TOKENIZERS, CharacterTokenizer, PieceTokenizer, Tokenizer, WordTokenizer
from armt_jax.data.tokenizers.base import utf8

TRAINED = ("characters", "words", "sentencepiece")
SIZED = ("words", "sentencepiece")


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Which text, and how it is tokenised.

    Attributes:
        name: "wikitext103", "wikitext2", "enwik8", "pg19", or "text" (any folder of text).
        path: where its files are. None: the official ones are fetched (wikitext103, wikitext2, enwik8).
        tokenizer: "bytes", "characters", "words", "sentencepiece" or "gpt2".
        tokenizer_path: its files (a vocabulary, a model, or the folder of vocab.json and merges.txt). None: "characters", "words" and
            "sentencepiece" are made from the training split.
        vocab_size: of "sentencepiece" made from the corpus; for "words" the most to keep, None keeps all.
        splits: those to tokenise.
        cache_dir: where downloads, records and ids are kept.
    """

    name: str
    path: str | None = None
    tokenizer: str = "bytes"
    tokenizer_path: str | None = None
    vocab_size: int | None = None
    splits: tuple[str, ...] = SPLITS
    cache_dir: str = "~/.cache/armt_jax"

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise DataError(f"tokenizer={self.tokenizer!r} is unknown: use one of {', '.join(map(repr, TOKENIZERS))}")
        if self.tokenizer == "gpt2" and self.tokenizer_path is None:
            raise DataError(
                "tokenizer='gpt2' needs tokenizer_path: a folder with vocab.json (or encoder.json) and merges.txt (or vocab.bpe)"
            )
        if self.tokenizer == "bytes" and self.tokenizer_path is not None:
            raise DataError(f"tokenizer='bytes' has no files, but tokenizer_path={self.tokenizer_path!r}: drop it")
        if not isinstance(self.splits, tuple) or any(split not in SPLITS for split in self.splits) or not self.splits:
            raise DataError(f"splits={self.splits!r} must be a tuple of some of {', '.join(map(repr, SPLITS))}")
        if self.vocab_size is not None and (self.tokenizer not in SIZED or self.tokenizer_path is not None):
            raise DataError(
                f"vocab_size={self.vocab_size} is only for {' and '.join(SIZED)} made from the corpus (tokenizer_path=None): "
                "drop one of the two"
            )
        if self.vocab_size is not None and self.vocab_size < 3:
            raise DataError(f"vocab_size={self.vocab_size} is too small: set it to at least 3")
        if self._trained and "train" not in self.splits:
            raise DataError(
                f"tokenizer={self.tokenizer!r} is made from the training split, which splits={self.splits!r} lacks: give tokenizer_path"
            )
        if self.tokenizer == "sentencepiece" and self._trained and self.vocab_size is None:
            raise DataError("tokenizer='sentencepiece' needs tokenizer_path (a model), or vocab_size to train one")

    @property
    def _trained(self) -> bool:
        return self.tokenizer in TRAINED and self.tokenizer_path is None

    def open(self) -> TokenCache:
        """The tokenised corpus. The first call of all prepares it, which takes minutes for a large one; later ones find it in `cache_dir`.

        Raises:
            DataError: files are missing, or cannot be read, or the cache is damaged.
        """
        return _open(self)


@functools.lru_cache(maxsize=16)
def _open(config: CorpusConfig) -> TokenCache:
    root = Path(config.cache_dir).expanduser().absolute()
    source = located(config.name, config.path, config.splits, str(root / "downloads"))
    given = None if config._trained else TOKENIZERS[config.tokenizer].load(Path(config.tokenizer_path or ".").expanduser())
    # A tokenizer made from the corpus follows from the corpus and its size.
    recipe = given.fingerprint if given else f"trained {config.vocab_size}"
    # A cache of another format stays where it is, unread, and is made anew.
    key = hashlib.sha256(json.dumps([FORMAT, source.fingerprint, config.tokenizer, recipe]).encode()).hexdigest()
    folder = root / "ids" / f"{config.name}-{config.tokenizer}-{key[:16]}"
    if not folder.exists():
        with one_at_a_time(root):
            if not folder.exists():  # while we waited, another process may have made it
                _tokenise(config, source, given, root, folder)
    cache = TokenCache(folder)
    cache.data = dataclasses.replace(cache.data, note=source.note)  # of the files as they lie now
    logging.info("%s", cache.report())
    return cache


def _tokenise(config: CorpusConfig, source: Source, tokenizer: Tokenizer | None, root: Path, folder: Path) -> None:
    # Not at the top: whoever opens a cache that exists needs no tensorflow-datasets.
    from armt_jax.data import builders

    for old in folder.parent.glob(f"{folder.name}.partial-*"):  # we hold the lock: whoever wrote it is gone
        shutil.rmtree(old)
    builder = builders.prepare(source, root / "records")
    if tokenizer is None:
        parts = whole_words(builders.records(builder, "train"), functools.partial(source.unreadable, "train"))
        tokenizer = _train(config, source, parts)
    data = DataIdentity(source.name, source.fingerprint, source.note)
    splits = {split: functools.partial(builders.records, builder, split) for split in source.spans}
    write_cache(folder, tokenizer, data, splits, source.unreadable)


def _train(config: CorpusConfig, source: Source, parts: Iterator[bytes]) -> Tokenizer:
    if config.tokenizer == "characters":
        return CharacterTokenizer.train(parts)
    if config.tokenizer == "words":
        return WordTokenizer.train(parts, config.vocab_size)
    lines = itertools.chain.from_iterable(part.split(b"\n") for part in parts)
    return PieceTokenizer.train(lines, config.vocab_size, source.num_bytes("train"))


def whole_words(pieces: Iterable[tuple[int, bytes]], unreadable: Callable[[int, InvalidText], DataError]) -> Iterator[bytes]:
    """The text of pieces (document, text), in parts that end before white space or with a document.

    Raises:
        DataError: it is not UTF-8: what `unreadable(document, error)` makes of it.
    """
    for document, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        waiting, done = [], 0
        for text in itertools.chain((text for _, text in group), [None]):
            end = 0 if text is None else max(text.rfind(b"\n"), text.rfind(b" "), 0)
            if text is None or end:
                part = b"".join([*waiting, text[:end] if text else b""])
                try:
                    utf8(part)
                except InvalidText as e:
                    raise unreadable(document, InvalidText(done + e.offset, e.reason)) from e
                done, waiting = done + len(part), []
                yield part
            waiting.append(text[end:] if text else b"")
