"""The published files (ARMT_JAX_DATA): all parse, the solvers answer them, and the worlds are drawn from the same distribution.

Questions of one story depend on each other, so the chi-square tests take one question of each story, published and generated.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import chi2

from armt_jax.data.babi import GENERATED, TASKS, Story, answers, find_file, generate, read_stories, solve
from armt_jax.data.babi.worlds import house, present, questions_per_story, telling

# A right generator has a figure below this once in a thousand; seeds are fixed, so a test fails always or never.
LEVEL = 1e-3
DRAWN = 3000

PEOPLE = {"Mary", "John", "Sandra", "Daniel", "Fred", "Bill", "Jeff", "Julie"}
ROOMS = {"bathroom", "hallway", "garden", "office", "kitchen", "bedroom", "school", "park", "cinema"}
THINGS = {"milk", "football", "apple"}


@pytest.fixture
def folder(real_data) -> Path:
    return real_data / "babi" / "en-10k"


def published(folder: Path, task: str, split: str) -> list[Story]:
    if (task, split) == ("qa3", "train"):
        # The full file is not at hand.
        return read_stories(folder.parent / "en-10k-qa3-partial" / "qa3_three-supporting-facts_train.partial-385-stories.txt")
    return read_stories(find_file(folder, task, split))


def one_of_each(stories: list[Story]) -> list[Story]:
    """The first question of the first story, the second of the second, and so on: the published stories have one length in a task."""
    count = questions_per_story(stories[0].task)
    return [stories[first + first // count % count] for first in range(0, len(stories), count)]


@pytest.mark.parametrize("task", TASKS)
def test_every_test_question_parses(folder, task):
    stories = published(folder, task, "test")
    assert len(stories) == 1000
    assert {story.task for story in stories} == {task}
    assert all(story.supports and max(story.supports) < len(story.facts) for story in stories)


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("task", GENERATED)
def test_the_solver_answers_the_published_questions(folder, task, split):
    stories = published(folder, task, split)
    assert len(stories) == (1000 if split == "test" else 1925 if task == "qa3" else 10_000)
    assert all(story.answer in answers(story) for story in stories)
    right = sum(solve(story) == story.answer for story in stories) / len(stories)
    # qa5: who gives two things to the same person is asked about either; 2 questions of 1,000 and 18 of 10,000 go to the earlier one.
    assert right == (1 if task != "qa5" else 0.998 if split == "test" else 0.9982)


def shape(sentence: str) -> str:
    """The sentence without its names."""
    kinds = {"A": PEOPLE, "R": ROOMS, "T": THINGS}
    return re.sub(r"\w+", lambda m: next((letter for letter, words in kinds.items() if m[0] in words), m[0]), sentence)


def distances(story: Story) -> tuple[int, ...]:
    """Of the supports from the question, in facts between."""
    return tuple(len(story.facts) - 1 - support for support in story.supports)


PROPERTIES: dict[str, Callable[[Story], object]] = {
    "label": lambda story: story.answer,
    "facts": lambda story: len(story.facts),
    "number of supports": lambda story: len(story.supports),
    "nearest support": lambda story: min(distances(story)),
    "first support": lambda story: distances(story)[0],
    "last support": lambda story: distances(story)[-1],
    "all supports": distances,
    "question": lambda story: story.question,
    "question and answer": lambda story: (shape(story.question), shape(story.answer)),
    "first fact": lambda story: story.facts[0],
    "last fact": lambda story: story.facts[-1],
    "middle fact": lambda story: shape(story.facts[len(story.facts) // 2]),
    "same person again": lambda story: story.facts[-1].split()[0] == story.facts[-2].split()[0],
}


def homogeneity(one: Counter, other: Counter) -> tuple[float, int, float]:
    """Chi-square of two samples being of one distribution: (statistic, degrees of freedom, p). Rare outcomes count as one."""
    sizes = [one.total(), other.total()]
    smaller = min(sizes) / sum(sizes)
    cells, rare = [], [0, 0]
    for key in one | other:
        counts = [one[key], other[key]]
        if sum(counts) * smaller >= 5:
            cells.append(counts)
        else:
            rare = [a + b for a, b in zip(rare, counts)]
    if sum(rare) * smaller >= 5 or not cells:
        cells.append(rare)
    elif sum(rare):
        cells[-1] = [a + b for a, b in zip(cells[-1], rare)]
    statistic = 0.0
    for counts in cells:
        for count, size in zip(counts, sizes):
            expected = sum(counts) * size / sum(sizes)
            statistic += (count - expected) ** 2 / expected
    freedom = len(cells) - 1
    return statistic, freedom, float(chi2.sf(statistic, freedom)) if freedom else 1.0


def compare(real: list[Story], drawn: list[Story]) -> dict[str, tuple[float, int, float]]:
    return {name: homogeneity(Counter(map(of, real)), Counter(map(of, drawn))) for name, of in PROPERTIES.items()}


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("task", GENERATED)
def test_worlds_have_the_published_statistics(folder, task, split):
    found = compare(one_of_each(published(folder, task, split)), [generate(task, 0, index) for index in range(DRAWN)])
    assert {name: figures for name, figures in found.items() if figures[2] < LEVEL} == {}


@pytest.mark.parametrize("task", GENERATED)
def test_worlds_use_the_published_words(folder, task):
    def words(stories: list[Story]) -> set[str]:
        return {word for story in stories for text in (*story.facts, story.question, story.answer) for word in re.findall(r"\w+", text)}

    drawn = [generate(task, 1, index) for index in range(1000)]
    assert words(drawn) == words(published(folder, task, "test"))
    # Word for word, also in the order of a sentence.
    assert {shape(f) for s in drawn for f in s.facts} == {shape(f) for s in published(folder, task, "test") for f in s.facts}


@pytest.mark.parametrize("task", GENERATED)
def test_all_test_questions_have_the_generated_labels_and_supports(folder, task):
    """All 1,000, though questions of one story depend on each other; that only makes the test stricter."""
    found = compare(published(folder, task, "test"), [generate(task, 2, index) for index in range(DRAWN)])
    wanted = ("label", "facts", "first support", "last support")
    assert {name: found[name] for name in wanted if found[name][2] < LEVEL} == {}


class TestWrongWorldsAreNoticed:
    """Each with one rule changed."""

    @staticmethod
    def least(folder, task) -> float:
        found = compare(one_of_each(published(folder, task, "train")), [generate(task, 0, index) for index in range(DRAWN)])
        return min(p for _, _, p in found.values())

    @pytest.mark.parametrize("task", ["qa1", "qa2", "qa6", "qa7", "qa9"])
    def test_questions_about_the_last_six_events(self, folder, task, monkeypatch):
        monkeypatch.setattr(telling, "_RECENT", 6)
        assert self.least(folder, task) < LEVEL / 10

    @pytest.mark.parametrize("task", ["qa2", "qa5", "qa7", "qa8"])
    def test_a_deed_that_cannot_be_done_is_drawn_again_for_the_same_person(self, folder, task, monkeypatch):
        def happen(self):
            person = house.choose(self.rng, self.people)
            while True:
                event = house.choose(self.rng, self.deeds)(person)
                if event is not None:
                    return event

        monkeypatch.setattr(house.House, "happen", happen)
        assert self.least(folder, task) < LEVEL / 10

    @pytest.mark.parametrize("task", ["qa5", "qa7"])
    def test_gifts_by_the_person_drawn_alone(self, folder, task, monkeypatch):
        give = house.House.give

        def give_own(self, person):
            everything = self.carrying
            self.carrying = {person: everything[person]} | {other: [] for other in self.people if other != person}
            event = give(self, person)
            if event is not None:
                everything[event.receiver].append(event.thing)
            self.carrying = everything
            return event

        monkeypatch.setattr(house.House, "give", give_own)
        assert self.least(folder, task) < LEVEL / 10

    def test_answers_that_are_yes_more_often(self, folder, monkeypatch):
        monkeypatch.setattr(present, "yes_or_no", lambda rng, person, room, rooms: (f"Is {person} in the {room}?", "yes"))
        assert self.least(folder, "qa6") < LEVEL / 10
