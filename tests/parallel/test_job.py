"""Jobs of real processes, joined through a coordinator: the same losses as one, and one end for all.

Every job is train.py as people start it, on the CPU with gloo. A driver sends the signal at a step of one process's own loop.
"""

import fcntl
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from armt_jax.training.stops import EXIT_PREEMPTED
from tests.training.runs import metrics

pytestmark = pytest.mark.multiprocess
ROOT = pathlib.Path(__file__).parents[2]

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.seed = 3
    c.backbone = dict(name="gpt2", vocab_size=128, num_layers=1, width=16, num_heads=2, max_positions=16, kernel_std=None, dropout=0.1)
    c.memory = dict(name="armt", num_memory_tokens=1, d_mem=16, key_norm="l2")
    c.recurrence = dict(segment_length=4)
    c.task = dict(name="associative_retrieval", mode="remember", pairs=2, num_keys=4)
    c.train = dict(
        batch_size=4, log_every=1, validate_every=24, validation_batches=1, checkpoint_every=8, tensorboard=False,
        optimizer=dict(learning_rate=1e-3, clip="norm"), stages=[dict(steps=24)],
    )
    c.evaluation = dict(batch_size=4, batches=1)
    c.mesh = dict()
    return c
"""
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Sends itself a signal after a step. Later steps are slowed down, so that the others hear of it before the run is over.
SIGNALLED = """
import os, signal, time
from armt_jax.training.loop import Run
one_step = Run.one_step


def signalled(self):
    one_step(self)
    if self.standing.step == {step}:
        os.kill(os.getpid(), signal.{name})
    if self.standing.step >= {step}:
        time.sleep(0.2)


