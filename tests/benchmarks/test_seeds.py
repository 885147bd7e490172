"""Several seeds of one experiment: what is run, what is not run again, and what the table says of them."""

import pathlib
import types

import pytest

from armt_jax.data.babilong import BabilongBatches, BackgroundConfig
from armt_jax.evaluation.seeds import mean_text
from armt_jax.telemetry import jsonl
from benchmarks import seeds

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def given(monkeypatch):
    """Stands in for train.py, eval.py and the plot; the commands given."""
    commands = []

    def execute(words):
        commands.append(words)
        workdir = pathlib.Path(next(w for w in words if w.startswith("--workdir=")).partition("=")[2])
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        seed = int(workdir.name)
        rows = [{"label": "armt", "pairs": pairs, "seed": seed, "exact_match": 1.0 - 0.1 * seed} for pairs in (4, 8)]
        jsonl.replace_lines(workdir / "evaluation" / "results.jsonl", rows)

    monkeypatch.setattr(seeds, "execute", execute)
    task = types.SimpleNamespace(size_name="pairs")
    trained = types.SimpleNamespace(config=types.SimpleNamespace(task=task), raw={"task": {"name": "a_task"}}, trained_to=4)
    monkeypatch.setattr("armt_jax.evaluation.evaluate.load", lambda *_: trained)
    monkeypatch.chdir(ROOT)
    return commands


def start(monkeypatch, out, *more):
    monkeypatch.setattr("sys.argv", ["seeds.py", "--seeds=0,2", f"--out={out}", *more])
    seeds.main()


def test_every_seed_is_run_once_by_commands_that_can_be_typed(given, monkeypatch, tmp_path):
    start(monkeypatch, tmp_path, "--memory.d_mem=8")
    assert given[2:] == [
        [
            "python", "train.py", "--config=configs/quickstart.py:armt", "--config.seed=2", "--config.memory.d_mem=8",
            f"--workdir={tmp_path / '2'}",
        ],
        ["python", "eval.py", f"--workdir={tmp_path / '2'}", "--sweep=configs/sweeps/rewrite.py"],
    ]  # fmt: skip
    table = (tmp_path / "table.md").read_text()
    assert "| 0 | 1.000 | 1.000 |" in table and "| 2 | 0.800 | 0.800 |" in table
    assert "| mean ± deviation | 0.900 ± 0.141 | 0.900 ± 0.141 |" in table and "--config.seed=0" in table
    assert len(jsonl.read_lines(tmp_path / "results.jsonl")) == 4 and (tmp_path / "results.png").stat().st_size
    start(monkeypatch, tmp_path, "--memory.d_mem=8")
    assert len(given) == 4, "nothing is run again"
    with pytest.raises(SystemExit, match="holds another run"):
        start(monkeypatch, tmp_path, "--memory.d_mem=9")


def test_the_checkpoint_is_evaluated_that_was_asked_for(given, monkeypatch, tmp_path):
    start(monkeypatch, tmp_path, "--checkpoint=last")
    words = ["python", "eval.py", f"--workdir={tmp_path / '0'}", "--sweep=configs/sweeps/rewrite.py", "--checkpoint=last"]
    assert given[1] == words and "--checkpoint=last" in (tmp_path / "table.md").read_text()
    with pytest.raises(SystemExit, match="holds another run"):
        start(monkeypatch, tmp_path)


def test_runs_on_babilong_have_their_own_report(given, monkeypatch, tmp_path):
    """Rows by length, of several tasks; a size named `segments` is none of them."""

    def execute(words):
        given.append(words)
        workdir = pathlib.Path(next(w for w in words if w.startswith("--workdir=")).partition("=")[2])
        (workdir / "evaluation").mkdir(parents=True, exist_ok=True)
        seed, rows = int(workdir.name), []
        for length in (1_000, 64_000):
            score = 1.0 - 0.1 * seed if length == 1_000 else 0.5
            rows.append({
                "task": "qa1", "length": length, "facts_within": None, "memory": "on", "split": "test", "question": "running",
                "max_facts": None, "stories": "generated", "seed": seed, "exact_match": score, "official": score, "repaired": score,
                "samples": 100, "step": 10, "trained_to": 1024, "label": "armt", "id": f"{seed} {length}",
            })  # fmt: skip
        jsonl.replace_lines(workdir / "evaluation" / "results.jsonl", rows)

    monkeypatch.setattr(seeds, "execute", execute)
    source = BabilongBatches(BackgroundConfig("/books", tokenizer="bytes"))
    trained = types.SimpleNamespace(config=types.SimpleNamespace(task=source), raw={"task": {"name": "babilong"}}, trained_to=16)
    monkeypatch.setattr("armt_jax.evaluation.evaluate.load", lambda *_: trained)
    start(monkeypatch, tmp_path, "--config=configs/babilong_qa1_cpu.py:armt", "--sweep=configs/sweeps/babilong_lengths.py")
    text = (tmp_path / "table.md").read_text()
    assert "| qa1 | **armt, generated stories** | 90.0 ± 14.1 | 50.0 ± 0.0 |" in text and "--config.seed=0" in text
    assert "| qa1 | ARMT (arXiv 2407.04841) |" in text
    assert len(jsonl.read_lines(tmp_path / "results.jsonl")) == 4 and (tmp_path / "heatmap.png").stat().st_size
    start(monkeypatch, tmp_path, "--config=configs/babilong_qa1_cpu.py:armt", "--sweep=configs/sweeps/babilong_lengths.py")
    assert len(given) == 4, "nothing is run again"


@pytest.mark.parametrize("wrong", ["--seed=3", "--memory.d_mem", "--checkpoint=first"])
def test_a_wrong_argument_is_refused(given, monkeypatch, tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        start(monkeypatch, tmp_path, wrong)
    assert wrong in capsys.readouterr().err and not given


def test_a_single_value_has_no_deviation():
    assert mean_text([0.5]) == "0.500" and mean_text([0.5, 0.6]) == "0.550 ± 0.071"
