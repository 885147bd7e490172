import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from armt_jax.telemetry.writers import MetricWriter


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_steps(workdir, steps, **kwargs):
    with MetricWriter(workdir, tensorboard=False, **kwargs) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / step})


def test_one_object_per_call_readable_before_close(tmp_path):
    writer = MetricWriter(tmp_path / "run", tensorboard=False)
    writer.write(1, {"loss": jnp.float32(0.5), "stage": "1/3"})
    writer.write(np.int64(2), {"loss": math.nan, "grad_norm": math.inf})
    assert lines(tmp_path / "run") == [
        {"step": 1, "loss": 0.5, "stage": "1/3"},
        {"step": 2, "loss": None, "grad_norm": None},
    ]
    writer.close()
    writer.close()  # closing twice is harmless


def test_resume_drops_later_steps_and_a_half_line(tmp_path):
    write_steps(tmp_path, [10, 20, 30, 40])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "lo')
    write_steps(tmp_path, [30, 40, 50], resume_step=20)
    assert [row["step"] for row in lines(tmp_path)] == [10, 20, 30, 40, 50]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]  # no temporary file is left


def test_resume_at_zero_starts_over_and_a_missing_file_is_fine(tmp_path):
    write_steps(tmp_path, [1, 2], resume_step=5)
    write_steps(tmp_path, [1], resume_step=0)
    assert [row["step"] for row in lines(tmp_path)] == [1]


def test_new_run_keeps_the_file_of_the_old_one(tmp_path):
    for _ in range(3):
        write_steps(tmp_path, [1, 2])
    assert len(lines(tmp_path)) == 2
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["metrics.jsonl", "metrics.old-1.jsonl", "metrics.old-2.jsonl"]


def test_disabled_writer_touches_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", enabled=False) as writer:
        writer.write(1, {"loss": object()})
    assert not (tmp_path / "run").exists()


def test_tensorboard_files_without_tensorflow(tmp_path):
    # A fresh interpreter: what this module imports must not depend on what other tests have imported.
    code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["torch"] = None  # importing them fails, installed or not
import armt_jax.telemetry.writers as writers
assert "tensorboardX" not in sys.modules
for resume_step in (None, 1):
    with writers.MetricWriter({str(tmp_path)!r}, resume_step=resume_step) as writer:
        writer.write(1, {{"loss": 0.5, "bad": float("nan"), "stage": "1/3"}})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    events = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert events and all(path.stat().st_size > 0 for path in events)
    assert b"loss" in b"".join(path.read_bytes() for path in events)


@pytest.mark.parametrize(("values", "message"), [({"step": 1}, "reserved"), ({"loss": np.ones(2)}, "'loss' has shape")])
def test_bad_values_are_named_and_leave_no_line(tmp_path, values, message):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match=message):
            writer.write(1, values)
        writer.write(2, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 2, "loss": 1.0}]


def test_unwritable_workdir_names_the_path(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OSError, match=r"cannot write metrics under workdir .*run.*Choose another workdir"):
        MetricWriter(blocker / "run")


def test_url_is_refused():
    with pytest.raises(ValueError, match="gs://bucket/run' is a URL"):
        MetricWriter("gs://bucket/run")
