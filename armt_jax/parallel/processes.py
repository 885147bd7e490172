"""The processes of a multi-host job: joining them, what they must agree on, and how they end.

One program per process, joined through a coordinator (process 0). Nothing here lets a job go on as several jobs of one process, and a
process that fails does not wait for the others: they notice, and end too.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from armt_jax.telemetry.failures import EXIT_PREEMPTED

AUTO, NONE = "auto", "none"
# Seconds without a sign of life after which a process counts as dead and the whole job ends.
HEARTBEAT_TIMEOUT = 30
JOIN_TIMEOUT = 300

# Environment variables that count the processes of a job, and how they got there.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")


class JobError(RuntimeError):
    """The processes of a job do not fit together; the message says what and where."""


def _count(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name) or "1"
    if not text.isdigit() or int(text) < 1:
        raise JobError(f"environment variable {name}={text!r} must be a number of processes: mend it, or unset it to run as one process")
    return int(text)


def _counted(environ: Mapping[str, str]) -> str | None:
    """The variable that counts this job's processes, where there are several."""
    for name in _COUNTS:
        if _count(environ, name) > 1:
            return name
    # Inside a batch script, but not started by srun: one process where several were reserved.
    if "SLURM_STEP_NUM_TASKS" not in environ and _count(environ, "SLURM_NTASKS") > 1:
        return "SLURM_NTASKS"
    return None


def cluster_request(environ: Mapping[str, str]) -> str | None:
    """The environment variable, as 'NAME=value', that says this is one of several processes of a job; else None."""
    if environ.get("JAX_COORDINATOR_ADDRESS"):
        return f"JAX_COORDINATOR_ADDRESS={environ['JAX_COORDINATOR_ADDRESS']}"
    if (name := _counted(environ)) is not None:
        return f"{name}={environ[name]}"
    hosts = "TPU_WORKER_HOSTNAMES"
    if "," in environ.get(hosts, ""):
        return f"{hosts}={environ[hosts]}"
    return None


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *,
    join_timeout: int = JOIN_TIMEOUT, heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
) -> bool:  # fmt: skip
    """Joins the processes of the job, before any other use of JAX devices. Returns whether there was a job to join.

    Args:
      coordinator: 'host:port' of process 0, with `num_processes` and `process_id`; "auto": JAX asks the cluster it runs
        on (SLURM, Open MPI, Kubernetes, a TPU pod); "none": one process, whatever the environment says; None: like
        "auto" where the environment shows a job of several processes (a Kubernetes job or a TPU pod may not: say "auto"
        there), else nothing to do.
      num_processes: number of processes of the job.
      process_id: which of them this is, from 0.
      join_timeout: seconds to wait for the others. heartbeat_timeout: seconds after which a silent one counts as dead.

    Raises:
      ValueError: the arguments contradict each other. JobError: any failure to join; a job never goes on as several
        jobs of one process.
    """
    explicit = coordinator not in (None, AUTO, NONE)
    numbers_given = [number is not None for number in (num_processes, process_id)]
    if (explicit and not all(numbers_given)) or (not explicit and any(numbers_given)):
        raise ValueError(
            f"coordinator={coordinator!r}, num_processes={num_processes!r}, process_id={process_id!r}: give all three, "
            "or leave out both numbers and let the cluster tell them"
        )
    if explicit and not (0 <= process_id < num_processes):
        raise ValueError(f"process_id={process_id} of num_processes={num_processes}: processes are numbered from 0")
    if explicit and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"coordinator={coordinator!r} must be host:port, for instance 10.0.0.1:8476, or 'auto' or 'none'")
    request = cluster_request(os.environ) if coordinator != NONE else None
    if not explicit and (coordinator == NONE or (coordinator is None and request is None)):
        return False
    asked = f"the job that {request or 'coordinator=auto'} asks for"
    who = f"process {process_id} of {num_processes} at {coordinator}" if explicit else asked
    given = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id) if explicit else {}
    remedy = (
        "check that every process was started (by srun, mpirun or the launcher), each with its own number, and reaches the address of "
        "process 0; --join_timeout waits longer, --coordinator=none runs as one process"
    )
    try:
        with _deadline(join_timeout, f"JobError: joining {who} took longer than {join_timeout} s: {remedy}"):
            jax.distributed.initialize(
                **given, initialization_timeout=join_timeout + 30, heartbeat_timeout_seconds=heartbeat_timeout
            )  # fmt: skip
    except Exception as error:
        raise JobError(f"joining {who} failed ({' '.join(str(error).split())[:300]}): {remedy}") from error
    counted = _counted(os.environ)
    _check_joined(num_processes if explicit else None if counted is None else _count(os.environ, counted), who)
    return True


