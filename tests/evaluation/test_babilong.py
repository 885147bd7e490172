"""A run on BABILong, from training to tables: what is answered, written down, gone on with after a kill."""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

from armt_jax.checkpoint import Checkpoints
from armt_jax.config import override, resolve
from armt_jax.data import DataError
from armt_jax.data.babilong import score
from armt_jax.evaluation import babilong, babilong_report
from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.evaluate import load, run_config
from armt_jax.evaluation.streaming import Question, Reader, Streams
from armt_jax.generation import generate
from armt_jax.parallel.mesh import make_mesh
from armt_jax.telemetry.jsonl import read_lines
from armt_jax.training import step as steps
from armt_jax.training.loop import train
from armt_jax.training.optimizer import make_optimizer
from armt_jax.training.step import TrainState
from armt_jax.training.workdir import claim

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = {
    "seed": 3,
    "backbone": {
        "name": "gpt2", "vocab_size": 260, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 40, "kernel_std": None,
        "embedding_std": 1.0, "tie_embeddings": False,
    },
    "memory": {"name": "armt", "num_memory_tokens": 2, "d_mem": 8, "key_norm": "l2", "value_std": None},
    "recurrence": {"segment_length": 32},
    "task": {"name": "babilong", "max_facts": 4, "background": {"tokenizer": "bytes"}},
    "train": {
        "batch_size": 4, "log_every": 2, "validate_every": 2, "validation_batches": 1, "checkpoint_every": 2, "tensorboard": False,
        "stages": [{"steps": 2, "task": {"segments": [5, 6]}}, {"steps": 2, "task": {"segments": 7, "question": "apart"}}],
    },
    "evaluation": {"batch_size": 4, "samples": 6, "lengths": 300, "new_tokens": 4, "segments_at_once": 4},
    "mesh": {"data": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("books"), random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 5))) for _ in range(30)]
    for split in ("train", "validation", "test"):
        (folder / split).mkdir()
        sentences = [" ".join(rng.choices(words, k=6)).capitalize() + "." for _ in range(40)]
        (folder / split / "book.txt").write_text(" ".join(sentences))
    return override(CONFIG, {"task.background.path": str(folder), "task.background.cache_dir": str(folder / "cache")})


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """A run whose checkpoint holds initial weights: their answers are as good as any to tell readings apart."""
    made = tmp_path_factory.mktemp("run")
    raw = json.loads(json.dumps(config))
    raw["train"]["stages"] = [{"steps": 2, "task": {"segments": 6}}]
    claim(made, raw)
    resolved = resolve(raw)
    mesh = make_mesh(resolved.mesh)
    params = steps.create_params(resolved.model, 3, mesh)
    state = TrainState(params, steps.create_opt_state(make_optimizer(resolved.train.optimizer, 2), params, mesh))
    standing = {"step": 2, "stage": 0, "stage_step": 2, "best": 0.0, "best_step": 2, "waited": 0, "finished": True}
    with Checkpoints(made / "checkpoints") as checkpoints:
        meta = {"standing": standing, "seed": 3, "window": [], "data": resolved.task.fingerprint, "config": raw}
        checkpoints.save(2, state, meta, rank=0.0, wait=True)
    return made


@pytest.fixture(scope="module")
def trained(workdir):
    return load(workdir)


class Killed(Exception):
    """Raised where a process is killed."""


def killed_at_save(number, monkeypatch, trained, points, directory):
    """An evaluation that ends behind so many saves."""
    saves, save = [], Streams.save

    def saving(self, path, identity):
        save(self, path, identity)
        saves.append(path)
        if len(saves) == number:
            raise Killed

    often = [{**point, "evaluation.save_every_s": 1e-9} for point in points]
    with monkeypatch.context() as patch:
        patch.setattr(Streams, "save", saving)
        with pytest.raises(Killed):
            sweeps.run_sweep(trained, often, directory)


def said(directory):
    return {(line["task"], line["length"], line["index"]): line["output"] for line in read_lines(directory / "samples.jsonl")}


def test_training_runs_through_stages(config, tmp_path):
    standing = train(resolve(config), config, tmp_path / "run")
    assert standing.finished and standing.step == 4
    logged = read_lines(tmp_path / "run" / "metrics.jsonl")
    sizes = [row["size"] for row in logged if "validation_exact_match" in row]
    assert sizes == [6, 7] and all(np.isfinite(row["validation_loss"]) for row in logged if "validation_loss" in row)
    tokenizer = resolve(config).task.tokenizer
    assert type(tokenizer).load(tmp_path / "run" / "tokenizer").fingerprint == tokenizer.fingerprint
    moved = override(config, {"task.stories": "/somewhere"})
    with pytest.raises(ValueError, match="somewhere"):
        resolve(moved)


