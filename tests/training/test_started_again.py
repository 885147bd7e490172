"""A run that stops and is started again in its workdir: it goes on, is left as it is, or is refused."""

import json
import os
import signal

import pytest
from jax.sharding import AbstractMesh

from armt_jax.checkpoint import CheckpointError
from armt_jax.config import override, resolve
from armt_jax.parallel.mesh import AXES
from armt_jax.training.checks import check_batches
from armt_jax.training.loop import Run
from armt_jax.training.stops import EXIT_PREEMPTED, Preempted
from armt_jax.training.workdir import WorkdirError, locked
from tests.training.runs import CONFIG, metrics, saved


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


def test_a_checkpoint_knows_its_config(counting, tmp_path):
    """config.json may be lost, or changed by hand; the checkpoint's own is compared, too."""
    counting.crash_at = 6
    with pytest.raises(KeyboardInterrupt):
        counting.run(tmp_path)
    counting.crash_at = None
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["train"]["optimizer"]["learning_rate"] = 0.5
    path.write_text(json.dumps(config))
    with pytest.raises(WorkdirError, match="another config .train.optimizer.learning_rate: 0.01 there, 0.5 now.*checkpoint holds"):
        counting.run(tmp_path, train__optimizer__learning_rate=0.5)
    path.unlink()
    assert counting.run(tmp_path).step == 16


def test_a_batch_that_does_not_divide_is_found_before_the_first_step():
    config = override(CONFIG, {"mesh.data": -1, "train.stages": [{"steps": 2}, {"steps": 2, "batch_size": 3}]})
    mesh = AbstractMesh((2, 1, 1, 1), AXES)
    with pytest.raises(ValueError, match=r"train.stages\[1\]: global batch of 3 rows .* multiple of 2"):
        check_batches(resolve(config), mesh)
