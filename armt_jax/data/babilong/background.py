"""Background text: the sentences of books in their natural order, tokenised once, read from disk as they are needed.

The sentences of a split stand one behind the other, book after book, and form a ring: behind the last one comes the first again. So a
passage of any length begins at any sentence; one longer than the text passes over it several times. Sentences of fewer than `min_tokens`
tokens (headings, page numbers) are left out, as published. So are, in training, sentences that validation or test has, too, and in
validation those of the test: other editions of a book, and quotations.

They are kept as a token cache (armt_jax/data/cache.py) whose documents are the sentences. Nothing of it is held in memory: a read costs
what it returns.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from armt_jax.data.babilong.books import Division, Part, divide, require_named
from armt_jax.data.babilong.sentences import RULE, sentences
from armt_jax.data.babilong.tokens import Codec, require_compat
from armt_jax.data.babilong.wording import fingerprint as wording_fingerprint
from armt_jax.data.babilong.wording import training_lines
from armt_jax.data.cache import DataIdentity, TokenCache, write_cache
from armt_jax.data.corpus import TRAINED, CorpusConfig, one_at_a_time
from armt_jax.data.documents import whole_file
from armt_jax.data.errors import DataError, InvalidText
from armt_jax.data.tokenizers import TOKENIZERS, CharacterTokenizer, PieceTokenizer, Tokenizer
from armt_jax.tasks.base import require_int

FEWEST_SENTENCES = 2
_RULE = f"{RULE}; apart 1"  # names what is computed here from a division
_LATER = {"train": ("validation", "test"), "validation": ("test",), "test": ()}


@dataclasses.dataclass(frozen=True)
class BackgroundConfig:
    """Which text facts are hidden in, and how it and they are tokenised.

    Attributes:
        path: of the text; see books.py for what is used for which split. None: fetched (WikiText only).
        name: "books" (any folder of *.txt, or one file), "pg19", "wikitext2" or "wikitext103".
        tokenizer: "gpt2", "sentencepiece", "bytes" or "characters".
        tokenizer_path: its files. None: "sentencepiece" and "characters" are made from the sentences of the training split; among those for
            "sentencepiece" stand a few with the words of bAbI (wording.py), so that these become pieces.
        vocab_size: of a "sentencepiece" model that is made; not used where tokenizer_path gives one.
        min_tokens: shorter sentences are left out.
        cache_dir: where downloads and ids are kept.
    """

    path: str | None = None
    name: str = "books"
    tokenizer: str = "gpt2"
    tokenizer_path: str | None = None
    vocab_size: int | None = None
    min_tokens: int = 10
    cache_dir: str = "~/.cache/armt_jax"

    def __post_init__(self) -> None:
        require_named(self.name, self.path)
        require_int("min_tokens", self.min_tokens, 1)
        if self.tokenizer == "words":
            raise DataError(
                "tokenizer='words' joins full stops to words and ends every text with a line end, so facts cannot stand between sentences: "
                "use 'gpt2', 'sentencepiece', 'bytes' or 'characters'"
            )
        # The rules about tokenizers are those of a corpus.
        vocab_size = self.vocab_size if self.tokenizer_path is None else None
        CorpusConfig("text", self.path, self.tokenizer, self.tokenizer_path, vocab_size, cache_dir=self.cache_dir)

    def open(self, compat: str = "default") -> "Background":
        """The tokenised text. The first call of all prepares it, which takes minutes for a large one; later ones find it in `cache_dir`.

        Args:
            compat: "default", or "published" for ids as in the published code (tokens.py, mixing.py).

        Raises:
            DataError: files are missing or cannot be read, or the cache is damaged.
        """
        require_compat(compat)
        return _open(self, compat)


class Background:
    """Open background text.

    codec: how text becomes ids. fingerprint: of text, division and tokenizer. cache: its sentences.
    """

    def __init__(self, cache: TokenCache, compat: str):
        self.cache = cache
        self.codec = Codec(cache.tokenizer, compat)
        self.fingerprint = cache.fingerprint

    def split(self, name: str) -> "Passages":
        """The sentences of "train", "validation" or "test"."""
        text = self.cache.split(name)
        return Passages(self.cache.folder / f"{name}.ids", text.ids_N.dtype, text.starts, len(text.ids_N))

    def report(self) -> str:
        """A table of the counts, for people; what it calls documents are sentences."""
        return self.cache.report()


@dataclasses.dataclass(frozen=True)
class Passages:
    """The ring of a split's sentences.

    Places are counted in tokens, from the first token of the first sentence, and go on rising from one round to the next.

    Attributes:
        file, dtype: where ids are. starts: of the sentences in it. tokens: in one round.
    """

    file: Path
    dtype: np.dtype
    starts: np.ndarray
    tokens: int

    @property
    def num_sentences(self) -> int:
        return len(self.starts)

    def place(self, sentence: int | np.ndarray) -> np.ndarray:
        """Where sentences begin; numbers from `num_sentences` on are of later rounds."""
        rounds, number = np.divmod(np.asarray(sentence, np.int64), self.num_sentences)
        return rounds * self.tokens + self.starts[number]

    def sentences_before(self, place: int) -> int:
        """How many sentences begin before a place."""
        rounds, rest = divmod(place, self.tokens)
        return rounds * self.num_sentences + int(np.searchsorted(self.starts, rest))

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 ids of the places [start, stop)."""
        out, done = np.empty(stop - start, np.int32), 0
        while done < len(out):
            begin = (start + done) % self.tokens
            count = min(self.tokens - begin, len(out) - done)
            # Read, not mapped: pages of a mapped file would count as memory of the process.
            out[done : done + count] = np.fromfile(self.file, self.dtype, count, offset=begin * self.dtype.itemsize)
            done += count
        return out


