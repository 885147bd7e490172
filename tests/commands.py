"""train.py and eval.py as people start them."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def start(script, *arguments, file_kb=None, **environ):
    """Runs it to its end. file_kb: no file of it may grow larger: a full disk."""
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", **environ}
    environ.pop("ARMT_JAX_TRACEBACK", None)
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    if file_kb is not None:
        command = ["bash", "-c", f'ulimit -f {file_kb}; exec "$@"', "bash", *command]
    return subprocess.run(command, env=environ, text=True, capture_output=True, timeout=300, cwd=ROOT)


def one_line(done):
    """What was said about an error: a single line, and no traceback."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    return line
