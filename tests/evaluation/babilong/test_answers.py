"""A run on BABILong, from training to answers: those of the whole sample in one pass."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from armt_jax.config import override, resolve
from armt_jax.data.babilong import score
from armt_jax.evaluation import babilong
from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.evaluate import load, run_config
from armt_jax.evaluation.streaming import Question, Streams
from armt_jax.generation import generate
from armt_jax.telemetry.jsonl import read_lines
from armt_jax.training import step as steps
from armt_jax.training.loop import train
from armt_jax.training.workdir import claim
from tests.commands import start


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


def test_streams_answer_as_whole_samples_do(trained, tmp_path, monkeypatch, capsys):
    """Every sample as one row through `generate`, without streams, batches and saves."""
    monkeypatch.setattr(babilong, "_SHOW_EVERY_S", 0.0)
    rows = sweeps.run_sweep(trained, [{}], tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qa1, 300: token ")]
    assert len(said) > 2 and said[-1].startswith("qa1, 300: token 1800/1800 | ")
    assert all("tokens/s" in line for line in said) and any("eta" in line for line in said[:-1])
    model = nnx.merge(steps.abstract_model(trained.config.model)[0], trained.params)
    source, found = trained.config.task, read_lines(tmp_path / "samples.jsonl")
    assert [line["index"] for line in sorted(found, key=lambda line: line["index"])] == list(range(6))
    samples = source.samples("test", 300)
    for line in found:
        sample = samples.sample(line["index"])
        prompt = np.concatenate([sample.context(), sample.question_ids])[None]
        assert prompt.shape == (1, 300)
        ids = np.asarray(generate(model, prompt, max_new_tokens=9, end_token=source.codec.end_id).tokens_BxG)[0]
        assert line["output"] == source.codec.decode_answer(ids)
        assert line["answer"] == sample.story.answer and line["question"] == sample.story.question
        want = dataclasses.asdict(score("qa1", sample.story.question, sample.story.answer, line["output"]))
        assert {name: line[name] for name in want} == want
    assert len({line["output"] for line in found}) > 1
    (row,) = rows
    assert row["exact_match"] == sum(line["strict"] for line in found) / 6 and row["samples"] == 6
    assert row["trained_to"] == 6 * 32 and row["schedule"] == "sequential" and row["tokens_per_s"] > 0
    written = {"samples.jsonl", "schedules.jsonl", "results.jsonl", "results.csv", "table.md", "heatmap.png", "facts.md"}
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


def test_memory_off_reads_the_last_segment_alone(trained, tmp_path):
    on, off = ({"evaluation.lengths": 300, "evaluation.memory": memory} for memory in ("on", "off"))
    rows = sweeps.run_sweep(trained, [on, off], tmp_path)
    assert [row["memory"] for row in rows] == ["on", "off"] and rows[1]["tokens_per_s"] == 0
    lines = read_lines(tmp_path / "samples.jsonl")
    by_id = {name: {line["index"]: line["output"] for line in lines if line["id"] == name} for name in (rows[0]["id"], rows[1]["id"])}
    assert by_id[rows[0]["id"]] != by_id[rows[1]["id"]]
    assert "armt, memory off" in (tmp_path / "table.md").read_text()


def test_published_stories_by_one_flag(trained, workdir, tmp_path):
    folder = tmp_path / "babi"
    folder.mkdir()
    story = "1 Mary moved to the {0}.\n2 John went to the garden.\n3 Where is Mary? \t{0}\t1\n"
    for split in ("train", "test"):
        text = "".join(story.format(room) for room in ("office", "kitchen") * 5)
        (folder / f"qa1_single-supporting-fact_{split}.txt").write_text(text)
    sweep = tmp_path / "sweep.py"
    sweep.write_text('def get_sweep():\n    return [{"evaluation.lengths": 300, "evaluation.samples": 99}]\n')
    done = start("eval.py", f"--workdir={workdir}", f"--sweep={sweep}", f"--stories={folder}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    (row,) = read_lines(tmp_path / "out" / "results.jsonl")
    assert row["samples"] == 10 and row["stories"] == "files"  # all there are
    answers = [line["answer"] for line in read_lines(tmp_path / "out" / "samples.jsonl")]
    assert answers.count("office") == answers.count("kitchen") == 5
    # The run was trained on generated ones, so --stories moves nothing of it; of another run it would.
    assert load(workdir, stories=str(folder)).raw["task"].get("stories") is None
    raw = json.loads(json.dumps(trained.raw)) | {"task": trained.raw["task"] | {"stories": "/gone"}}
    (tmp_path / "moved").mkdir()
    claim(tmp_path / "moved", raw)
    assert run_config(tmp_path / "moved", stories=str(folder))["task"]["stories"] == str(folder)


def test_the_longest_row_trained_on_is_counted_in_tokens(trained):
    """The stage of the most segments may have short ones."""
    task = trained.config.task
    stages = [dataclasses.replace(task, segment_length=16, segments=(5, 64)), dataclasses.replace(task, segments=(16, 40))]
    config = dataclasses.replace(trained.config, tasks=tuple(stages))
    assert babilong._trained_to(dataclasses.replace(trained, config=config)) == 40 * 32
