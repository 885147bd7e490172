"""A sample: facts among the sentences of a passage of background text, then a question.

The facts keep their order. For each of them a gap between sentences is drawn, uniformly and with replacement, and the gaps are sorted: so
several facts may stand together, and a fact never stands inside a sentence. The passage begins at a sentence drawn from the whole split,
goes on in natural order, and is cut inside its last sentence where the wanted length ends.

A sample is not a row of ids but the recipe of one: any stretch of it is read on its own, from the background's file. So the whole and the
stream have identical ids, a stream goes on from any chunk at once, and neither needs memory for more than it returns.

One pass for several lengths. With `facts_within=F` all facts stand where the sample of length F has them. The sample of any length L >= F
then begins with the context of the sample of length F: in one pass over the longest, the question is asked (`context_end`) wherever a
shorter sample ends, and every answer is the one that the shorter sample alone would get. What it measures is other than the published
figure: there the facts are spread over the whole length L (facts_within=None, a pass of its own for every length), here they stand at the
beginning, and what grows is the text between the last fact and the question.

What compat="published" does as the published code (of ARMT and RMT), and the default otherwise:

    published                                                             default
    sentences and facts are joined with nothing between                   with a space (tokens.py)
    length counts facts and background only                               and the question
    the gap behind the cut last sentence takes facts too                  facts stand behind whole sentences only
    facts longer than the length: no background, and a longer sample      an error
    the last story of a file is left out (stories.py)                     every story is used
    max_facts counts the question (stories.py)                            facts only
    the first id of "GEN" stands before the answer (tokens.py)            nothing does

Neither does what depends on the order in which samples are drawn: there, one random stream serves all samples, and a passage goes on
where that of the sample before ended. Here a sample is a function of (seed, task, split, length or facts_within, index). Sentences are
cut by our rule, not by Punkt. A passage begins at any sentence with the same probability; there, in any book.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babilong.background import Passages
from armt_jax.data.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where facts stand in a passage.

    start: place of the passage's first token in the ring of sentences. offsets_F: tokens of background before each fact, rising.
    """

    start: int
    offsets_F: np.ndarray


def lay_out(rng: np.random.Generator, passages: Passages, num_facts: int, tokens: int, compat: str) -> Layout:
    """Draws a passage of so many tokens, and the gaps that facts stand in."""
    sentence = int(rng.integers(passages.num_sentences))
    start = int(passages.place(sentence))
    begun = passages.sentences_before(start + tokens) - sentence
    if compat == "published":
        # The cut sentence counts, and is there even where nothing is left of it.
        gaps = max(begun, 1)
    else:
        gaps = begun if passages.place(sentence + begun) == start + tokens else max(begun - 1, 0)
    numbers_F = np.sort(rng.integers(gaps + 1, size=num_facts))
    return Layout(start, np.minimum(passages.place(sentence + numbers_F) - start, tokens))


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """See the module.

    Attributes:
        story: what is told and asked. index: of the sample in its split.
        question_ids: all that comes between context and answer. answer_ids: with the end token.
        context_length: tokens of facts and background. laid_out: those among which the facts were put; the sample of that length is the
            shortest with the same beginning.
        passages: the background. layout: where facts stand. facts_ids: of each fact. question_counts: as part of the length.
    """

    story: Story
    index: int
    question_ids: np.ndarray
    answer_ids: np.ndarray
    context_length: int
    laid_out: int
    passages: Passages
    layout: Layout
    facts_ids: tuple[np.ndarray, ...]
    question_counts: bool = True

    @property
    def length(self) -> int:
        """As asked for."""
        return self.context_length + self.question_counts * len(self.question_ids)

    @property
    def fact_positions_F(self) -> np.ndarray:
        """Where in the context each fact begins."""
        return self.layout.offsets_F + np.cumsum(self._fact_lengths_F) - self._fact_lengths_F

    @property
    def _fact_lengths_F(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.facts_ids], np.int64)

    def context_end(self, length: int) -> int:
        """Where in the context the sample of a shorter length ends: ask the question after so many tokens.

        Raises:
            DataError: the sample of that length is not the beginning of this one.
        """
        end = length - self.question_counts * len(self.question_ids)
        if not self.laid_out <= end <= self.context_length:
            asked = self.length - self.context_length
            raise DataError(
                f"length={length} is no shorter form of this sample, whose facts stand among the first {self.laid_out} tokens and whose "
                f"length is {self.length}: ask at a length from {self.laid_out + asked} to {self.length}, or set facts_within to the "
                "shortest you ask at"
            )
        return end

    def read(self, start: int, stop: int) -> np.ndarray:
        """int32 ids [start, stop) of the context."""
        if not 0 <= start <= stop <= self.context_length:
            raise DataError(f"[{start}, {stop}) is outside the context of {self.context_length} tokens")
        begins_F = self.fact_positions_F
        ends_F = begins_F + self._fact_lengths_F
        first, behind = int(np.searchsorted(ends_F, start, "right")), int(np.searchsorted(begins_F, stop))
        skipped = np.sum(np.clip([[start], [stop]] - begins_F, 0, self._fact_lengths_F), axis=1)
        text = self.passages.read(self.layout.start + start - int(skipped[0]), self.layout.start + stop - int(skipped[1]))
        out, done, used = np.empty(stop - start, np.int32), start, 0
        for i in range(first, behind):
            begin, end = max(int(begins_F[i]), start), min(int(ends_F[i]), stop)
            out[done - start : begin - start] = text[used : used + begin - done]
            used += begin - done
            out[begin - start : end - start] = self.facts_ids[i][begin - begins_F[i] : end - begins_F[i]]
            done = end
        out[done - start :] = text[used:]
        return out

    def context(self) -> np.ndarray:
        """int32 ids of the whole context."""
        return self.read(0, self.context_length)

    def num_chunks(self, size: int) -> int:
        return -(-self.context_length // size)

    def chunks(self, size: int, first: int = 0) -> Iterator[np.ndarray]:
        """The context in chunks of `size` ids, the last one shorter, from chunk number `first` on. Costs nothing for chunks left out."""
        for start in range(first * size, self.context_length, size):
            yield self.read(start, min(start + size, self.context_length))


def room_for_background(tokens: int, facts_ids: Sequence[np.ndarray], length: int, where: str, compat: str) -> int:
    """Tokens that facts leave of `tokens`.

    Raises:
        DataError: they leave less than none.
    """
    needed = sum(len(ids) for ids in facts_ids)
    if needed > tokens and compat == "default":
        raise DataError(
            f"{where}: its {len(facts_ids)} facts have {needed} tokens, and length {length} has room for {tokens} besides the question: "
            f"ask for a length of at least {length + needed - tokens}, or leave stories with so many facts out (max_facts)"
        )
    return max(tokens - needed, 0)