def test_segments_may_grow_from_stage_to_stage(config, tmp_path):
    """A run is evaluated with task.segment_length, so it has to end with it."""
    raw = json.loads(json.dumps(config))
    del raw["recurrence"]["segment_length"]
    raw["task"]["segment_length"] = 32
    raw["train"]["stages"] = [{"steps": 1, "task": {"segment_length": 16, "segments": 10}}, {"steps": 1, "task": {"segments": 5}}]
    resolved = resolve(raw)
    assert [model.recurrence.segment_length for model in resolved.models] == [16, 32] and resolved.model == resolved.models[1]
    assert [task.batch(0, 0, 2).tokens_BxN.shape for task in resolved.tasks] == [(2, 160), (2, 160)]
    assert train(resolved, raw, tmp_path / "run").finished
    raw["train"]["stages"].reverse()
    with pytest.raises(ValueError, match=r"the last stage has task.segment_length = 16, and task.segment_length = 32"):
        resolve(raw)
    with pytest.raises(ValueError, match=r"train.stages\[1\].task.segment_length = 16 differs from recurrence.segment_length = 32"):
        resolve({**raw, "recurrence": {"segment_length": 32}})


def test_streams_answer_as_whole_samples_do(trained, tmp_path):
    """Every sample as one row through `generate`, without streams, batches and saves."""
    rows = sweeps.run_sweep(trained, [{}], tmp_path)
    model = nnx.merge(steps.abstract_model(trained.config.model)[0], trained.params)
    source, found = trained.config.task, read_lines(tmp_path / "samples.jsonl")
    assert [line["index"] for line in sorted(found, key=lambda line: line["index"])] == list(range(6))
    samples = source.samples("test", 300)
    for line in found:
        sample = samples.sample(line["index"])
        prompt = np.concatenate([sample.context(), sample.question_ids])[None]
        assert prompt.shape == (1, 300)
        ids = np.asarray(generate(model, prompt, max_new_tokens=4, end_token=source.codec.end_id).tokens_BxG)[0]
        assert line["output"] == source.codec.decode_answer(ids)
        assert line["answer"] == sample.story.answer and line["question"] == sample.story.question
        want = dataclasses.asdict(score("qa1", sample.story.question, sample.story.answer, line["output"]))
        assert {name: line[name] for name in want} == want
    assert len({line["output"] for line in found}) > 1
    (row,) = rows
    assert row["exact_match"] == sum(line["strict"] for line in found) / 6 and row["samples"] == 6
    assert row["trained_to"] == 6 * 32 and row["schedule"] == "sequential" and row["tokens_per_s"] > 0
    written = {"samples.jsonl", "schedules.jsonl", "results.jsonl", "results.csv", "table.md", "heatmap.png"}
    assert {file.name for file in tmp_path.iterdir()} == written


@pytest.mark.parametrize("question", ["running", "apart"])
def test_evaluation_reads_what_training_reads(trained, question):
    """A row of a training batch as one pass of the model, and as a stream: the same token behind the question."""
    source = dataclasses.replace(trained.config.task, segments=7, question=question)
    batch = source.batch(0, 0, 6, "test")
    graphdef, _ = steps.abstract_model(trained.config.model)
    logits, _ = nnx.merge(graphdef, trained.params)(batch.tokens_BxN, valid_BxN=batch.valid_BxN)
    likeliest = np.asarray(logits).argmax(-1)
    T, N = 32, batch.tokens_BxN.shape[1]

    class Read:
        def __init__(self, row):
            self.row = row
            behind = int(np.flatnonzero(batch.answers_BxN[row])[0]) + 1
            # Running text is cut anywhere before the question's end, a question of its own where its segment begins.
            cut = behind - 5 if question == "running" else N - T
            end = int(batch.valid_BxN[row, :cut].sum())
            self.questions = (Question(end, batch.tokens_BxN[row, cut:behind]),)
            self.first = likeliest[row, behind - 1]

        def read(self, start, stop):
            return batch.tokens_BxN[self.row, start:stop]

    config = dataclasses.replace(trained.config, task=source)
    reader = babilong._reader(trained, config, 3)
    found = {answer.key: answer.ids[0] for answer in Streams(reader, Read, range(6), segments_at_once=4) if answer is not None}
    assert found == {row: Read(row).first for row in range(6)} and len(set(found.values())) > 1


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


