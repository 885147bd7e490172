"""The processes of a multi-host job: joining them, and who is the main one.

Small for now: one program per process, joined through a coordinator. Work on large scale (launchers, restarts,
heartbeats) extends this file.
"""

import os
from collections.abc import Mapping

import jax

AUTO = "auto"


def cluster_request(environ: Mapping[str, str]) -> str | None:
    """The environment variable, as 'NAME=value', that says this is one of several processes of a job; else None."""
    if environ.get("JAX_COORDINATOR_ADDRESS"):
        return f"JAX_COORDINATOR_ADDRESS={environ['JAX_COORDINATOR_ADDRESS']}"
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(environ.get(name, "1")) > 1:
            return f"{name}={environ[name]}"
    hosts = "TPU_WORKER_HOSTNAMES"
    if "," in environ.get(hosts, ""):
        return f"{hosts}={environ[hosts]}"
    return None


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> bool:
    """Joins the processes of the job, before any other use of JAX devices. Returns whether there was a job to join.

    Args:
      coordinator: 'host:port' of process 0, with `num_processes` and `process_id`; "auto": JAX asks the cluster it runs
        on (SLURM, Open MPI, Kubernetes, a TPU pod); None: like "auto" where the environment shows a job of several
        processes (a Kubernetes job or a TPU pod may not: say "auto" there), else nothing to do.
      num_processes: number of processes of the job.
      process_id: which of them this is, from 0.

    Any failure to join is raised: a job never goes on as several jobs of one process.
    """
    explicit = coordinator is not None and coordinator != AUTO
    numbers_given = [number is not None for number in (num_processes, process_id)]
    if (explicit and not all(numbers_given)) or (not explicit and any(numbers_given)):
        raise ValueError(
            f"coordinator={coordinator!r}, num_processes={num_processes!r}, process_id={process_id!r}: give all three, "
            "or leave out both numbers and let the cluster tell them"
        )
    if explicit:
        jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_id)
        return True
    request = cluster_request(os.environ)
    if coordinator is None and request is None:
        return False
    try:
        jax.distributed.initialize()
    except Exception as error:
        error.add_note(f"joining the job that {request or 'coordinator=auto'} asks for failed; unset it to run as one process")
        raise
    return True


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
