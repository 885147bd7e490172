"""Synthetic tasks: a registry by name. A new task is one file and one entry of TASKS."""

import dataclasses
import difflib

from armt_jax.tasks.associative_retrieval import AssociativeRetrieval
from armt_jax.tasks.base import SPLIT_IDS, Batch, BatchSource, Task, exact_match
from armt_jax.tasks.copying import Copy, Reverse
from armt_jax.tasks.letter_retrieval import LetterRetrieval
from armt_jax.tasks.quadratic_equations import QuadraticEquations

__all__ = [
    "SPLIT_IDS",
    "TASKS",
    "AssociativeRetrieval",
    "Batch",
    "BatchSource",
    "Copy",
    "LetterRetrieval",
    "QuadraticEquations",
    "Reverse",
    "Task",
    "exact_match",
    "make_task",
]

TASKS: dict[str, type[Task]] = {task.name: task for task in (AssociativeRetrieval, Copy, Reverse, LetterRetrieval, QuadraticEquations)}


def make_task(name: str, **fields: object) -> Task:
    """The task of this name with these fields; raises ValueError on an unknown name, unknown field or missing field."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown: {_suggest(name, TASKS)}")
    task = TASKS[name]
    known = {field.name: field for field in dataclasses.fields(task)}
    for field in fields:
        if field not in known:
            raise ValueError(f"task {name!r} has no field {field!r}: {_suggest(field, known)}")
    required = [field.name for field in known.values() if field.default is dataclasses.MISSING]
    missing = [field for field in required if field not in fields]
    if missing:
        raise ValueError(f"task {name!r} has no default for {', '.join(map(repr, missing))}: set each of them.")
    return task(**fields)


def _suggest(word: object, known) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    options = "the choices are " + ", ".join(map(repr, known)) + "."
    return f"did you mean {close[0]!r}? {options[0].upper()}{options[1:]}" if close else options
