"""The samples of a split: numbered, each a function of (seed, task, split, length or facts_within, index) and of nothing else."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from armt_jax.data.babi.story import Story
from armt_jax.data.babilong.background import BackgroundConfig
from armt_jax.data.babilong.mixing import Sample, lay_out, room_for_background
from armt_jax.data.babilong.stories import StorySource, task_number
from armt_jax.data.babilong.tokens import require_compat
from armt_jax.data.errors import DataError
from armt_jax.tasks.base import SPLIT_IDS, require_int

_WORD = 2**32


@dataclasses.dataclass(frozen=True)
class BabilongSamples:
    """One task at one length. Any process gets sample i without those before it.

    Attributes:
        task: "qa1" to "qa20". split: "train", "validation" or "test".
        length: tokens of a sample: facts, background and question (compat="published": without the question).
        background: where text comes from, and the tokenizer. stories: where facts come from.
        seed: of the passages, the gaps, and the order of training stories.
        compat: "default", or "published": as the published code has it (see mixing.py).
        facts_within: the facts stand where the sample of this length has them (see mixing.py). None: anywhere in `length`.
    """

    task: str
    split: str
    length: int
    background: BackgroundConfig
    stories: StorySource
    seed: int = 0
    compat: str = "default"
    facts_within: int | None = None

    def __post_init__(self) -> None:
        task_number(self.task)
        require_compat(self.compat)
        if self.split not in SPLIT_IDS:
            raise DataError(f"split={self.split!r} is unknown: use {', '.join(map(repr, SPLIT_IDS))}")
        require_int("length", self.length, 1, _WORD - 1)
        require_int("seed", self.seed, 0, _WORD - 1)
        if self.facts_within is not None:
            require_int("facts_within", self.facts_within, 1)
            if self.facts_within > self.length:
                raise DataError(f"facts_within={self.facts_within} is more than length={self.length}: set it to at most that, or to None")

    @property
    def count(self) -> int | None:
        """Samples of an epoch; of "validation" and "test", all. None: no end."""
        return self.stories.count(self.task, self.split, self.compat)

    @property
    def fingerprint(self) -> str:
        """Of text, tokenizer and stories."""
        return f"{self.background.open(self.compat).fingerprint}/{self.stories.fingerprint(self.task, self.split)}"

    def sample(self, index: int) -> Sample:
        """Raises DataError for facts longer than the length, and where the split has no such sample."""
        require_int("index", index, 0, _WORD - 1)
        return self.of_story(index, self.stories.story(self.task, self.split, index, self.seed, self.compat))

    def of_story(self, index: int, story: Story) -> Sample:
        """Sample `index`, where its story is known already. Raises DataError for facts longer than the length."""
        background = self.background.open(self.compat)
        codec = background.codec
        facts_ids = tuple(map(codec.fact, story.facts))
        question_ids = codec.question(self.task, story.question)
        counts = self.compat == "default"
        outside = counts * len(question_ids)
        shortest = self.length if self.facts_within is None else self.facts_within
        where = f"{self.task}, split {self.split!r}, story {index}"
        room = room_for_background(shortest - outside, facts_ids, shortest, where, self.compat)
        key = [self.seed, task_number(self.task), SPLIT_IDS[self.split], shortest, index]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        passages = background.split(self.split)
        laid_out = room + sum(map(len, facts_ids))
        return Sample(
            story=story,
            index=index,
            question_ids=question_ids,
            answer_ids=codec.answer(story.question, story.answer),
            context_length=max(self.length - outside, laid_out),
            laid_out=laid_out,
            passages=passages,
            layout=lay_out(rng, passages, len(facts_ids), room, self.compat),
            facts_ids=facts_ids,
            question_counts=counts,
        )

    def __iter__(self) -> Iterator[Sample]:
        """All samples of the split, once. Raises DataError where there is no end of them."""
        if self.count is None:
            raise DataError(f"stories of {self.task} are generated without end: ask for sample(index)")
        return map(self.sample, range(self.count))
