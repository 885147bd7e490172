"""What an import holds of a checkpoint at a time: not the whole of it."""

import json
import subprocess
import sys

import pytest

from tests.commands import ROOT


@pytest.mark.parametrize("devices", [1, 2])
def test_an_import_keeps_its_bar(devices, tmp_path):
    """Half a gigabyte, of which the largest tensor is less than half: who reads it whole is past the bar, and the command exits with 1."""
    command = [sys.executable, str(ROOT / "benchmarks" / "import_memory.py"), "--gigabytes=0.5", f"--fsdp={devices}", "--json"]
    done = subprocess.run([*command, f"--folder={tmp_path}"], text=True, capture_output=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["checkpoint_mb"] + found["shard_mb"] > 1.2 * found["bar_mb"] and found["devices"] == devices
    assert 0 < found["peak_mb"] <= found["bar_mb"]
    assert not list(tmp_path.iterdir())
