"""The folder of a run: made, locked, tied to one config, and the same for every process of the run."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from armt_jax.parallel.processes import gather_text, is_main

# What may change between two starts of the same run without changing what it computes.
# (Data may move: a checkpoint knows its fingerprint.)
FREE = (
    "train.log_every", "train.keep_last", "train.tensorboard", "train.data_workers", "evaluation", "mesh", "data.path",
    "data.tokenizer_path", "data.cache_dir", "task.background.path", "task.background.tokenizer_path",
    "task.background.cache_dir", "task.stories",
)  # fmt: skip
# Of these, what the processes of one job may each have their own of.
LOCAL = (
    "data.path", "data.tokenizer_path", "data.cache_dir", "task.background.path", "task.background.tokenizer_path",
    "task.background.cache_dir", "task.stories",
)  # fmt: skip
# A file server may show a new file to the other hosts this much later.
SHARED_WITHIN_SECONDS = 10


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
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise WorkdirError(f"workdir {workdir} is in use by {owner}: wait for it, stop it, or choose another --workdir") from error
        except OSError as error:
            raise WorkdirError(
                f"workdir {workdir} cannot be locked ({error}), so two runs could write there at once: put --workdir on a file system "
                "with locks (of NFS, mounted with them)"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


@contextlib.contextmanager
def held(workdir: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """The run's folder, held for all processes of a job: process 0 locks and claims it, the others must see what it wrote there.

    Raises:
        WorkdirError: on every process alike.
    """
    with contextlib.ExitStack() as stack:

        def take():
            stack.enter_context(locked(workdir))
            claim(workdir, config)

        _by_main(take)
        check_shared(workdir)
        yield


def _by_main(action: Callable[[], None]) -> None:
    """Process 0 acts; a WorkdirError of its is everyone's, else the others would wait for it."""
    problem = ""
    if is_main():
        try:
            action()
        except WorkdirError as error:
            problem = str(error)
    if problem := gather_text(problem)[0]:
        raise WorkdirError(problem)


def check_shared(workdir: Path) -> None:
    """Raises WorkdirError, on every process, where one of them does not see the folder of process 0."""
    name = gather_text(f".shared-{secrets.token_hex(8)}" if is_main() else "")[0]
    mark = workdir / name
    if is_main():
        mark.touch()
    told = gather_text("written")  # after process 0 has
    seen = _appears(mark) if len(told) > 1 else True
    answers = gather_text("" if seen else "missing")
    if is_main():
        mark.unlink()
    if missing := [process for process, answer in enumerate(answers) if answer]:
        raise WorkdirError(
            f"workdir {workdir} of process 0 is not the folder that process(es) {', '.join(map(str, missing))} see under that name: "
            "put --workdir on a file system that all hosts share (NFS, Lustre, a mounted bucket)"
        )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SHARED_WITHIN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
        if path.parent.is_dir():
            os.listdir(path.parent)  # makes a network file system look again
    return True


def agreed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What every process of a job must have the same of, flat: the config but for where the data lies on this host."""
    local = tuple(f"{name}." for name in LOCAL)
    return {key: value for key, value in flatten(config).items() if not f"{key}.".startswith(local)}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; of a list of sections (stages) `train.stages[1].steps` and so on."""
    if isinstance(config, Mapping):
        parts = {f"{prefix}.{name}" if prefix else str(name): part for name, part in config.items()}
    elif isinstance(config, (list, tuple)) and config and all(isinstance(part, Mapping) for part in config):
        parts = {f"{prefix}[{i}]": part for i, part in enumerate(config)}
    else:
        return {prefix: config}
    return {key: value for name, part in parts.items() for key, value in flatten(part, name).items()}


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} of a plain config, as JSON gives it back, without what does not change the result."""
    free = tuple(f"{name}." for name in FREE)
    return {key: value for key, value in flatten(json.loads(json.dumps(config))).items() if not f"{key}.".startswith(free)}


def differences(saved: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What two plain configs differ in that changes the result, for people; empty where they are of the same run."""
    there, now = decisive(saved), decisive(config)
    differing = sorted(k for k in there.keys() | now.keys() if there.get(k) != now.get(k))
    return "; ".join(f"{k}: {there.get(k)!r} there, {now.get(k)!r} now" for k in differing[:4])


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json, or checks that the one there is of the same run.

    Raises:
        WorkdirError: a key that changes the result differs; the message lists them. Or the file cannot be written.
    """
    path = workdir / "config.json"
    if path.exists() and (shown := differences(read_config(workdir), config)):
        raise WorkdirError(f"workdir {workdir} holds a run with another config ({shown}): use the same config or another --workdir")
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(config, indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise WorkdirError(f"{path} cannot be written ({error}): free space there, or choose another --workdir") from error


def keep_tokenizer(workdir: Path, tokenizer: Any) -> None:
    """Writes the files of the run's tokenizer (armt_jax.data.tokenizers) into WORKDIR/tokenizer, once: the cache it came from may be gone.

    Raises:
        WorkdirError: they cannot be written.
    """
    folder, partial = workdir / "tokenizer", workdir / "tokenizer.partial"
    if folder.exists():
        return
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        tokenizer.save(partial)
        partial.rename(folder)
    except OSError as error:
        raise WorkdirError(f"{folder} cannot be written ({error}): free space there, or choose another --workdir") from error


def read_config(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WorkdirError(f"{workdir} is not a run's workdir: it has no config.json") from error
    except ValueError as error:
        raise WorkdirError(f"{path} is not readable JSON ({error}): restore it, or start again in another --workdir") from error