def test_results_of_several_sweeps_stand_together(trained, tmp_path, monkeypatch):
    short, long = ({"evaluation.lengths": length, "evaluation.samples": 2} for length in (300, 400))
    sweeps.run_sweep(trained, [short], tmp_path)
    (row,) = sweeps.run_sweep(trained, [long], tmp_path)
    held = read_lines(tmp_path / "results.jsonl")
    assert [each["length"] for each in held] == [300, 400] and held[1] == row
    assert "| 300 | 400 |" in (tmp_path / "table.md").read_text() and (tmp_path / "results.png").exists()
    # Once more: nothing new. Of more samples: the same row, with another figure.
    with monkeypatch.context() as patch:
        patch.setattr(babilong.report, "append_result", lambda *args: pytest.fail("appended again"))
        sweeps.run_sweep(trained, [short, long], tmp_path)
    assert read_lines(tmp_path / "results.jsonl") == held
    sweeps.run_sweep(trained, [long | {"evaluation.samples": 3}], tmp_path)
    assert [each["samples"] for each in read_lines(tmp_path / "results.jsonl")] == [2, 3]
    assert [each["id"] for each in babilong_report.read_run(tmp_path)] == [each["id"] for each in held]


def test_results_of_another_checkpoint_are_not_mixed_in(trained, tmp_path):
    points = [{"evaluation.lengths": length, "evaluation.samples": 1} for length in (300, 400)]
    sweeps.run_sweep(trained, points, tmp_path)
    sweeps.run_sweep(dataclasses.replace(trained, step=4), points[1:], tmp_path)
    assert [(row["length"], row["step"]) for row in read_lines(tmp_path / "results.jsonl")] == [(400, 4)]


