"""Where the stories of a split come from: the published files of bAbI, or their generator.

Validation stories are the last tenth of the training file, cut where a new story begins (a story has several questions, and they share
facts); the published code validates on the test file, and this one never does. Training reads the rest in an order that is drawn anew for
every epoch; validation and test read in the order of the file.
"""

import abc
import dataclasses
import functools
import hashlib
import math
from pathlib import Path

import numpy as np

from armt_jax.data.babi import files, worlds
from armt_jax.data.babi.story import TASKS, Story, require_task
from armt_jax.data.babilong.tokens import require_compat
from armt_jax.data.errors import DataError
from armt_jax.tasks.base import SPLIT_IDS, require_int

_ATTEMPTS = 1000


def task_number(task: str) -> int:
    """1 to 20. Raises DataError."""
    require_task(task)
    return TASKS.index(task) + 1


class StorySource(abc.ABC):
    """Stories by number. The same arguments always give the same story."""

    @abc.abstractmethod
    def fingerprint(self, task: str, split: str) -> str:
        """Of everything that the stories of a split depend on, but the seed."""

    @abc.abstractmethod
    def count(self, task: str, split: str, compat: str) -> int | None:
        """How many different stories a split has; None: any number."""

    @abc.abstractmethod
    def story(self, task: str, split: str, index: int, seed: int, compat: str) -> Story:
        """Story `index` of a split, for a run with this seed. "train" goes on behind its last story with the next epoch.

        Raises:
            DataError: "validation" or "test" has no such story.
        """


@dataclasses.dataclass(frozen=True)
class StoryFiles(StorySource):
    """The published files.

    Attributes:
        folder: with qa1_*_train.txt, qa1_*_test.txt and so on, such as tasks_1-20_v1-2/en-10k.
        max_facts: stories with more are left out.

    compat="published" leaves out the last story of every split, and counts the question as one of max_facts.
    """

    folder: str
    max_facts: int | None = None

    def __post_init__(self) -> None:
        if self.max_facts is not None:
            require_int("max_facts", self.max_facts, 1)

    def fingerprint(self, task: str, split: str) -> str:
        digest = hashlib.sha256(_file(self, task, split).read_bytes()).hexdigest()
        return f"file:{digest[:24]}:{self.max_facts}"

    def count(self, task: str, split: str, compat: str) -> int:
        return len(_read(self, task, split, compat))

    def story(self, task: str, split: str, index: int, seed: int, compat: str) -> Story:
        stories = _read(self, task, split, compat)
        if split == "train":
            epoch, place = divmod(index, len(stories))
            return stories[_order(seed, task, epoch, len(stories))[place]]
        if index >= len(stories):
            raise DataError(f"index={index} is past the {len(stories)} stories of {task}, split {split!r}, in {self.folder}: ask for fewer")
        return stories[index]


@dataclasses.dataclass(frozen=True)
class GeneratedStories(StorySource):
    """Stories drawn from the worlds behind bAbI (qa1 to qa10): nothing needs to be downloaded, and there is no end of them.

    Attributes:
        max_facts: stories with more are drawn again.
    """

    max_facts: int | None = None

    def __post_init__(self) -> None:
        if self.max_facts is not None:
            require_int("max_facts", self.max_facts, 1)

    def fingerprint(self, task: str, split: str) -> str:
        return f"generated:{self.max_facts}"

    def count(self, task: str, split: str, compat: str) -> None:
        return None

    def story(self, task: str, split: str, index: int, seed: int, compat: str) -> Story:
        most = math.inf if self.max_facts is None else self.max_facts
        for attempt in range(_ATTEMPTS):
            again = int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0]) if attempt else seed
            story = worlds.generate_short(task, again, index, split, most)
            if story is not None:
                return story
        raise DataError(f"none of {_ATTEMPTS} stories of {task} has at most max_facts={self.max_facts} facts: raise it")


def split_training(stories: list[Story]) -> tuple[list[Story], list[Story]]:
    """(training, validation): the last tenth of the questions or a little less, from where a story begins."""
    first = -(-len(stories) * 9 // 10)
    while 0 < first < len(stories) and _goes_on(stories[first - 1], stories[first]):
        first += 1
    return stories[:first], stories[first:]


def _goes_on(one: Story, other: Story) -> bool:
    return other.facts[: len(one.facts)] == one.facts


def _file(source: StoryFiles, task: str, split: str) -> Path:
    require_task(task)
    if split not in SPLIT_IDS:
        raise DataError(f"split {split!r} is unknown: use {', '.join(map(repr, SPLIT_IDS))}")
    return files.find_file(source.folder, task, "test" if split == "test" else "train")


@functools.lru_cache(maxsize=64)
def _read(source: StoryFiles, task: str, split: str, compat: str) -> list[Story]:
    require_compat(compat)
    path = _file(source, task, split)
    stories = files.read_stories(path)
    if split != "test":
        stories = split_training(stories)[split == "validation"]
    published = compat == "published"
    if source.max_facts is not None:
        stories = [story for story in stories if len(story.facts) + published <= source.max_facts]
    if published:
        stories = stories[:-1]
    if not stories:
        raise DataError(f"{path} gives no story for split {split!r} with max_facts={source.max_facts}: raise it, or give the whole file")
    return stories


@functools.lru_cache(maxsize=64)
def _order(seed: int, task: str, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, task_number(task), epoch]))).permutation(count)
