"""What is gone on with after a kill: the same answers, under the same schedule, each written once."""

import os
import pathlib
import subprocess
import sys

import pytest

from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.streaming import Reader, Streams
from armt_jax.telemetry.jsonl import read_lines
from tests.evaluation.babilong.killed import Killed, killed_at_save, said

ROOT = pathlib.Path(__file__).parents[3]


def test_batch_sizes_and_interruptions_change_no_answer(trained, tmp_path, monkeypatch):
    points = [{"evaluation.lengths": 300}, {"evaluation.lengths": (600, 500), "evaluation.facts_within": 300}]
    outputs = []
    for rows in (1, 3, 4):
        sweeps.run_sweep(trained, [{**point, "evaluation.batch_size": rows} for point in points], tmp_path / str(rows))
        outputs.append(said(tmp_path / str(rows)))
    assert outputs[0] == outputs[1] == outputs[2]
    assert set(outputs[0]) == {("qa1", length, i) for length in (300, 500, 600) for i in range(6)}

    # Stopped at every third save, in the middle of samples; gone on with each time.
    saves, save = [], Streams.save

    def stopping(self, path, identity):
        save(self, path, identity)
        saves.append([row and row.position for row in self.rows])
        if len(saves) % 3 == 0:
            raise Killed

    monkeypatch.setattr(Streams, "save", stopping)
    often = [{**point, "evaluation.batch_size": 3, "evaluation.save_every_s": 1e-9} for point in points]
    for _ in range(100):
        try:
            rows = sweeps.run_sweep(trained, often, tmp_path / "stopped")
            break
        except Killed:
            assert list((tmp_path / "stopped").glob("*.state"))
    assert len(saves) > 6 and any(position for position in saves[2])
    assert said(tmp_path / "stopped") == outputs[0]
    lines = read_lines(tmp_path / "stopped" / "samples.jsonl")
    assert len(lines) == len(outputs[0])  # each answer has one line
    assert not list((tmp_path / "stopped").glob("*.state"))
    # Once more: nothing is read.
    monkeypatch.setattr(Streams, "__iter__", lambda self: pytest.fail("read again"))
    again = sweeps.run_sweep(trained, often, tmp_path / "stopped")
    assert [row["exact_match"] for row in again] == [row["exact_match"] for row in rows]
    assert again[0]["tokens_per_s"] == rows[0]["tokens_per_s"]


def test_a_save_without_its_answers_starts_anew(trained, tmp_path, monkeypatch):
    point = {"evaluation.facts_within": 300, "evaluation.batch_size": 2, "evaluation.samples": 3, "evaluation.lengths": (400, 600)}
    killed_at_save(7, monkeypatch, trained, [point], tmp_path / "out")
    assert read_lines(tmp_path / "out" / "samples.jsonl")
    (tmp_path / "out" / "samples.jsonl").unlink()
    sweeps.run_sweep(trained, [point], tmp_path / "out")
    sweeps.run_sweep(trained, [point], tmp_path / "fresh")
    assert said(tmp_path / "out") == said(tmp_path / "fresh")


@pytest.mark.parametrize(("first", "then"), [((400, 600), (400, 500, 600)), ((400, 500, 600), (400, 600)), ((400, 600), (600,))])
def test_a_length_added_or_removed_after_a_kill(trained, tmp_path, monkeypatch, first, then):
    point = {"evaluation.facts_within": 300, "evaluation.batch_size": 2, "evaluation.samples": 3}
    # So late that rows stand behind the first question: of (400, 600) and of (400, 500, 600) the second is another one.
    killed_at_save(7, monkeypatch, trained, [{**point, "evaluation.lengths": first}], tmp_path / "out")
    assert said(tmp_path / "out") and len(list((tmp_path / "out").glob("*.state"))) == 1
    again = [{**point, "evaluation.lengths": then}]
    sweeps.run_sweep(trained, again, tmp_path / "out")
    sweeps.run_sweep(trained, again, tmp_path / "whole")
    found, whole = said(tmp_path / "out"), said(tmp_path / "whole")
    assert set(whole) == {("qa1", length, i) for length in then for i in range(3)}
    assert {key: found[key] for key in whole} == whole

