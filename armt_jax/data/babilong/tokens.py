"""How the sentences, questions and answers of BABILong become ids.

The default: ids of a running text, every sentence and answer a space away from what stands before it, then an end token:

    " Mary went to the office."  " Where is Mary?"  " office" <end>

With GPT-2 the space belongs to the word behind it (" office" is one id). A SentencePiece model that puts a space before every text gets the
text without one; the ids are those of the running text either way, which is checked. The end token is the tokenizer's own
("<|endoftext|>", "</s>"), or, where it has none, a new id behind its vocabulary.

compat="published", the ids of the published training code: nothing is put between sentences ("office.John went"), the question keeps the
space that the files of most tasks have behind it, then come the first id of "GEN" and the answer without a space: "Where is Mary? " "GEN"
"office" <end>.
"""

import functools
from collections.abc import Iterable

import numpy as np

from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers import Tokenizer

COMPAT = ("default", "published")

# The published files of the other tasks have a space behind every question.
_NO_SPACE_BEHIND = frozenset(["qa4", *(f"qa{number}" for number in range(15, 21))])


def require_compat(compat: str) -> None:
    if compat not in COMPAT:
        raise DataError(f"compat={compat!r} is unknown: use {' or '.join(map(repr, COMPAT))}")


class Codec:
    """A tokenizer, as samples of BABILong use it.

    tokenizer, compat: as given.
    before: what is put before every sentence, fact, question and answer, so that their ids are those of the running text.
    end_id: ends an answer. vocab_size: every id is smaller.
    """

    def __init__(self, tokenizer: Tokenizer, compat: str = "default"):
        require_compat(compat)
        self.tokenizer, self.compat = tokenizer, compat
        self.before = "" if compat == "published" else _separator(tokenizer)
        own = tokenizer.end_id
        self.end_id = tokenizer.vocab_size if own is None else own
        self.vocab_size = tokenizer.vocab_size + (own is None)
        # Facts and questions are made of few different sentences.
        self.fact = functools.lru_cache(maxsize=1 << 16)(self._fact)
        self.question = functools.lru_cache(maxsize=1 << 14)(self._question)
        self.answer = functools.lru_cache(maxsize=1 << 16)(self._answer)

    def _fact(self, text: str) -> np.ndarray:
        """int32 ids of a fact, read-only."""
        return _read_only(self._expressed("fact", text, self.tokenizer.encode(self.before + text)))

    def _question(self, task: str, text: str) -> np.ndarray:
        """int32 ids of everything between the context and the answer, read-only."""
        if self.compat == "default":
            return _read_only(self._expressed("question", text, self.tokenizer.encode(self.before + text)))
        asked = self.tokenizer.encode(text + ("" if task in _NO_SPACE_BEHIND else " "))
        return _read_only(np.concatenate([self._expressed("question", text, asked), self.tokenizer.encode("GEN")[:1]]))

    def _answer(self, question: str, text: str) -> np.ndarray:
        """int32 ids of the answer, the end token included; read-only.

        Raises:
            DataError: the ids of the answer behind the question are others than those of the answer alone, or cannot express it.
        """
        ids = self._expressed("answer", text, self.tokenizer.encode(self.before + text))
        if self.compat == "default":
            asked, whole = self.tokenizer.encode(self.before + question), self.tokenizer.encode(f"{self.before}{question} {text}")
            if not np.array_equal(np.concatenate([asked, ids]), whole):
                raise DataError(
                    f"the {self.tokenizer.kind!r} tokenizer splits the answer {text!r} differently in context: alone its ids are "
                    f"{ids.tolist()}, behind the question {question!r} they are {whole[len(asked) :].tolist()}. A model trained on the one "
                    "would be asked for the other: use a tokenizer that cuts text at spaces (GPT-2's, or SentencePiece with "
                    "split_by_whitespace)"
                )
        return _read_only(np.append(ids, np.int32(self.end_id)))

    def decode_answer(self, ids: Iterable[int]) -> str:
        """The text that generated ids say, up to the end token, without white space around it. U+FFFD stands at the end for ids that a
        model has and the tokenizer has not."""
        ids = np.asarray(ids, np.int64)
        ends = np.flatnonzero(ids == self.end_id)
        ids = ids[: ends[0]] if ends.size else ids
        known = ids[ids < self.tokenizer.vocab_size]
        return self.tokenizer.decode(known).strip() + "\ufffd" * (known.size < ids.size)

    def _expressed(self, what: str, text: str, ids: np.ndarray) -> np.ndarray:
        if not ids.size or (self.tokenizer.unknown_id is not None and np.any(ids == self.tokenizer.unknown_id)):
            raise DataError(
                f"the {self.tokenizer.kind!r} tokenizer of {self.tokenizer.vocab_size} ids cannot express the {what} {text!r} (its ids are "
                f"{ids.tolist()}): use one whose vocabulary holds it"
            )
        return ids


def _read_only(ids: np.ndarray) -> np.ndarray:
    ids.flags.writeable = False
    return ids


def _separator(tokenizer: Tokenizer) -> str:
    """What stands before a text whose ids come behind those of another text.

    Raises:
        DataError: no separator gives the ids of the running text.
    """
    first, second = "Mary is here.", "Where is John?"
    for before in ("", " "):
        alone = np.concatenate([tokenizer.encode(before + text) for text in (first, second)])
        if np.array_equal(alone, tokenizer.encode(f"{before}{first} {second}")):
            return before
    raise DataError(
        f"the {tokenizer.kind!r} tokenizer joins text across spaces, or cuts it at none: the ids of {f'{first} {second}'!r} are not those "
        "of its two sentences one behind the other, so facts could not stand between sentences. Use 'gpt2', 'sentencepiece', 'bytes' or "
        "'characters'"
    )
