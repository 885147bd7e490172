"""The share of the chips' peak (MFU) in a run's metrics, on a CPU that is said to have one."""

import numpy as np

from armt_jax.telemetry import flops
from armt_jax.telemetry.jsonl import read_lines
from armt_jax.training import loop

PEAK = 1e9


def test_a_run_on_chips_with_a_known_peak_logs_its_share_of_it(counting, tmp_path, monkeypatch):
    """Of both stages, whose memories start empty and go on from batch to batch."""
    for module in (flops, loop):
        monkeypatch.setattr(module, "peak_flops", lambda device: PEAK)
    counting.run(tmp_path)
    rows = [row for row in read_lines(tmp_path / "metrics.jsonl") if "seconds_per_step" in row]
    assert {row["stage"] for row in rows} == {1, 2}
    operations = {row["stage"]: row["mfu"] * PEAK * row["seconds_per_step"] for row in rows}
    params = 12 * 16 * 16 + 128 * 16  # of matrices that every token meets, the tied head's among them
    tokens = {1: 4 * (2 + 1) * 4, 2: 4 * (3 + 1) * 4}
    for stage, count in tokens.items():
        assert 1 < operations[stage] / (6 * params * count) < 3, "products with the memory and its tokens come on top"
    np.testing.assert_allclose(operations[2] / operations[1], 4 / 3, rtol=0.05)


def test_a_cpu_has_no_peak_and_its_run_no_share(counting, tmp_path):
    counting.run(tmp_path)
    assert not any("mfu" in row for row in read_lines(tmp_path / "metrics.jsonl"))