LONG = {"evaluation.lengths": 700, "evaluation.samples": 3, "evaluation.batch_size": 2, "evaluation.segments_at_once": 1}


@pytest.fixture
def speeds(monkeypatch):
    """What a timing finds; how often it was asked."""
    found = {"sequential": 1.0, "diagonal": 2.0, "timings": 0}

    def tokens_per_s(self, name, segments):
        found["timings"] += 1
        return found[name]

    monkeypatch.setattr(Reader, "tokens_per_s", tokens_per_s)
    return found


def test_a_pass_goes_on_under_its_schedule(trained, tmp_path, monkeypatch, speeds):
    """A timing after a kill would find the other one; before the first save nothing but the schedule is written."""
    with monkeypatch.context() as patch:
        patch.setattr(Streams, "_read", lambda self, segments: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            sweeps.run_sweep(trained, [LONG], tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"schedules.jsonl"} and speeds["timings"] == 2
    speeds["diagonal"] = 0.5
    (row,) = sweeps.run_sweep(trained, [LONG], tmp_path)
    assert row["schedule"] == "diagonal" and row["timed"] == {"sequential": 1.0, "diagonal": 2.0} and speeds["timings"] == 2
    (row,) = sweeps.run_sweep(trained, [LONG], tmp_path / "other")
    assert row["schedule"] == "sequential" and speeds["timings"] == 4


def test_a_pass_goes_on_under_the_schedule_of_its_answers(trained, tmp_path, speeds):
    sweeps.run_sweep(trained, [LONG | {"evaluation.samples": 2, "evaluation.schedule": "diagonal"}], tmp_path)
    (tmp_path / "schedules.jsonl").unlink()
    speeds["diagonal"] = 0.5
    (row,) = sweeps.run_sweep(trained, [LONG], tmp_path)
    assert row["schedule"] == "diagonal" and row["samples"] == 3 and not speeds["timings"]
    assert {line["schedule"] for line in read_lines(tmp_path / "samples.jsonl")} == {"diagonal"}


def test_a_schedule_that_is_asked_for_is_used_in_spite_of_a_save(trained, tmp_path, monkeypatch, speeds, caplog):
    killed_at_save(5, monkeypatch, trained, [LONG], tmp_path)
    assert list(tmp_path.glob("*.state")) and not (tmp_path / "samples.jsonl").exists()
    (row,) = sweeps.run_sweep(trained, [LONG | {"evaluation.schedule": "sequential"}], tmp_path)
    assert row["schedule"] == "sequential" and "'sequential' is wanted" in caplog.text
    assert {line["schedule"] for line in read_lines(tmp_path / "samples.jsonl")} == {"sequential"}
    assert not list(tmp_path.glob("*.state"))


# Kills itself at the third save.
DRIVER = """
import os, runpy, signal, sys
from armt_jax.evaluation.streaming import Question, Streams
from armt_jax.generation import generate

save, count = Streams.save, []


def saving(self, *args):
    save(self, *args)
    count.append(1)
    if len(count) == 3 and os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)


Streams.save = saving
sys.argv = ["eval.py", *sys.argv[1:]]
runpy.run_path("eval.py", run_name="__main__")
"""


def test_kill_9_and_the_command(workdir, trained, tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    sweep = tmp_path / "sweep.py"
    sweep.write_text('def get_sweep():\n    return [{"evaluation.lengths": 1000, "evaluation.save_every_s": 1e-9}]\n')
    command = [sys.executable, tmp_path / "driver.py", f"--workdir={workdir}", f"--sweep={sweep}", f"--out={tmp_path / 'out'}"]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=ROOT, env=environ | {"KILL": "1"}, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert list((tmp_path / "out").glob("*.state"))
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    sweeps.run_sweep(trained, [{"evaluation.lengths": 1000}], tmp_path / "whole")
    assert said(tmp_path / "out") == said(tmp_path / "whole")
    assert "exact match in percent" in done.stdout and "qa1" in done.stdout
