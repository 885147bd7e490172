"""The benchmark of the builder, at a size that takes no time."""

import json

import pytest

from benchmarks import babilong_build


def start(monkeypatch, capsys, *more):
    monkeypatch.setattr("sys.argv", ["babilong_build.py", "--samples=5", "--length=1000", *more])
    babilong_build.main()
    return capsys.readouterr().out


def test_what_is_built_is_counted(monkeypatch, capsys, tmp_path):
    found = json.loads(start(monkeypatch, capsys, f"--folder={tmp_path}", "--json").splitlines()[-1])
    assert found["samples"] == 5 and found["length"] == 1000 and found["task"] == "qa1"
    # 5 samples of 1,000 tokens, each an int32; records may be compressed.
    assert 0 < found["written_mb"] < 1
    assert found["ids_mb_per_s"] == pytest.approx(found["samples_per_s"] * 4000 / 1e6, abs=0.02)
    assert list(tmp_path.iterdir()) == []


def test_people_get_a_line(monkeypatch, capsys):
    assert "qa2, 5 samples of 1,000 tokens" in start(monkeypatch, capsys, "--task=qa2")