@functools.lru_cache(maxsize=16)
def _open(config: BackgroundConfig, compat: str) -> Background:
    root = Path(config.cache_dir).expanduser().absolute()
    division = divide(config.name, config.path, root / "downloads")
    made = config.tokenizer in TRAINED and config.tokenizer_path is None
    given = None if made else TOKENIZERS[config.tokenizer].load(Path(config.tokenizer_path or ".").expanduser())
    recipe = given.fingerprint if given else f"trained {config.vocab_size} {_mixed_in(config)}"
    key = [_RULE, division.fingerprint, config.min_tokens, compat, config.tokenizer, recipe]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = root / "sentences" / f"{config.name}-{config.tokenizer}-{digest[:16]}"
    if not folder.exists():
        with one_at_a_time(root):
            if not folder.exists():  # while we waited, another process may have made it
                for old in folder.parent.glob(f"{folder.name}.partial-*"):  # we hold the lock: whoever wrote it is gone
                    shutil.rmtree(old)
                _prepare(config, compat, division, given, folder)
    background = Background(TokenCache(folder), compat)
    logging.info("%s", background.report())
    return background


def _prepare(config: BackgroundConfig, compat: str, division: Division, given: Tokenizer | None, folder: Path) -> None:
    logging.info("cutting %s into sentences and tokenising them", config.path or config.name)
    tokenizer = given or _train(config, division)
    before = Codec(tokenizer, compat).before
    kept = {split: functools.partial(_numbered, division, split, tokenizer, before, config.min_tokens) for split in division.parts}
    key = json.dumps([_RULE, division.fingerprint, config.min_tokens, before])
    identity = DataIdentity(f"sentences of {division.name}", hashlib.sha256(key.encode()).hexdigest(), division.note)
    write_cache(folder, tokenizer, identity, kept)


def _train(config: BackgroundConfig, division: Division) -> Tokenizer:
    texts = (f" {text}".encode() for part in division.parts["train"] for text in _sentences_of(division, "train", part))
    if config.tokenizer == "characters":
        return CharacterTokenizer.train(texts)
    size = sum(part.stop - part.start for part in division.parts["train"])
    mixed = training_lines(size)
    return PieceTokenizer.train(itertools.chain(mixed, texts), config.vocab_size, size + sum(map(len, mixed)))


def _mixed_in(config: BackgroundConfig) -> str:
    """Names what stands in the training text of a tokenizer besides the books."""
    return wording_fingerprint() if config.tokenizer == "sentencepiece" else ""


def _numbered(division: Division, split: str, tokenizer: Tokenizer, before: str, min_tokens: int) -> Iterator[tuple[int, bytes]]:
    """(number, text) of the sentences of a split that are long enough and in no later split, as `write_cache` wants documents."""
    texts = (text for name in _LATER[split] for part in division.parts[name] for text in _sentences_of(division, name, part))
    later = np.unique(np.fromiter(map(_digest, texts), np.uint64))
    number = repeated = 0
    for part in division.parts[split]:
        long = 0
        for text in _sentences_of(division, split, part):
            if not _is_long(before + text, tokenizer, min_tokens):
                continue
            long += 1
            if _is_among(_digest(text), later):
                repeated += 1
                continue
            yield number, (before + text).encode()
            number += 1
        if division.cut is whole_file and long < FEWEST_SENTENCES:
            raise DataError(
                f"{part} has {long} sentence{'s' * (long != 1)} of at least {min_tokens} tokens for split {split!r}. "
                f"Facts stand between sentences, so a book must give at least {FEWEST_SENTENCES}: take it away, give more text, or lower "
                "min_tokens"
            )
    left_out = f"{repeated} more are left out, as they are in {' or '.join(_LATER[split])}, too" if repeated else ""
    if number < FEWEST_SENTENCES:
        raise DataError(
            f"split {split!r} of background {division.name!r} has {number} sentences of at least {min_tokens} tokens, and facts stand "
            f"between sentences: give more text{left_out and f' ({left_out})'}"
        )
    if repeated:
        logging.info("split %r has %d sentences; %s", split, number, left_out)


def _sentences_of(division: Division, split: str, part: Part) -> Iterator[str]:
    """The sentences of a part, document by document."""
    for number, pieces in itertools.groupby(division.cut((part.file,)), key=lambda piece: piece.document):
        try:
            for sentence in sentences(piece.text for piece in pieces):
                # Parts of a file are only asked for where it is one document.
                if division.cut is not whole_file or part.start <= sentence.place < part.stop:
                    yield sentence.text
        except InvalidText as e:
            where = str(part.file.path) if division.cut is whole_file else f"{part.file.path}, {split} document {number} (counted from 0)"
            raise DataError(f"{where}: {e}") from e


def _digest(text: str) -> np.uint64:
    """Stands for a sentence: of a large library's, tens of millions are held in memory."""
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint64)[0]


def _is_among(digest: np.uint64, sorted_N: np.ndarray) -> bool:
    place = np.searchsorted(sorted_N, digest)
    return place < len(sorted_N) and sorted_N[place] == digest


def _is_long(text: str, tokenizer: Tokenizer, min_tokens: int) -> bool:
    """Whether a sentence has at least so many tokens. A word has one at least, and most sentences need no more to tell."""
    return len(text.split()) >= min_tokens or len(tokenizer.encode(text)) >= min_tokens
