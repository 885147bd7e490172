"""The comparison: what is run, what is not run again, and what its table claims."""

import importlib.util
import json
import pathlib
import re
import runpy
import shlex
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def compare(monkeypatch):
    spec = importlib.util.spec_from_file_location("compare_lm", ROOT / "benchmarks" / "compare_lm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(ROOT)
    steps = {"parameters": 1000, "state_floats_a_row": 8, "temp_mb": 12.3, "device": "cpu", "tokens_per_s": 100.0}
    monkeypatch.setattr(module, "side_by_side", lambda args: dict.fromkeys(args.systems, steps))
    return module


def reading(name, figure, tokens=4):
    curves = {f"{what}_by_{by}": [1] * tokens for what in ("nats", "tokens") for by in ("segment", "position")}
    return {"reading": name, "published_as": "bits_per_byte", "bits_per_byte": figure, "nats_per_token": figure, "step": 5, **curves}


def fake_runs(compare, monkeypatch, fail_at=None):
    """Stands in for train.py and eval.py; returns the commands given."""
    given = []

    def execute(words):
        given.append(words)
        if len(given) == fail_at:
            raise KeyboardInterrupt
        workdir = pathlib.Path(next(w for w in words if w.startswith("--workdir=")).partition("=")[2])
        system, _, seed = workdir.name.partition("-")
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        if "train.py" in words:
            (workdir / "metrics.jsonl").write_text(json.dumps({"step": 60, "tokens_per_s": 100.0, "data_wait": 0.001}) + "\n")
            return
        figure = {"none": 3.0, "armt": 2.5}[system] + 0.01 * int(seed)
        names = ["stateful", "from empty, 16 segments", "sliding, 4 + 4"] + (["stateful, memory off"] if system == "armt" else [])
        rows = [{**reading(name, figure), "seed": int(seed)} for name in names]
        (workdir / "evaluation" / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(compare, "execute", execute)
    return given


def start(compare, monkeypatch, out, *more):
    arguments = ["--dataset=enwik8", "--data_path=somewhere", "--systems=none,armt", "--seeds=0,1", f"--out={out}", *more]
    monkeypatch.setattr(sys, "argv", ["compare_lm.py", *arguments])
    compare.main()


def test_every_system_and_seed_is_run_once_by_commands_that_can_be_typed(compare, monkeypatch, tmp_path):
    given = fake_runs(compare, monkeypatch)
    start(compare, monkeypatch, tmp_path, "--train.max_stage_steps=60")
    assert len(given) == 8 and given[0][:2] == ["python", "train.py"] and given[1][:2] == ["python", "eval.py"]
    assert given[2] == [
        "python", "train.py", "--config=configs/enwik8.py:armt-cpu", "--config.data.path=somewhere", "--config.seed=0",
        "--config.train.max_stage_steps=60", f"--workdir={tmp_path / 'armt-0'}",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(row["system"], row["seed"]) for row in rows] == [("none", 0), ("none", 1), ("armt", 0), ("armt", 1)]
    assert rows[2]["train"] == shlex.join(given[2]) and rows[2]["memory_off"] == 2.5
    table = (tmp_path / "table.md").read_text()
    assert "| armt | 1,000 | 2.505 ± 0.007 | 2.505 ± 0.007 | 100 | 12 | yes (+0.500 against 0.014) |" in table
    assert "| armt | 2.500 | 2.510 | 8 | 0.1% |" in table
    assert "--train.max_stage_steps=60" in table and "seeds 0, 1" in table
    assert (tmp_path / "by_segment.png").stat().st_size and (tmp_path / "by_position.csv").stat().st_size
    start(compare, monkeypatch, tmp_path, "--train.max_stage_steps=60")
    assert len(given) == 8, "nothing is run again"


def test_the_default_size_is_a_variant_of_every_dataset_and_system(compare):
    for dataset in compare.DATASETS:
        variants = runpy.run_path(str(ROOT / "configs" / f"{dataset}.py"))["VARIANTS"]
        assert {f"{system}-cpu" for system in compare.SYSTEMS} <= set(variants), dataset


def test_a_stopped_comparison_goes_on(compare, monkeypatch, tmp_path):
    given = fake_runs(compare, monkeypatch, fail_at=4)
    with pytest.raises(KeyboardInterrupt):
        start(compare, monkeypatch, tmp_path)
    start(compare, monkeypatch, tmp_path)
    assert len(given) == 4 + 6 and [words[1] for words in given[4:6]] == ["train.py", "eval.py"], "the broken run, then the rest"


def test_runs_of_another_comparison_are_not_taken_for_these(compare, monkeypatch, tmp_path):
    fake_runs(compare, monkeypatch)
    start(compare, monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="holds another run"):
        start(compare, monkeypatch, tmp_path, "--train.max_stage_steps=60")


@pytest.mark.parametrize("other", ["from empty, 2 segments", "sliding, 8 + 8"])
def test_runs_that_were_read_in_other_windows_are_not_compared(compare, monkeypatch, tmp_path, other):
    fake_runs(compare, monkeypatch)
    start(compare, monkeypatch, tmp_path)
    table = (tmp_path / "table.md").read_text()
    results = tmp_path / "armt-1" / "evaluation" / "results.jsonl"
    kind = other.partition(",")[0]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    changed = [{**row, "reading": other} if row["reading"].startswith(kind) else row for row in rows]
    results.write_text("".join(json.dumps(row) + "\n" for row in changed))
    (tmp_path / "table.md").unlink()
    with pytest.raises(SystemExit, match=f"armt-1 was read as .*{re.escape(other)}.*none-0 as stateful.*not one comparison"):
        start(compare, monkeypatch, tmp_path)
    assert not (tmp_path / "table.md").exists()
    given = fake_runs(compare, monkeypatch)
    (tmp_path / "armt-1" / "comparison.json").unlink()
    start(compare, monkeypatch, tmp_path)
    assert [words[1] for words in given] == ["train.py", "eval.py"] and (tmp_path / "table.md").read_text() == table


def test_the_verdict_wants_more_than_twice_the_larger_deviation(compare):
    assert compare.verdict([1.0, 1.2], [2.0, 2.1]).startswith("yes (+0.950")
    assert compare.verdict([1.0, 2.0], [2.0, 2.1]).startswith("no")
    assert compare.verdict([3.0, 3.1], [2.0, 2.1]).startswith("no (-1.000")
    assert compare.verdict([1.0], [2.0]) == "one seed"


@pytest.mark.parametrize("wrong", ["--systems=armd", "--seed=3", "--train.steps"])
def test_a_wrong_argument_is_refused(compare, monkeypatch, tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        start(compare, monkeypatch, tmp_path, wrong)
    assert wrong.partition("=")[2] in capsys.readouterr().err
