"""Several processes on this machine."""

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from armt_jax.launch.command import LaunchError, Program, positive
from armt_jax.telemetry.failures import EXIT_PREEMPTED

# Seconds that the other processes of a job get when one of them has ended: to say why, or to finish saving.
GRACE = 20.0
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=positive, required=True, metavar="N")
    gpus = "process i sees alone the GPUs i*K .. i*K+K-1 of those that CUDA_VISIBLE_DEVICES names"
    parser.add_argument("--gpus_per_process", type=positive, metavar="K", help=gpus)
    parser.add_argument("--python", default=sys.executable, metavar="PATH")


def commands(program: Program, processes: int, python: str) -> list[list[str]]:
    if program.shares:
        return [program.command(python, f"--share={i}/{processes}") for i in range(processes)]
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    job = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    return [program.command(python, *job, f"--process_id={i}") for i in range(processes)]


def launch(program: Program, arguments: argparse.Namespace) -> int:
    """N processes on this machine. When one of a job fails all are ended, with its exit code; 75 (preempted) is kept. SIGTERM and
    Ctrl-C are passed on to all. The workers of a sweep do not end each other."""
    lines = commands(program, arguments.processes, arguments.python)
    environs = _visible_gpus(arguments.processes, arguments.gpus_per_process)
    if arguments.dry_run:
        for line, environ in zip(lines, environs):
            print(" ".join([*(f"{name}={value}" for name, value in environ.items()), shlex.join(line), "&"]))
        print("wait")
        return 0
    return run_all(lines, environs, together=not program.shares)


def _visible_gpus(processes: int, count: int | None) -> list[dict[str, str]]:
    """Of each process: its own of the GPUs that CUDA_VISIBLE_DEVICES leaves this one, or of all."""
    if count is None:
        return [{}] * processes
    needed, mask = processes * count, os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(needed)] if mask is None else [each.strip() for each in mask.split(",") if each.strip()]
    if len(gpus) < needed:
        raise LaunchError(
            f"--processes={processes} of --gpus_per_process={count} need {needed} GPUs, and CUDA_VISIBLE_DEVICES={mask} leaves {len(gpus)}"
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * count : (i + 1) * count])} for i in range(processes)]


@contextlib.contextmanager
def _forwarding(children: list[subprocess.Popen]) -> Iterator[None]:
    def forward(number, frame):
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(commands: list[list[str]], environs: list[dict[str, str]], *, together: bool, grace: float = GRACE) -> int:
    """Runs them side by side. The exit code of the first that failed, else 0; that of a killed one is 128 + the signal.

    together: when one fails, the others are killed after `grace` seconds.
    """
    children: list[subprocess.Popen] = []
    first, deadline = 0, float("inf")
    with _forwarding(children):
        try:
            for command, environ in zip(commands, environs, strict=True):
                # A session each: Ctrl-C reaches them through this process, once.
                children.append(subprocess.Popen(command, env=os.environ | environ, start_new_session=True))
            running = dict(enumerate(children))
            while running and time.monotonic() < deadline:
                for i in [i for i, child in running.items() if child.poll() is not None]:
                    code = _exit_code(running.pop(i))
                    if code and not first:
                        first, end = code, time.monotonic() + grace
                        deadline = end if together else deadline
                        _say(i, code, len(running) if together else 0, grace)
                time.sleep(0.05)
            return first
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
            for child in children:
                child.wait()


def _exit_code(child: subprocess.Popen) -> int:
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _say(process: int, code: int, others: int, grace: float) -> None:
    what = "was preempted and has saved" if code == EXIT_PREEMPTED else "failed"
    ends = f"; the other {others} end within {grace:.0f} s" if others else ""
    print(f"launch: process {process} {what} (exit code {code}){ends}", file=sys.stderr, flush=True)
