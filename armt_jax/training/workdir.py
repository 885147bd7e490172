"""The folder of a run: made, locked, and tied to one config."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What may change between two starts of the same run without changing what it computes.
# (Data may move: a checkpoint knows its fingerprint.)
FREE = (
    "train.log_every", "train.keep_last", "train.tensorboard", "evaluation", "mesh", "data.path", "data.tokenizer_path", "data.cache_dir",
    "task.background.path", "task.background.tokenizer_path", "task.background.cache_dir", "task.stories",
)  # fmt: skip


class WorkdirError(RuntimeError):
    """The workdir cannot be used; the message says why and what to do."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the run's folder. The lock is the operating system's: a killed run leaves none behind."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise WorkdirError(f"workdir {workdir} cannot be written ({error}): choose another --workdir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise WorkdirError(f"workdir {workdir} is in use by {owner}: wait for it, stop it, or choose another --workdir") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, Mapping):
        return {prefix: config}
    return {key: v for name, part in config.items() for key, v in flatten(part, f"{prefix}.{name}" if prefix else str(name)).items()}


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, or checks that the one there is of the same run.

    Raises:
        WorkdirError: a key that changes the result differs; the message lists them.
    """
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(config))
    if path.exists():
        saved = flatten(read_config(workdir))
        now = flatten(wanted)
        free = tuple(f"{name}." for name in FREE)
        differing = sorted(
            k for k in saved.keys() | now.keys() if saved.get(k) != now.get(k) and not f"{k}.".startswith(free)
        )
        if differing:
            shown = "; ".join(f"{k}: {saved.get(k)!r} there, {now.get(k)!r} now" for k in differing[:4])
            raise WorkdirError(f"workdir {workdir} holds a run with another config ({shown}): use the same config or another --workdir")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted, indent=1) + "\n")
    temporary.replace(path)


def read_config(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WorkdirError(f"{workdir} is not a run's workdir: it has no config.json") from error
    except ValueError as error:
        raise WorkdirError(f"{path} is not readable JSON ({error}): restore it, or start again in another --workdir") from error
