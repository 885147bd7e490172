"""Answers to the questions of qa1 to qa10 by symbolic reasoning over their facts: no model, and no look at answers or supports.

solve(story) == story.answer holds for every published question, but for those of qa5 that have two right answers.
"""

from collections.abc import Callable

from armt_jax.data.babi.solvers import relating, reporting, tracking
from armt_jax.data.babi.story import Story, require_task

SOLVERS: dict[str, Callable[[Story], tuple[str, ...]]] = {
    "qa1": tracking.where_is_who,
    "qa2": tracking.where_is_what,
    "qa3": tracking.where_was_what,
    "qa4": relating.which_way,
    "qa5": relating.who_gave_what,
    "qa6": tracking.is_present,
    "qa7": tracking.how_many,
    "qa8": tracking.which_things,
    "qa9": reporting.is_not_there,
    "qa10": reporting.may_be_there,
}


def answers(story: Story) -> tuple[str, ...]:
    """Every right answer, the likeliest first. Only questions of qa5 have several.

    Raises:
        DataError: the task has no solver, a sentence or the question is not of its kind, or the facts do not answer.
    """
    require_task(story.task, tuple(SOLVERS), "with a solver")
    return SOLVERS[story.task](story)


def solve(story: Story) -> str:
    """The likeliest of `answers`."""
    return answers(story)[0]
