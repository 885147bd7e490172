"""BABILong as a task: rows of context, question and answer, with the loss on the answer.

    context ... context  Where is Mary?  office <end>        question="running": as published; a segment ends wherever it ends
    context ... <pad>  |  Where is Mary?  office <end>       question="apart": the question opens a segment of its own

With facts="apart", "alone" or "whole" every question has one, and no fact is cut by a segment's end (apart.py).

Stories of "validation" never occur in training (stories.py), and its passages are of other text (books.py). Exact match is teacher forced:
an answer counts when the likeliest token is the right one at each of its places, the end token included. That is when greedy decoding
writes it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from armt_jax.data.babi.solvers import solve
from armt_jax.data.babi.story import Story, require_task
from armt_jax.data.babilong import apart, named, torn
from armt_jax.data.babilong.background import Background, BackgroundConfig, Passages
from armt_jax.data.babilong.mixing import Sample
from armt_jax.data.babilong.peeks import Peek, draw_peek, insert_peeks
from armt_jax.data.babilong.samples import BabilongSamples
from armt_jax.data.babilong.scoring import LABELS
from armt_jax.data.babilong.stories import GeneratedStories, StoryFiles, StorySource
from armt_jax.data.babilong.tokens import Codec, require_compat
from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers import Tokenizer
from armt_jax.tasks.base import SPLIT_IDS, Batch, BatchSource, as_sizes, require_batch, require_int, require_sizes

QUESTIONS = ("running", "apart")
FACTS = ("running", *apart.FACTS)
# Stories that are tried for a row; of every published task some fit two segments of 64 tokens.
_ATTEMPTS = 200
# Stories that say all the words that facts begin and end with.
_TOLD = 100
_WORD = 2**32


@dataclasses.dataclass(frozen=True)
class BabilongBatches(BatchSource):
    """Rows of one bAbI task in text, each a function of (seed, split, step, row).

    The rows of a step have the same number of segments, drawn from `segments`. Their lengths are drawn among those that fill so many (or
    fixed by `margin`), so questions come at every place of a segment. A story too long for its row gives way to another one: short rows
    have few facts. Behind its end a row is padded.

    Attributes:
        background: which text, and how it is tokenised. task: "qa1" to "qa20".
        stories: folder of the published files; None: stories are generated (qa1 to qa10). max_facts: stories with more are left out.
        generate: train on generated stories though `stories` names files, of which validation and test then are. Files have few short
            stories (1,800 of two facts), and a model that is slow to use its memory learns those by heart before.
        segments: of a row, or a tuple of which one entry is drawn a step. segment_length: tokens in a segment.
        question: "running" or "apart", see above. (An evaluation takes it from here; its facts stand in running text.)
        facts: "running"; "apart": each opens a segment; "alone": each stands anywhere in a segment of its own; "whole": they stand
            anywhere, and share segments as in running text, but no segment's end cuts one. In the latter three every question has a
            segment of its own, anywhere in it where questions are "running".
        questions: asked about each row at most, one behind the answer of the other. More than one, for more signal, of qa1 alone: about
            different people of the same story, so a story of few people has fewer. Where nearly all people are asked about, the last answer
            is the room that is left over, and remembering which rooms were said is enough. Where facts do not run there are always so many,
            about people drawn anew.
        peeks: further segments of a training row on running text, which ask so many questions each on the way and of which the memory keeps
            nothing (peeks.py). They are not among `segments`. Of qa1 alone.
        margin: context and question end so many tokens before the last segment does. None: anywhere in it. (Published: the context alone
            ends 20 tokens before it.)
        text_weight: loss weight of every token of context and question. Published: 0, the answer alone.
        torn_every: in training, every so many tokens of the text have a piece of a fact in them that is none (torn.py). None: the text as
            it is.
        named_every: in training, every so many tokens of the text say a word of the facts and tell nothing (named.py). None: as often as
            the text does.
        compat: "default" or "published", see mixing.py.
    """

    name: ClassVar[str] = "babilong"
    size_name: ClassVar[str] = "segments"

    background: BackgroundConfig
    task: str = "qa1"
    stories: str | None = None
    max_facts: int | None = None
    generate: bool = False
    segments: int | tuple[int, ...] = 2
    segment_length: int = 64
    question: str = "running"
    facts: str = "running"
    questions: int = 1
    peeks: int = 0
    margin: int | None = None
    text_weight: float = 0.0
    torn_every: int | None = None
    named_every: int | None = None
    compat: str = "default"

    def __post_init__(self) -> None:
        if not isinstance(self.background, BackgroundConfig):
            raise DataError(f"background={self.background!r} must be a BackgroundConfig, as BackgroundConfig('books', tokenizer='bytes')")
        require_task(self.task)
        require_compat(self.compat)
        require_int("segment_length", self.segment_length, 8)
        require_sizes("segments", self.segments, 1 if self.question == "running" else 2)
        require_int("questions", self.questions, 1)
        if self.question not in QUESTIONS:
            raise DataError(f"question={self.question!r} is unknown: use {' or '.join(map(repr, QUESTIONS))}")
        if self.facts not in FACTS:
            raise DataError(f"facts={self.facts!r} is unknown: use {' or '.join(map(repr, FACTS))}")
        require_int("peeks", self.peeks, 0)
        if self.peeks and self.facts != "running":
            raise DataError(f"peeks={self.peeks} is for facts='running', not for {self.facts!r}: set it to 0")
        for name, made_up in (("questions", self.questions > 1), ("peeks", self.peeks > 0)):
            if made_up and self.task != "qa1":
                raise DataError(f"{name}={getattr(self, name)} is for task='qa1', whose questions can be made up, not for {self.task!r}")
        if self.margin is not None:
            require_int("margin", self.margin, 0, self.segment_length - 1)
        for name in ("torn_every", "named_every"):
            if getattr(self, name) is not None:
                require_int(name, getattr(self, name), 1)
        if not 0 <= self.text_weight <= 1:
            raise DataError(f"text_weight={self.text_weight} must lie in [0, 1]; an answer's tokens weigh 1")

    # -- what the text and the stories say -------------------------------------------------------------------------------

    def story_source(self, split: str) -> StorySource:
        if self.stories is None or (self.generate and split == "train"):
            return GeneratedStories(self.max_facts)
        return StoryFiles(self.stories, self.max_facts)

    def opened(self) -> Background:
        return self.background.open(self.compat)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.opened().cache.tokenizer

    @property
    def codec(self) -> Codec:
        return self.opened().codec

    @property
    def vocab_size(self) -> int:
        return self.codec.vocab_size

    @property
    def fingerprint(self) -> str:
        stories = dict.fromkeys(self.story_source(split).fingerprint(self.task, split) for split in ("train", "validation"))
        return "/".join([self.opened().fingerprint, *stories])

    def samples(self, split: str, length: int, seed: int = 0, facts_within: int | None = None) -> BabilongSamples:
        """The samples of any length of the same task, text and stories."""
        return BabilongSamples(self.task, split, length, self.background, self.story_source(split), seed, self.compat, facts_within)

    def check_answers(self) -> None:
        """Raises DataError for a tokenizer that cannot express a label of the task, or splits it differently behind a question."""
        question = self.story_source("train").story(self.task, "train", 0, 0, self.compat).question
        for label in LABELS[self.task]:
            self.codec.answer(question, label)

    # -- sizes -----------------------------------------------------------------------------------------------------------

    @property
    def num_answers(self) -> int:
        return self.questions * (1 + self.peeks)

    @property
    def sizes(self) -> tuple[int, ...]:
        return as_sizes(self.segments)

    def row_length(self, size: int) -> int:
        return size * self.segment_length

    def num_steps(self, batch_size: int, split: str) -> int | None:
        """Of files, steps that read the split once; stories that are left of the last step come first in it."""
        count = self.story_source(split).count(self.task, split, self.compat)
        return None if count is None or split == "train" else max(1, count // batch_size)

    # -- rows ------------------------------------------------------------------------------------------------------------

    def batch(self, seed: int, step: int, batch_size: int, split: str = "train", rows: slice | None = None) -> Batch:
        require_batch(seed, step, batch_size, split, rows)
        draw = self._random(seed, split, step, batch_size)
        size = self.sizes[int(draw.integers(len(self.sizes)))] if len(self.sizes) > 1 else self.sizes[0]
        numbers = range(batch_size)[slice(None) if rows is None else rows]
        made = [self._row(seed, split, step, step * batch_size + number, size) for number in numbers]
        return Batch(**{name: np.stack([row[name] for row in made]) for name in made[0]})

    def _random(self, *key: int | str) -> np.random.Generator:
        words = [SPLIT_IDS[word] if isinstance(word, str) else word for word in key]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))

    def _row(self, seed: int, split: str, step: int, number: int, size: int) -> dict[str, np.ndarray]:
        """Fields of Batch, of one row."""
        rng = self._random(seed, split, step, number % _WORD, 1)
        more = {}
        if self.facts == "running":
            ids, group, real, peek_S = self._running(rng, seed, split, number, size)
            # A peek's text is read again, and no part of it is what comes before the text behind it.
            text = ~np.append(np.repeat(peek_S, self.segment_length), False)
            text[1:] &= text[:-1]
            if self.peeks and split == "train":
                more["peek_BxS"] = peek_S
        else:
            ids, group, real = self._apart(rng, seed, split, number, size)
            text = np.ones(len(ids), bool)
        weight = np.where(group > 0, np.float32(1), np.float32(self.text_weight) * text) * real
        weight[0] = 0
        weight[1:] *= real[:-1]  # behind padding nothing real stands before it
        N, end = len(ids) - 1, int(np.flatnonzero(real)[-1]) + 1
        valid = real[:-1] & (np.arange(N) < end - 1)  # the last id is predicted, not read
        fields = dict(tokens_BxN=ids[:-1] * valid, targets_BxN=ids[1:], weights_BxN=weight[1:].astype(np.float32), answers_BxN=group[1:])
        return fields | {"valid_BxN": valid} | more

    def _apart(self, rng, seed: int, split: str, number: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, groups, real) of a row, with one id more than the row reads: the last one is only predicted."""
        T = self.segment_length
        for _, story in self._tried(rng, seed, split, number):
            facts = [self.codec.fact(fact) for fact in story.facts]
            asked = [story, *(_about(story, rng.choice(_people(story))) for _ in range(self.questions - 1))]
            questions = [(self.codec.question(self.task, one.question), self.codec.answer(one.question, one.answer)) for one in asked]
            passages = self._passages(rng, self.opened().split(split), facts, split)
            row = apart.lay_apart(rng, passages, facts, questions, size, T, (self.facts, self.question))
            if row is not None:
                return row
        raise DataError(
            f"none of {_ATTEMPTS} stories of {self.task} fits a row of {size} segments of {T} tokens with one for each question and facts "
            f"{self.facts!r} (the last one has {len(facts)} facts and {len(questions)} questions): give more or longer segments, or lower "
            "max_facts"
        )

    def _running(self, rng, seed: int, split: str, number: int, size: int) -> tuple[np.ndarray, ...]:
        """As `_apart`, and which segments are peeks."""
        index, story, tail_ids, groups, shortest = self._fitting_story(rng, seed, split, number, size)
        context_length = self._context_length(rng, size, len(tail_ids), shortest)
        asked = int(np.argmax(groups > 0)) if self.compat == "default" else 0
        sample = self.samples(split, context_length + asked, seed).of_story(index, story)
        context = dataclasses.replace(sample, passages=self._passages(rng, sample.passages, sample.facts_ids, split)).context()
        T, N = self.segment_length, self.row_length(size)
        begin = context_length if self.question == "running" else -(-context_length // T) * T
        ids, group, real = np.zeros(N + 1, np.int32), np.zeros(N + 1, np.int32), np.zeros(N + 1, bool)
        ids[:context_length], real[:context_length] = context, True
        behind = slice(begin, begin + len(tail_ids))
        ids[behind], group[behind], real[behind] = tail_ids, groups, True
        peeks = self._peeks(rng, sample, context) if split == "train" else []
        return insert_peeks(ids, group, real, peeks, T)

    def _peeks(self, rng, sample: Sample, context: np.ndarray) -> list[Peek]:
        """Their questions are numbered on from those of the row's end."""
        begins = sample.fact_positions_F.tolist()
        spans = [(begin, begin + len(fact)) for begin, fact in zip(begins, sample.facts_ids, strict=True)]

        def ask(rng, told):
            known = dataclasses.replace(sample.story, facts=sample.story.facts[:told])
            return self._tail(rng, _about(known, rng.choice(_people(known))))

        peeks = [draw_peek(rng, context, spans, self.segment_length, ask) for _ in range(self.peeks)]
        shifts = range(self.questions, self.num_answers, self.questions)
        return [peek._replace(groups=np.where(peek.groups > 0, peek.groups + shift, 0)) for peek, shift in zip(peeks, shifts, strict=True)]

    def _passages(self, rng, passages: Passages, facts: Sequence[np.ndarray], split: str) -> Passages:
        """The text around these facts."""
        if split != "train":
            return passages
        if self.named_every is not None:
            kinds = _kinds(self.story_source("train"), self.task, self.compat, self.codec)
            self._require_room("named_every", named.shortest_block(kinds), "the words of facts with text around them")
            passages = named.named(passages, kinds, self.named_every, int(rng.integers(_WORD)))
        if self.torn_every is not None:
            self._require_room("torn_every", torn.shortest_block(facts), "pieces of facts as long as these")
            passages = torn.torn(passages, facts, self.torn_every, int(rng.integers(_WORD)))
        return passages

    def _require_room(self, name: str, needed: int, what: str) -> None:
        if getattr(self, name) < needed:
            raise DataError(f"{name}={getattr(self, name)} is too few tokens: {what} take up to {needed}")

    def _tried(self, rng, seed: int, split: str, number: int) -> Iterator[tuple[int, Story]]:
        """(index, story): the row's own story, then others that are drawn."""
        source, index = self.story_source(split), number % _WORD
        count = source.count(self.task, split, self.compat)
        if split != "train" and count is not None:
            index %= count
        for _ in range(_ATTEMPTS):
            yield index, source.story(self.task, split, index, seed, self.compat)
            index = int(rng.integers(_WORD if count is None else count))

    def _fitting_story(self, rng, seed: int, split: str, number: int, size: int):
        """(index, story, ids of questions and answers, their groups, fewest tokens of context): the row's own story, or the first drawn
        that fits."""
        for index, story in self._tried(rng, seed, split, number):
            tail_ids, groups = self._tail(rng, story)
            shortest = sum(len(self.codec.fact(fact)) for fact in story.facts)
            if shortest <= self._longest_context(size, len(tail_ids)):
                return index, story, tail_ids, groups, shortest
        raise DataError(
            f"none of {_ATTEMPTS} stories of {self.task} fits a row of {size} segments of {self.segment_length} tokens (the last one has "
            f"{len(story.facts)} facts of {shortest} tokens): make the row longer, or lower max_facts"
        )

    def _longest_context(self, size: int, tail: int) -> int:
        """In tokens; below 0 where not even questions and answers fit."""
        T = self.segment_length
        if self.question == "apart":
            return (size - 1) * T if tail - 1 <= T else -1
        return size * T - (tail - 1) if self.margin is None else size * T - self.margin - (tail - 1)

    def _context_length(self, rng, size: int, tail: int, shortest: int) -> int:
        longest = self._longest_context(size, tail)
        if self.margin is not None:
            return longest
        return int(rng.integers(max(longest - self.segment_length + 1, shortest, 0), longest + 1))

    def _tail(self, rng, story: Story) -> tuple[np.ndarray, np.ndarray]:
        """(ids, groups): 0 at questions, 1, 2, ... at the answers."""
        ids, groups = [], []
        for number, each in enumerate(_questions(rng, story, self.questions), start=1):
            asked, said = self.codec.question(self.task, each.question), self.codec.answer(each.question, each.answer)
            ids += [asked, said]
            groups += [np.zeros(len(asked), np.int32), np.full(len(said), number, np.int32)]
        return np.concatenate(ids), np.concatenate(groups)


@functools.lru_cache(maxsize=16)
def _kinds(source: StorySource, task: str, compat: str, codec: Codec) -> named.Kinds:
    """Of the words of a hundred stories."""
    count = source.count(task, "train", compat)
    stories = (source.story(task, "train", index, 0, compat) for index in range(_TOLD if count is None else min(_TOLD, count)))
    return named.kinds_of([fact for story in stories for fact in story.facts], codec)


def _questions(rng: np.random.Generator, story: Story, count: int) -> list[Story]:
    """The story, then others of the same facts, each about somebody else in a drawn order; fewer than `count` where all are asked about.

    Nobody is asked about twice: all questions of a row stand in one open segment, and a second answer could be copied from the first.
    """
    if count == 1:
        return [story]
    others = [other for other in (_about(story, person) for person in _people(story)) if other.question != story.question]
    return [story, *(others[i] for i in rng.permutation(len(others))[: count - 1])]


def _people(story: Story) -> list[str]:
    """Of qa1."""
    return sorted({fact.split()[0] for fact in story.facts})


def _about(story: Story, person: str) -> Story:
    """The same facts (of qa1), and a question about this person."""
    asked = dataclasses.replace(story, question=f"Where is {person}?", answer="")
    return dataclasses.replace(asked, answer=solve(asked))
