"""Runs that are killed, as whole processes of train.py: exact resume, also past damaged checkpoints."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from armt_jax.config import resolve
from armt_jax.training.loop import Run, train
from armt_jax.training.stops import EXIT_PREEMPTED
from tests.training.runs import CONFIG, metrics, named, restore, saved

ROOT = pathlib.Path(__file__).parents[2]

# Runs train.py, and sends the process a signal before or after the loop's `after_step` of one step. Validation returns a better figure in
# the middle of the first stage than at its end, so that the second starts from an older checkpoint.
DRIVER = """
import os, runpy, signal, sys
from armt_jax.training.loop import Run

after_step, validate = Run.after_step, Run.validate


def scripted(self):
    exact_match, loss = validate(self)
    return {4: 0.5, 8: 0.4}.get(self.standing.step, exact_match), loss


def patched(self):
    step = self.standing.step
    if (step, when) == (at, "before"):
        self.checkpoints.wait()
        os.kill(os.getpid(), getattr(signal, name))
    after_step(self)
    if (step, when) == (at, "after"):
        os.kill(os.getpid(), getattr(signal, name))


if __name__ == "__main__":  # and not in a process that makes batches
    at, when, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    Run.after_step, Run.validate = patched, scripted
    sys.argv = ["train.py", *sys.argv[4:]]
    runpy.run_path("train.py", run_name="__main__")
"""
UNDISTURBED = (0, "before", "SIGTERM")
# In this order, each going on from what the one before left: before the first checkpoint; in a validation, at no step of a log line; in
# the validation that ends a stage; after the change of stage, with no checkpoint since; in the second stage, while a checkpoint is written.
SIGNALS = [
    (2, "before", "SIGKILL"), (4, "before", "SIGTERM"), (8, "before", "SIGTERM"), (9, "before", "SIGKILL"), (12, "after", "SIGKILL")
]  # fmt: skip


class Started:
    def __init__(self, folder, workdir, at, when, name, *flags):
        environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        flags = [f"--config={folder / 'tiny.py'}", f"--workdir={workdir}", *flags]
        command = [sys.executable, folder / "driver.py", str(at), when, name, *flags]
        done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=300)
        self.code, self.output = done.returncode, done.stdout + done.stderr
        self.saved = saved(workdir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    (folder / "driver.py").write_text(DRIVER)
    (folder / "tiny.py").write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({CONFIG!r})\n")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(folder):
    done = Started(folder, folder / "whole", *UNDISTURBED)
    assert done.code == 0, done.output
    return folder / "whole"


@pytest.fixture(scope="module")
def interrupted(folder, uninterrupted):
    """(workdir, the starts in order), the last of which reaches the end. In two of them another process makes the batches."""
    started = []
    for number, what in enumerate((*SIGNALS, UNDISTURBED)):
        flags = ["--config.train.data_workers=1"] if number in (2, 4) else []
        started.append(Started(folder, folder / "parts", *what, *flags))
    return folder / "parts", started


def test_every_start_ends_as_it_was_made_to(interrupted):
    _, started = interrupted
    expected = [-signal.SIGKILL if name == "SIGKILL" else EXIT_PREEMPTED for *_, name in SIGNALS] + [0]
    assert [each.code for each in started] == expected, [each.output[-500:] for each in started]
    assert EXIT_PREEMPTED == 75


def test_every_start_goes_on_from_the_newest_checkpoint(interrupted):
    _, started = interrupted
    newest = [max(each.saved, default=None) for each in started]
    # The one that was killed while it saved step 12 may have been quicker than the signal.
    assert newest[:4] == [None, 4, 8, 8] and newest[4] in (9, 12) and newest[5] == 16
    begun = ["from scratch" if step is None else f"continuing from step {step}" for step in [None, *newest[:-1]]]
    assert all(text in each.output for text, each in zip(begun, started, strict=True)), [each.output[:300] for each in started]


def test_a_run_with_interruptions_logs_what_it_would_have_logged(uninterrupted, interrupted):
    workdir, _ = interrupted
    whole = metrics(uninterrupted)
    assert [row["step"] for row in whole] == [4, 4, 5, 8, 8, 10, 12, 12, 15, 16, 16]
    assert [row["stage"] for row in whole] == [1] * 5 + [2] * 6
    assert metrics(workdir) == whole


def test_a_run_with_interruptions_ends_in_the_same_bits(uninterrupted, interrupted):
    workdir, _ = interrupted
    whole, parts = restore(uninterrupted), restore(workdir)
    assert whole.step == parts.step == 16 and whole.meta == parts.meta
    expected, found = named(whole.state), named(parts.state)
    assert expected.keys() == found.keys() and any(name.startswith("opt_state") or name.startswith("1/") for name in expected)
    assert any(jax.tree.leaves(jax.tree.map(jnp.any, whole.state.carried.state))), "the last stage keeps memories"
    for name, leaf in expected.items():
        assert leaf.tobytes() == found[name].tobytes(), name


def test_damaged_checkpoints_cost_nothing_but_time(uninterrupted, tmp_path, monkeypatch):
    """The newest is cut off, the one before has lost its record: the run goes on from the third, to the same end."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    newest = sorted((int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()), reverse=True)
    assert newest[:3] == [16, 15, 12]
    for path in (tmp_path / "run" / "checkpoints" / "16").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "15" / "record")
    begun = []
    monkeypatch.setattr(Run, "_announce", lambda self, resumed: begun.append((resumed, saved(tmp_path / "run")[-1])))
    standing = train(resolve(CONFIG), CONFIG, tmp_path / "run")
    assert begun == [(12, 12)] and standing.step == 16, "from the third, and the damaged ones are out of the way"
    assert metrics(tmp_path / "run") == metrics(uninterrupted)
    expected, found = named(restore(uninterrupted).state), named(restore(tmp_path / "run").state)
    assert all(leaf.tobytes() == found[name].tobytes() for name, leaf in expected.items())


def test_a_stage_goes_on_from_its_end_where_its_best_checkpoint_is_damaged(tmp_path, monkeypatch):
    enter, notes = Run._enter_next_stage, []

    def with_best(self, damaged):
        """Step 6 as the best of the first stage, cut off; or none, which is its end."""
        self.checkpoints.wait()
        if damaged:
            for path in (tmp_path / "True" / "checkpoints" / "6").rglob("*"):
                if path.is_file():
                    os.truncate(path, path.stat().st_size // 2)
            monkeypatch.setattr(self.progress, "note", notes.append)
        self.standing = dataclasses.replace(self.standing, best_step=6 if damaged else -1)
        enter(self)

    ends = {}
    for damaged in (True, False):
        monkeypatch.setattr(Run, "_enter_next_stage", lambda self, damaged=damaged: with_best(self, damaged))
        train(resolve(CONFIG), CONFIG, tmp_path / str(damaged))
        ends[damaged] = metrics(tmp_path / str(damaged))
    assert ends[True] == ends[False] and ends[True][-1]["step"] == 16
    assert any("checkpoints/6 is damaged" in note and "from the last step of this one, 8, instead" in note for note in notes)
