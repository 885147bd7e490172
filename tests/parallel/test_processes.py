"""Joining a job: when it is asked for, and that nothing fails silently."""

import jax
import pytest

from armt_jax.parallel import processes


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: seen.append((args, kwargs)))
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "TPU_WORKER_HOSTNAMES", *processes._COUNTS):
        monkeypatch.delenv(name, raising=False)
    return seen


@pytest.mark.parametrize(
    "environ, request_",
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_SIZE": "1", "TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES=a,b"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS=a:1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"SLURM_NTASKS": "4"}, "SLURM_NTASKS=4"),  # of a batch script, outside srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_cluster_request(environ, request_):
    assert processes.cluster_request(environ) == request_


def test_single_process_joins_nothing(calls):
    assert processes.initialize() is False
    assert calls == [] and processes.is_main()


def test_explicit_and_automatic_jobs(calls, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert processes.initialize("host:1", 2, 0, join_timeout=7, heartbeat_timeout=5)
    given = {"coordinator_address": "host:1", "num_processes": 2, "process_id": 0}
    assert calls.pop() == ((), given | {"initialization_timeout": 37, "heartbeat_timeout_seconds": 5})
    assert processes.initialize("auto") and "coordinator_address" not in calls.pop()[1]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert processes.initialize() and len(calls) == 1
    assert processes.initialize("none") is False and len(calls) == 1


def test_devices_that_know_of_fewer_processes_are_an_error(calls, monkeypatch):
    """A job whose backend did not join would train once per process."""
    with pytest.raises(processes.JobError, match=r"joined process 0 of 2 at host:1, but the cpu devices know of 1 .* should be 2"):
        processes.initialize("host:1", 2, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(processes.JobError, match="know of 1 .* should be 4"):
        processes.initialize()


@pytest.mark.parametrize(
    "environ, message", [({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS='two'"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'")]
)
def test_a_count_that_is_no_number_is_an_error(environ, message):
    with pytest.raises(processes.JobError, match=message):
        processes.cluster_request(environ)


@pytest.mark.parametrize("arguments, message", [(("host", 2, 0), "must be host:port"), (("host:1", 2, 2), "numbered from 0")])
def test_what_cannot_be_a_job_is_an_error(calls, arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.initialize(*arguments)
    assert calls == []


def test_one_process_agrees_with_itself():
    processes.agree("configs", {"a": 1})
    assert processes.gather_text("é") == ["é"] and not processes.is_joined() and not processes.reached_stop()


def test_an_error_outside_a_job_is_left_alone():
    with pytest.raises(KeyError), processes.ending_together():
        raise KeyError("x")


@pytest.mark.parametrize("arguments", [("host:1", None, None), ("host:1", 2, None), (None, 2, 0), ("auto", None, 0)])
def test_half_given_is_an_error(calls, arguments):
    with pytest.raises(ValueError, match="give all three") as error:
        processes.initialize(*arguments)
    assert f"coordinator={arguments[0]!r}" in str(error.value) and calls == []


def test_failure_to_join_is_raised(calls, monkeypatch):
    def fail(**given):
        raise RuntimeError("no coordinator")

    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(processes.JobError, match="OMPI_COMM_WORLD_SIZE=2.*no coordinator.*--coordinator=none"):
        processes.initialize()