Run.one_step = signalled
"""
HASTY = """
from armt_jax.training import workdir
workdir.SHARED_WITHIN_SECONDS = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all workers of a test run: programs are compiled, and the run that nothing befalls is made, once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "jobs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path.replace(folder / "tiny.py")


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(config, workdir, *arguments, job=None, driver=""):
    """One process. job: (port, number of processes, process). driver: Python that runs before train.py."""
    environ = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "ARMT_JAX_TRACEBACK")}
    environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    # What one job compiled the next ones need not: most of the time of these tests.
    environ |= {"JAX_COMPILATION_CACHE_DIR": str(config.parent / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, *(("-c", driver + RUN) if driver else ()), str(ROOT / "train.py")]
    command += [f"--config={config}", f"--workdir={workdir}", *arguments]
    if job:
        port, processes, process = job
        command += [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={process}"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environ, cwd=ROOT, **pipes)


def start_job(config, workdir, *, drivers=("", "")):
    """A process for each driver."""
    port = free_port()
    return [start(config, workdir, job=(port, len(drivers), i), driver=driver) for i, driver in enumerate(drivers)]


def ends(started, timeout=300):
    """[(exit code, stdout, stderr)] of the processes; none outlives the test."""
    try:
        found = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, found)]


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def uninterrupted(config):
    """metrics.jsonl of two processes that nothing befell."""
    workdir = config.parent / "two"
    with (config.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not workdir.exists():
            done = ends(start_job(config, workdir))
            assert [code for code, *_ in done] == [0, 0], done
            assert "2 process(es), data 2" in done[0][2] and "trained 24 steps" in done[0][1]
            said = [line for line in (done[1][1] + done[1][2]).splitlines() if not line.startswith("[Gloo]")]
            assert not said, f"process 0 alone reports, but process 1 said {said}"
    rows = metrics(workdir)
    assert [row["step"] for row in rows] == [*range(1, 25), 24], "another worker's run failed"
    return rows


def same_losses(rows, others):
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for one, other in zip(rows, others):
        assert one.keys() == other.keys()
        for key in one:  # a rounding of the loss is a larger one of the gradient
            np.testing.assert_allclose(one[key], other[key], rtol=1e-2 if key == "gradient_norm" else 1e-5, err_msg=key)


def test_two_processes_give_the_losses_of_one(config, uninterrupted):
    ((code, _, err),) = ends([start(config, config.parent / "one")])
    assert code == 0, err
    same_losses(metrics(config.parent / "one"), uninterrupted)


def test_four_processes_give_the_same_losses_and_go_on_from_a_kill_and_a_signal(config, uninterrupted):
    """One of four is killed; then, after a restart, one of four gets SIGTERM."""
    workdir = config.parent / "four"
    driver = lambda process, *what: [SIGNALLED.format(step=what[0], name=what[1]) if i == process else "" for i in range(4)]
    began = start_job(config, workdir, drivers=driver(3, 13, "SIGKILL"))
    began[3].wait(timeout=300)
    died = time.monotonic()
    done = ends(began, timeout=60)
    took = time.monotonic() - died
    print(f"process 3 killed: the others ended {took:.1f} s later with {[code for code, *_ in done[:3]]}")
    assert done[3][0] == -9 and all(code != 0 for code, *_ in done) and took < 60, done
    assert "4 process(es), data 4" in done[0][2] and saved(workdir) == [8], done
    before = metrics(workdir)
    done = ends(start_job(config, workdir, drivers=driver(2, 15, "SIGTERM")))
    assert [code for code, *_ in done] == [EXIT_PREEMPTED] * 4, done
    (step,) = map(int, re.findall("SIGTERM: saved step ([0-9]+)", done[0][2]))
    assert "continuing from step 8" in done[0][2] and saved(workdir)[-1] == step and 15 <= step < 24, done
    after = metrics(workdir)
    assert len(before) >= 12 and after[: len(before)] == before, "the steps after the checkpoint, done again, to the last bit"
    same_losses(uninterrupted[:step], after)


def test_a_job_that_gets_a_signal_and_loses_its_coordinator_ends_exactly_as_it_would_have(config, uninterrupted):
    """SIGTERM to the second of two processes; after a restart the coordinator is killed; after another one all goes well."""
    workdir = config.parent / "two-in-parts"
    done = ends(start_job(config, workdir, drivers=["", SIGNALLED.format(step=3, name="SIGTERM")]))
    assert [code for code, *_ in done] == [EXIT_PREEMPTED] * 2, done
    (step,) = re.findall("SIGTERM: saved step ([0-9]+)", done[0][2])
    assert saved(workdir)[-1] == int(step) and 3 <= int(step) < 19
    began = start_job(config, workdir, drivers=[SIGNALLED.format(step=19, name="SIGKILL"), ""])
    began[0].wait(timeout=300)
    died = time.monotonic()
    done = ends(began, timeout=60)
    took = time.monotonic() - died
    print(f"coordinator killed: the other ended {took:.1f} s later with {done[1][0]}")
    assert done[0][0] == -9 and done[1][0] != 0 and took < 60, done
    assert f"continuing from step {step}" in done[0][2], done
    done = ends(start_job(config, workdir))
    assert [code for code, *_ in done] == [0, 0], done
    assert re.search("continuing from step (8|16)", done[0][2]), done[0][2]
    assert metrics(workdir) == uninterrupted


def refused(done, *words):
    """All ended with an error; what the first one says."""
    assert all(code not in (0, EXIT_PREEMPTED) for code, *_ in done), done
    said = done[0][2]
    assert all(word in said for word in words) and "Traceback" not in said, said


def test_different_configs_are_refused(config, tmp_path):
    port = free_port()
    rates = ((), ("--config.train.optimizer.learning_rate=0.02",))
    began = time.monotonic()
    done = ends([start(config, tmp_path / "run", *rate, job=(port, 2, i)) for i, rate in enumerate(rates)])
    refused(done, "JobError", "train.optimizer.learning_rate: 0.001 on process 0, 0.02 on process 1", "same command")
    assert time.monotonic() - began < 60 and not (tmp_path / "run" / "config.json").exists()


def test_a_workdir_that_is_not_shared_is_refused(config, tmp_path):
    port = free_port()
    done = ends([start(config, tmp_path / str(i), job=(port, 2, i), driver=HASTY) for i in range(2)])
    refused(done, "WorkdirError", f"workdir {tmp_path / '0'}", "process(es) 1", "share")


def test_processes_that_do_not_find_each_other_end(config, tmp_path):
    """Process 1 without a coordinator, and process 0 of two without the other."""
    jobs = [(free_port(), 2, 1), (free_port(), 2, 0)]
    done = ends([start(config, tmp_path / "run", "--join_timeout=4", job=job) for job in jobs], timeout=60)
    for job, ended in zip(jobs, done):
        refused([ended], "JobError", f"localhost:{job[0]}", "4 s", "--join_timeout")
    assert not (tmp_path / "run").exists()