def test_two_points_of_one_place_are_refused_before_anything_runs(trained, tmp_path):
    for points in (
        [{"evaluation.lengths": 300}, {"evaluation.lengths": 300, "evaluation.new_tokens": 5}],
        [{"evaluation.lengths": (300, 400)}, {"evaluation.lengths": 400}],
    ):
        with pytest.raises(ValueError, match="two points of the sweep are of qa1, [34]00 tokens"):
            sweeps.run_sweep(trained, points, tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
    apart = [{"evaluation.lengths": 300, "evaluation.samples": 1, "task.question": question} for question in ("running", "apart")]
    rows = sweeps.run_sweep(trained, apart, tmp_path)
    assert [row["question"] for row in rows] == ["running", "apart"] and "question apart" in (tmp_path / "table.md").read_text()


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


def test_memory_off_reads_the_last_segment_alone(trained, tmp_path):
    on, off = ({"evaluation.lengths": 300, "evaluation.memory": memory} for memory in ("on", "off"))
    rows = sweeps.run_sweep(trained, [on, off], tmp_path)
    assert [row["memory"] for row in rows] == ["on", "off"] and rows[1]["tokens_per_s"] == 0
    lines = read_lines(tmp_path / "samples.jsonl")
    by_id = {name: {line["index"]: line["output"] for line in lines if line["id"] == name} for name in (rows[0]["id"], rows[1]["id"])}
    assert by_id[rows[0]["id"]] != by_id[rows[1]["id"]]
    assert "armt, memory off" in (tmp_path / "table.md").read_text()


def test_what_stages_change_is_of_the_training_alone(trained):
    """Its stages ask two questions a row, which only qa1 can; a point of another task asks one."""
    raw = override(trained.raw, {"train.stages": [{"steps": 2, "task": {"questions": 2, "segments": 6}}]})
    point = {"task.task": "qa2", "task.max_facts": None, "evaluation.lengths": 9000}
    config = babilong.point_config(dataclasses.replace(trained, raw=raw, config=resolve(raw)), point)
    assert config.task.task == "qa2" and config.task.questions == 1 and babilong.passes(config)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"evaluation.lengths": 40}, "facts"),
        ({"evaluation.lengths": (300, 400), "evaluation.facts_within": 350}, "facts_within"),
        ({"evaluation.lengths": 0}, "at least 1"),
        ({"evaluation.lengths": (300, 300)}, "once"),
        ({"evaluation.schedule": "fast"}, "schedule"),
        ({"task.stories": "/nowhere"}, "nowhere"),
        ({"task.task": "qa11"}, "qa11"),
    ],
)
def test_bad_points_are_refused_before_anything_runs(trained, tmp_path, point, message):
    with pytest.raises(ValueError, match=message):
        sweeps.run_sweep(trained, [{}, point], tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()


def test_published_stories_by_one_flag(trained, workdir, tmp_path):
    folder = tmp_path / "babi"
    folder.mkdir()
    story = "1 Mary moved to the {0}.\n2 John went to the garden.\n3 Where is Mary? \t{0}\t1\n"
    for split in ("train", "test"):
        text = "".join(story.format(room) for room in ("office", "kitchen") * 5)
        (folder / f"qa1_single-supporting-fact_{split}.txt").write_text(text)
    points = [{"task.stories": str(folder), "evaluation.lengths": 300, "evaluation.samples": 99}]
    (row,) = sweeps.run_sweep(trained, points, tmp_path / "out")
    assert row["samples"] == 10 and row["stories"] == "files"  # all there are
    answers = [line["answer"] for line in read_lines(tmp_path / "out" / "samples.jsonl")]
    assert answers.count("office") == answers.count("kitchen") == 5
    # The run was trained on generated ones, so --stories moves nothing of it; of another run it would.
    assert load(workdir, stories=str(folder)).raw["task"].get("stories") is None
    raw = json.loads(json.dumps(trained.raw)) | {"task": trained.raw["task"] | {"stories": "/gone"}}
    (tmp_path / "moved").mkdir()
    claim(tmp_path / "moved", raw)
    assert run_config(tmp_path / "moved", stories=str(folder))["task"]["stories"] == str(folder)


def test_shipped_sweeps_fit_a_run(trained):
    for path in sorted((ROOT / "configs" / "sweeps").glob("babilong_*.py")):
        lengths = [resolve(override(trained.raw, point)).evaluation.lengths for point in sweeps.read_sweep(path)]
        assert lengths == sorted(lengths) and len(lengths) > 3


def test_another_text_is_refused(trained, workdir, tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "other.txt").write_text(f"This {split} is another text. It has another fingerprint than the one before.\n" * 9)
    with pytest.raises(DataError):
        load(workdir, data_path=str(tmp_path))
    with pytest.raises(DataError, match="the text of the point"):
        sweeps.run_sweep(trained, [{"task.background.path": str(tmp_path)}], tmp_path / "out")


# -- reports -------------------------------------------------------------------------------------------------------------


def test_passes_of_one_length_and_of_many(trained):
    config = babilong.point_config(trained, {"evaluation.lengths": (400, 300)})
    assert [each.lengths for each in babilong.passes(config)] == [(300,), (400,)]
    config = babilong.point_config(trained, {"evaluation.lengths": (400, 300), "evaluation.facts_within": 250})
    (one,) = babilong.passes(config)
    assert one.lengths == (300, 400)
    document = one.document(0)
    asked = len(document.sample.question_ids)
    assert [question.end for question in document.questions] == [300 - asked, 400 - asked]
    ids = [one.identity(trained, length) for length in one.lengths]
    for changed in ({"task.question": "apart"}, {"evaluation.new_tokens": 9}, {"evaluation.memory": "off"}, {"task.max_facts": 3}):
        point = {"evaluation.lengths": (400, 300), "evaluation.facts_within": 250, **changed}
        (differs,) = babilong.passes(babilong.point_config(trained, point))
        assert not {differs.identity(trained, length) for length in one.lengths} & set(ids), changed
    for changed in ({"init.path": "/gpt2"}, {"task.text_weight": 0.5}, {"recurrence.bptt_segments": 2}):
        another = dataclasses.replace(trained, raw=override(trained.raw, changed))
        assert not {one.identity(another, length) for length in one.lengths} & set(ids), f"another run's answers: {changed}"
    elsewhere = dataclasses.replace(trained, raw=override(trained.raw, {"task.background.cache_dir": "/cache", "evaluation.samples": 9}))
    assert [one.identity(elsewhere, length) for length in one.lengths] == ids
    other = dataclasses.replace(one, config=dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, batch_size=1)))
    assert [other.identity(trained, length) for length in one.lengths] == ids and len(set(ids)) == 2
