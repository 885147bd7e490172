"""Generated stories: a function of (task, seed, index, split) alone, well formed, and solved. Their statistics are in test_published.py."""

import itertools
from dataclasses import replace

import pytest

from armt_jax.data.babi import GENERATED, answers, generate, generate_story, solve, stream
from armt_jax.data.babi.worlds import questions_per_story
from armt_jax.data.errors import DataError

# (question, answer, facts) of seed 0, index 0.
FIRST = {
    "qa1": ("Where is John?", "bathroom", 10),
    "qa2": ("Where is the football?", "office", 34),
    "qa3": ("Where was the apple before the garden?", "kitchen", 44),
    "qa4": ("What is east of the office?", "kitchen", 2),
    "qa5": ("Who received the apple?", "Mary", 8),
    "qa6": ("Is Sandra in the kitchen?", "no", 10),
    "qa7": ("How many objects is Mary carrying?", "one", 18),
    "qa8": ("What is John carrying?", "football", 10),
    "qa9": ("Is Sandra in the garden?", "no", 6),
    "qa10": ("Is Julie in the bedroom?", "no", 8),
}


@pytest.mark.parametrize("task", GENERATED)
def test_stories_are_well_formed_and_solved(task):
    several = 0
    for index in range(300):
        story = generate(task, seed=3, index=index)
        assert story.task == task
        assert story.facts and all(fact.endswith(".") for fact in story.facts)
        assert story.question.endswith("?") and story.answer
        assert story.supports and all(0 <= support < len(story.facts) for support in story.supports)
        assert len(set(story.supports)) == len(story.supports)
        right = answers(story)
        assert story.answer in right
        several += len(right) > 1
    # Only "what did one give to the other?" can have two right answers, and seldom.
    assert several <= (10 if task == "qa5" else 0)


@pytest.mark.parametrize("task", GENERATED)
def test_any_order_gives_the_same_stories(task):
    forward = [generate(task, 5, index) for index in range(20)]
    assert [generate(task, 5, index) for index in reversed(range(20))] == forward[::-1]
    assert list(itertools.islice(stream(task, 5), 20)) == forward
    assert list(itertools.islice(stream(task, 5, start=12), 8)) == forward[12:]


@pytest.mark.parametrize("task", GENERATED)
def test_seeds_indices_and_splits_are_separate_streams(task):
    # Two facts of qa4 can be equal by chance; ten stories cannot.
    drawn = [tuple(generate(task, seed, start + i, split) for i in range(10)) for seed, start, split in
             [(0, 0, "train"), (1, 0, "train"), (0, 10, "train"), (0, 0, "validation"), (0, 0, "test")]]  # fmt: skip
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("task", GENERATED)
def test_a_question_is_drawn_from_its_story(task):
    numbers = set()
    for index in range(60):
        story = generate_story(task, 0, index)
        assert len(story) == questions_per_story(task)
        for before, after in itertools.pairwise(story):
            assert after.facts[: len(before.facts)] == before.facts and len(after.facts) > len(before.facts)
        numbers.add(story.index(generate(task, 0, index)))
    assert numbers == set(range(questions_per_story(task)))


def test_stories_do_not_change_between_versions():
    """A change here changes the data of every run: raise the version of what is built from it."""
    for task, pinned in FIRST.items():
        story = generate(task, 0, 0)
        assert (story.question, story.answer, len(story.facts)) == pinned


def test_arguments_are_checked():
    with pytest.raises(DataError, match="task 'qa11' is not one that can be generated: use one of qa1, .*, qa10$"):
        generate("qa11", 0, 0)
    for seed, index in ((-1, 0), (2**32, 0), (0.0, 0), (True, 0)):
        with pytest.raises(DataError, match=f"seed={seed!r} is not an integer from 0 to 4294967295"):
            generate("qa1", seed, index)
    with pytest.raises(DataError, match="index=4294967296 is not"):
        generate("qa1", 0, 2**32)
    with pytest.raises(DataError, match="split 'dev' is unknown: use one of 'train', 'validation', 'test'"):
        generate("qa1", 0, 0, "dev")


def test_what_cannot_be_solved_is_refused():
    story = generate("qa1", 0, 0)
    with pytest.raises(DataError, match="do not answer 'Where is Nobody"):
        solve(replace(story, question="Where is Nobody?"))
    with pytest.raises(DataError, match="is none of task 'qa1'"):
        solve(replace(story, question="Why?"))
    with pytest.raises(DataError, match="sentence 'Mary slept.' is none of qa1 to qa10"):
        solve(replace(story, facts=("Mary slept.",)))
    with pytest.raises(DataError, match="task 'qa20' is not one with a solver"):
        solve(replace(story, task="qa20"))
