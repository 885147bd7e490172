"""The loop: exact resume after a kill, clean stops, stages, divergence, damaged checkpoints.

Runs that are killed are whole processes of train.py. What only concerns the loop's decisions runs here, on a training step that adds 1 to
every number of the state, so that a state tells by itself which steps it went through.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.checkpoint import CheckpointError, Checkpoints
from armt_jax.config import override, resolve
from armt_jax.evaluation.evaluate import load
from armt_jax.parallel.mesh import make_mesh
from armt_jax.parallel.rules import path_string
from armt_jax.telemetry.jsonl import read_lines
from armt_jax.training import step as steps
from armt_jax.training.loop import EXIT_PREEMPTED, NonFiniteLoss, Preempted, Run, train
from armt_jax.training.restore import restore_target
from armt_jax.training.step import StepMetrics, TrainState
from armt_jax.training.workdir import WorkdirError, locked

ROOT = pathlib.Path(__file__).parents[2]
TIMING = {"tokens_per_s", "data_wait", "seconds_per_step", "mfu"}

# Stages of 8 steps; the second keeps memories from batch to batch. Checkpoints at multiples of 3, at validations (4, 8, ...) that are the
# best so far, and at the ends of stages.
CONFIG = {
    "seed": 3,
    "backbone": {
        "name": "gpt2", "vocab_size": 128, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 16, "kernel_std": None,
        "dropout": 0.1,
    },
    "memory": {"name": "armt", "num_memory_tokens": 1, "d_mem": 4, "key_norm": "l2"},
    "recurrence": {"segment_length": 4},
    "task": {"name": "associative_retrieval", "mode": "remember", "pairs": 2, "num_keys": 4},
    "train": {
        "batch_size": 4, "log_every": 5, "validate_every": 4, "validation_batches": 1, "checkpoint_every": 3, "keep_last": 3,
        "keep_optimizer": True, "tensorboard": False,
        "optimizer": {"learning_rate": 0.01, "clip": "norm"},
        "stages": [{"steps": 8}, {"steps": 8, "task": {"pairs": 3}, "schedule": "cosine", "keep_memory": 0.5}],
    },
    "evaluation": {"batch_size": 4, "batches": 1},
    "mesh": {"data": 1},
}  # fmt: skip


def metrics(workdir):
    """metrics.jsonl without what a clock says."""
    return [{key: value for key, value in row.items() if key not in TIMING} for row in read_lines(workdir / "metrics.jsonl")]


def saved(workdir):
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def restore(workdir, config=CONFIG):
    config = resolve(config)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(restore_target(config, make_mesh(config.mesh)))


def named(tree):
    return {path_string(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# -- processes that are killed -----------------------------------------------------------------------------------------------

# Runs train.py, and sends the process a signal before or after the loop's `after_step` of one step. Validation returns a better figure in
# the middle of the first stage than at its end, so that the second starts from an older checkpoint.
DRIVER = """
import os, runpy, signal, sys
from armt_jax.training.loop import Run

at, when, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
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