@contextlib.contextmanager
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with a message if the block takes longer. (JAX's own timeout aborts it, with a stack trace of C++.)"""

    def end():
        print(message, file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_joined(expected: int | None, who: str) -> None:
    """The devices know of all processes: a backend that does not (a plugin without support) would train as many jobs of one."""
    found = jax.process_count()
    if expected not in (None, found):
        raise JobError(
            f"joined {who}, but the {jax.default_backend()} devices know of {found} process(es) where there should be {expected}: "
            "check JAX_PLATFORMS, the device plugin, and that no process was started twice"
        )


# -- agreeing ------------------------------------------------------------------------------------------------------------


def gather_text(text: str) -> list[str]:
    """What each process says, in their order. Every process of the job calls this at the same point of the program."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(mine), np.int32)).reshape(-1)
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(mine)] = mine
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(np.asarray(rows, np.uint8), sizes, strict=True)]


def agree(what: str, values: Mapping[str, Any]) -> None:
    """Returns where every process holds the same values (flat, plain JSON).

    Hashes are compared; where they differ the values are, so that the message can name them.

    Raises:
        JobError: on every process alike, with the first keys that differ.
    """
    text = json.dumps(dict(values), sort_keys=True, default=str)
    if len(set(gather_text(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    held = [json.loads(each) for each in gather_text(text)]
    differing = []
    for process, theirs in enumerate(held[1:], start=1):
        for key in sorted(held[0].keys() | theirs.keys()):
            if held[0].get(key) != theirs.get(key):
                differing.append(f"{key}: {held[0].get(key)!r} on process 0, {theirs.get(key)!r} on process {process}")
    raise JobError(
        f"the processes of this job were started with different {what} ({'; '.join(differing[:4])}): "
        "start all of them with the same command, files, package versions and environment"
    )


# -- ending --------------------------------------------------------------------------------------------------------------


def is_joined() -> bool:
    """Whether this process belongs to a job with a coordinator."""
    return jax.distributed.is_initialized()


_questions = itertools.count(1)


def reached_stop() -> bool:
    """Whether all processes stop here because one of them got SIGTERM. All ask at the same points, such as every step.

    It costs no exchange: JAX takes SIGTERM for a job with a coordinator, and in the background the processes agree on the next
    question that nobody has asked yet. Questions are numbered from the start of the process, so that a signal before the first step
    of a resumed run is not lost.
    """
    return is_joined() and multihost_utils.reached_preemption_sync_point(next(_questions))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around a program: an error ends its process at once.

    Without it the process would wait at JAX's farewell (minutes) for the others, who wait for it in a collective operation.
    Like this they see a dead peer, and end within the heartbeat timeout.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if not is_joined() or code in (None, 0, EXIT_PREEMPTED):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def split_cpu(devices: int) -> None:
    """Makes the CPU count for `devices` devices; before any other use of JAX devices. Where operations are small, several devices, each
    with its own rows, keep more cores busy than one whose operations are split over the cores.

    Raises:
        RuntimeError: JAX already runs with another number.
    """
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)


def is_main() -> bool:
    """Whether this is process 0, the one that reports."""
    return jax.process_index() == 0
