"""A question of a bAbI task, with what was told before it."""

import dataclasses

from armt_jax.data.errors import DataError

TASKS = tuple(f"qa{number}" for number in range(1, 21))


@dataclasses.dataclass(frozen=True)
class Story:
    """One question.

    task: "qa1" to "qa20".
    facts: the sentences told before the question, each with its final period; earlier questions are left out.
    question: with its question mark, without the space that the published files of qa1-qa3 and qa5-qa14 put behind it.
    answer: one word, or several separated by commas (qa8, qa19).
    supports: indices into facts, from 0, in the published order, which is not always that of the story.
    """

    task: str
    facts: tuple[str, ...]
    question: str
    answer: str
    supports: tuple[int, ...]


def require_task(task: object, known: tuple[str, ...] = TASKS, of: str = "of bAbI") -> None:
    """Raises DataError unless `task` is one of those known."""
    if task not in known:
        raise DataError(f"task {task!r} is not one {of}: use one of {', '.join(known)}")