Run.after_step, Run.validate = patched, scripted
sys.argv = ["train.py", *sys.argv[4:]]
runpy.run_path("train.py", run_name="__main__")
"""
UNDISTURBED = (0, "before", "SIGTERM")
# In this order, each going on from what the one before left: before the first checkpoint; SIGTERM, at no step of a log line; after the
# change of stage, with no checkpoint since; in the second stage, while a checkpoint is being written.
SIGNALS = [(2, "before", "SIGKILL"), (7, "before", "SIGTERM"), (9, "before", "SIGKILL"), (12, "after", "SIGKILL")]


class Started:
    def __init__(self, folder, workdir, at, when, name):
        environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
        command = [sys.executable, folder / "driver.py", str(at), when, name, f"--config={folder / 'tiny.py'}", f"--workdir={workdir}"]
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
    """(workdir, the starts in order), the last of which reaches the end."""
    return folder / "parts", [Started(folder, folder / "parts", *what) for what in (*SIGNALS, UNDISTURBED)]


def test_a_validation_that_sigterm_interrupts_is_done_again(folder, uninterrupted):
    """At step 4, and at step 8, which ends a stage."""
    workdir = folder / "validating"
    started = [Started(folder, workdir, *what) for what in ((4, "before", "SIGTERM"), (8, "before", "SIGTERM"), UNDISTURBED)]
    assert [each.code for each in started] == [EXIT_PREEMPTED, EXIT_PREEMPTED, 0], [each.output[-500:] for each in started]
    assert [each.saved[-1] for each in started] == [4, 8, 16]
    assert metrics(workdir) == metrics(uninterrupted)
    whole, parts = restore(uninterrupted), restore(workdir)
    assert whole.meta == parts.meta
    expected = named(whole.state)
    for name, leaf in named(parts.state).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_every_start_ends_as_it_was_made_to(interrupted):
    _, started = interrupted
    expected = [-signal.SIGKILL if name == "SIGKILL" else EXIT_PREEMPTED for *_, name in SIGNALS] + [0]
    assert [each.code for each in started] == expected, [each.output[-500:] for each in started]
    assert EXIT_PREEMPTED == 75


def test_every_start_goes_on_from_the_newest_checkpoint(interrupted):
    _, started = interrupted
    newest = [max(each.saved, default=None) for each in started]
    # The one that was killed while it saved step 12 may have been quicker than the signal.
    assert newest[:3] == [None, 7, 8] and newest[3] in (9, 12) and newest[4] == 16
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


# -- the loop's decisions, on a step that counts -----------------------------------------------------------------------------


class Counting:
    """What happened in runs whose training step adds 1 to every number of the state."""

    def __init__(self, monkeypatch, start):
        self.validations = {}  # step: exact match
        self.bad = {}  # step: what its metrics say instead
        self.entered = []  # (step, state) at the start of each later stage
        self.done = []  # steps, as they are done
        self.crash_at = None
        # Initial states without compiling: one for all runs, as their configs do not differ in it.
        monkeypatch.setattr(steps, "create_params", lambda *_: jax.tree.map(jnp.copy, start))
        monkeypatch.setattr(steps, "create_opt_state", lambda optimizer, params, _: optimizer.init(params))
        monkeypatch.setattr(steps, "make_train_step", lambda *_, **__: self.train_step)
        enter, after_step = Run._enter_next_stage, Run.after_step

        def recorded(run):
            enter(run)
            self.entered.append((run.standing.step, jax.tree.map(np.asarray, run.state)))

        def crashing(run):
            self.done.append(run.standing.step)
            after_step(run)
            if run.standing.step == self.crash_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(Run, "_enter_next_stage", recorded)
        monkeypatch.setattr(Run, "after_step", crashing)
        monkeypatch.setattr(Run, "validate", lambda run: (self.validations.get(run.standing.step, 0.0), 1.0))

    def train_step(self, state, batch, key):
        values = dict.fromkeys(StepMetrics._fields, 1.0) | {"bad_segment": -1} | self.bad.get(len(self.done) + 1, {})
        state = jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else leaf + 1, state)
        return state, StepMetrics(**{name: jnp.float32(value) for name, value in values.items()})

    def run(self, workdir, **changes):
        self.config = override(CONFIG, {key.replace("__", "."): value for key, value in changes.items()})
        return train(resolve(self.config), self.config, workdir)


@pytest.fixture(scope="module")
def start():
    """The initial parameters."""
    config = resolve(CONFIG)
    return steps.create_params(config.model, config.seed, make_mesh(config.mesh))


@pytest.fixture
def counting(monkeypatch, start):
    return Counting(monkeypatch, start)


def steps_behind(state, start):
    """How many steps the parameters went through."""
    start = named(start)
    counts = {int(np.rint(np.mean(leaf - start[name]))) for name, leaf in named(state.params).items()}
    assert len(counts) == 1
    return counts.pop()


def test_a_stage_ends_at_its_stop_and_after_its_patience(counting, tmp_path, start):
    counting.validations = {2: 0.5, 4: 0.95, 6: 0.5, 8: 0.6, 10: 0.6, 12: 0.1, 14: 0.3}
    stages = [{"steps": 20, "stop_at": 0.9}, {"steps": 20, "patience": 2}, {"steps": 2}]
    standing = counting.run(tmp_path, train__validate_every=2, train__stages=stages)
    assert [step for step, _ in counting.entered] == [4, 12] and standing.step == 14 and standing.finished
    assert counting.done == list(range(1, 15))
    assert steps_behind(counting.entered[0][1], start) == 4


def test_the_next_stage_starts_from_the_best_checkpoint(counting, tmp_path, start):
    counting.validations = {2: 0.5, 4: 0.6, 6: 0.55, 8: 0.4, 10: 0.1, 12: 0.3}
    counting.run(tmp_path, train__validate_every=2, train__keep_last=1, train__stages=[{"steps": 8}, {"steps": 4}])
    (step, state), = counting.entered
    assert step == 8 and steps_behind(state, start) == 4
    last = restore(tmp_path, counting.config)
    assert last.step == 12 and steps_behind(last.state, start) == 4 + 4
    assert load(tmp_path).step == 12, "the best of a run is the best of its last stage, though an earlier one had more"


def test_the_next_stage_starts_fresh_in_its_optimizer(counting, tmp_path):
    counting.validations = {4: 0.6, 8: 0.4}
    counting.run(tmp_path, train__keep_optimizer=False)
    (_, state), = counting.entered
    assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state)) and len(jax.tree.leaves(state.opt_state)) > 3


def test_keep_optimizer_restarts_the_schedule_and_keeps_the_moments(counting, tmp_path):
    counting.validations = {4: 0.6, 8: 0.4}
    counting.run(tmp_path, train__keep_optimizer=True)
    (_, state), = counting.entered
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    moments = [leaf for path, leaf in leaves if "/mu/" in path_string(path) or "/nu/" in path_string(path)]
    counts = [int(leaf) for path, leaf in leaves if path_string(path).endswith("count")]
    assert moments and all((leaf == 4).all() for leaf in moments), "those of the best step, 4"
    assert sorted(counts) == [0, 4], "Adam's count goes on, the schedule's starts anew"


@pytest.mark.parametrize("crash_at", [1, 7, 8, 9])
def test_a_crash_anywhere_changes_no_decision(counting, tmp_path, start, crash_at):
    counting.validations = {2: 0.5, 4: 0.6, 6: 0.4, 8: 0.3, 10: 0.1, 12: 0.9}
    changes = dict(train__validate_every=2, train__stages=[{"steps": 50, "patience": 2}, {"steps": 50, "stop_at": 0.9}, {"steps": 1}])
    counting.crash_at = crash_at
    with pytest.raises(KeyboardInterrupt):
        counting.run(tmp_path, **changes)
    counting.crash_at, counting.entered = None, []
    standing = counting.run(tmp_path, **changes)
    assert (standing.step, standing.stage, standing.finished) == (13, 2, True)
    entered = {step: steps_behind(state, start) for step, state in counting.entered}
    assert entered == {step: behind for step, behind in {8: 4, 12: 8}.items() if step >= crash_at}
    assert steps_behind(restore(tmp_path, counting.config).state, start) == 9
    assert [row["step"] for row in metrics(tmp_path)] == [2, 4, 5, 6, 8, 10, 12, 13]


def test_a_finished_run_is_left_as_it_is(counting, tmp_path):
    first = counting.run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    counting.done = []
    assert counting.run(tmp_path) == first and counting.done == []
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_sigterm_saves_and_leaves_with_its_own_code(counting, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    one_step = Run.one_step

    def stepping(run):
        one_step(run)
        if run.standing.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "one_step", stepping)
    with pytest.raises(Preempted) as stop:
        counting.run(tmp_path)
    assert stop.value.code == EXIT_PREEMPTED and saved(tmp_path)[-1] == 7
    assert signal.getsignal(signal.SIGTERM) == before, "the process's own handler is back"
    monkeypatch.setattr(Run, "one_step", one_step)
    assert counting.run(tmp_path).step == 16 and counting.done == list(range(1, 17))


# -- divergence --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"loss": np.nan, "bad_segment": 2}, "segment 2"),
        ({"gradient_norm": np.inf}, "gradient"),
        ({"loss": np.nan, "bad_segment": 0, "gradient_norm": np.nan}, "segment 0"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(counting, tmp_path, start, bad, said):
    counting.bad = {7: bad, 8: {"loss": np.nan, "bad_segment": 1}}
    with pytest.raises(NonFiniteLoss) as error:
        counting.run(tmp_path, train__checkpoint_every=6)
    assert all(part in str(error.value) for part in ("step 7", "stage 1", said, "last checkpoint is step 6")), error.value
    assert saved(tmp_path)[-1] == 6 and [row["step"] for row in metrics(tmp_path)] == [4, 5]
    last = restore(tmp_path)
    assert last.step == 6 and steps_behind(last.state, start) == 6
    counting.bad, counting.done = {}, []
    assert counting.run(tmp_path, train__checkpoint_every=6).step == 16 and counting.done[0] == 7


def test_a_divergence_before_the_first_checkpoint(counting, tmp_path):
    counting.bad = {1: {"loss": np.inf, "bad_segment": 0}}
    with pytest.raises(NonFiniteLoss, match=r"step 1 .*segment 0.*no checkpoint was saved yet"):
        counting.run(tmp_path)
    assert saved(tmp_path) == []


# -- the workdir -------------------------------------------------------------------------------------------------------------


def test_two_runs_in_one_workdir(counting, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(WorkdirError) as error:
        counting.run(tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value) and str(os.getpid()) in str(error.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"] and counting.done == []


def test_another_config_in_a_workdir(counting, tmp_path):
    counting.crash_at = 6
    with pytest.raises(KeyboardInterrupt):
        counting.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(WorkdirError) as error:
        counting.run(tmp_path, train__optimizer__learning_rate=0.5)
    assert all(part in str(error.value) for part in (str(tmp_path), "train.optimizer.learning_rate: 0.01 there, 0.5 now"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    counting.crash_at = None
    assert counting.run(tmp_path, train__log_every=1).step == 16
    assert counting.done == list(range(1, 17))
    assert [row["step"] for row in metrics(tmp_path)] == [4, 5, *range(7, 17)]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["log_every"] == 1


def test_a_run_without_a_sound_checkpoint_does_not_start_anew_in_silence(counting, tmp_path):
    counting.run(tmp_path)
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    counting.done = []
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        counting.run(tmp_path)
    assert counting.done == []


def test_the_counting_step_has_the_state_of_the_real_one(counting):
    """Else the tests above would prove little: the same structure in, the same out."""
    state = TrainState({"a": jnp.zeros(2)}, (jnp.zeros([], jnp.int32),))
    new, found = counting.train_step(state, None, None)
    assert jax.tree.structure(new) == jax.tree.structure(state) and new.opt_state[0].dtype == jnp.int32
    assert found._fields == StepMetrics._fields
