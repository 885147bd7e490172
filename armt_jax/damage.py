"""When a checkpoint cannot be trusted, and how the processes of a job agree on it."""

import errno
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")


class Damaged(Exception):
    """This one checkpoint cannot be trusted; an older one may do. passing: it could not be read just now, which says nothing about it."""

    def __init__(self, reason: str, passing: bool = False):
        super().__init__(reason)
        self.passing = passing


def brief(error: Exception) -> str:  # tensorstore quotes its whole configuration
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# How tensorstore's messages begin where a file system refuses or does not answer.
_REFUSALS = ("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def is_passing(error: BaseException | None) -> bool:
    """Whether a failed read is the file system's doing (no permission, no answer, too many open files), not the file's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None and error.errno not in _ABSENT:
            return True
        if str(error).startswith(_REFUSALS):
            return True
        error = error.__cause__ or error.__context__
    return False


def together(action: Callable[[], T]) -> T:
    """Runs action on all processes; damage seen by one is damage for all, else they would restore different steps."""
    if jax.process_count() == 1:
        return action()
    result, seen = None, None
    try:
        result = action()
    except Damaged as damage:
        seen = damage
    found = multihost_utils.process_allgather(np.asarray([seen is not None, seen is not None and seen.passing]))
    if np.any(found):
        reason = "another process cannot read it" if seen is None else str(seen)
        raise Damaged(reason, passing=bool(np.any(found.reshape(-1, 2)[:, 1])))
    return result
