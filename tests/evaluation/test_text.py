"""Readings of a text: every target once, by segment and by position; memory on and off; what is done is not done again."""

import csv
import dataclasses
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from armt_jax.checkpoint import Checkpoints
from armt_jax.config import override, resolve
from armt_jax.data import text_metrics
from armt_jax.evaluation import samples, text
from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.evaluate import load, mesh_here
from armt_jax.parallel.mesh import make_mesh
from armt_jax.training import carried as carry
from armt_jax.training import step as steps
from armt_jax.training.optimizer import make_optimizer
from armt_jax.training.step import TrainState
from armt_jax.training.workdir import claim

ROOT = pathlib.Path(__file__).parents[2]
T, S = 4, 3
BACKBONE = {"name": "transformer_xl", "vocab_size": 256, "num_layers": 2, "width": 16, "num_heads": 2, "kernel_std": None}
MEMORIES = {
    "none": {},
    "transformer_xl": {"cache_length": 6},
    "armt_xl": {"cache_length": 6, "num_memory_tokens": 1, "d_mem": 8, "value_std": 0.5, "key_norm": "l2"},
    "rmt": {"num_memory_tokens": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def corpus(folder):
    rng = random.Random(0)
    for split, size in (("train", 400), ("validation", 150), ("test", 124)):
        (folder / "corpus").mkdir(exist_ok=True)
        (folder / "corpus" / f"{split}.txt").write_text("".join(rng.choices("abcde \n", k=size)))
    return folder / "corpus"


@pytest.fixture(scope="module")
def runs(folder, corpus):
    """{memory: trained}: the same weights, as far as the memory has none of its own."""
    made = {}
    for memory, fields in MEMORIES.items():
        raw = {
            "seed": 3, "backbone": BACKBONE, "memory": {"name": memory, **fields}, "recurrence": {"segment_length": T},
            "data": {
                "dataset": "text", "path": str(corpus), "tokenizer": "bytes", "segments": S, "resets_at": "never",
                "cache_dir": str(folder / "cache"),
            },
            "train": {"batch_size": 4, "stages": [{"steps": 8}]},
            "evaluation": {"batch_size": 3, "batches": None}, "mesh": {"data": 1},
        }  # fmt: skip
        workdir = folder / memory
        workdir.mkdir()
        claim(workdir, raw)
        config = resolve(raw)
        mesh = make_mesh(config.mesh)
        params = steps.create_params(config.model, 0, mesh)
        opt_state = make_optimizer(config.train.optimizer, 1).init(params)
        state = TrainState(params, opt_state, carry.fresh(config.model, 4, mesh))
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            checkpoints.save(8, state, {"standing": {}, "data": config.task.fingerprint, "config": raw}, rank=0.5)
        made[memory] = load(workdir)
    return made


def module(trained, config=None):
    model = nnx.merge(steps.abstract_model(trained.config.model)[0], trained.params)
    return model if config is None else model.with_config(config)


def reading(trained, point):
    config = text.point_config(trained.raw, point)
    return text.read(trained, config), config


WINDOWS = {"data.stream": "windows"}
WHOLE = WINDOWS | {"data.stride": S * T}
OFF = {"evaluation.memory": "off"}


@pytest.mark.parametrize("point", [{}, OFF, WINDOWS, WHOLE, WHOLE | OFF, {"evaluation.batch_size": 1}, {"evaluation.split": "validation"}])
@pytest.mark.parametrize("memory", ["armt_xl", "none"])
def test_every_target_counts_once(runs, memory, point):
    found, config = reading(runs[memory], point)
    assert found.weight_SxT.sum() == config.task.num_targets(config.evaluation.split)
    assert found.loss_SxT.shape == found.weight_SxT.shape == (config.task.segments, T) and np.all(found.loss_SxT >= 0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_stateful_reading_of_one_row_is_one_long_row(runs, memory):
    trained = runs[memory]
    found, config = reading(trained, {"evaluation.batch_size": 1})
    ids = np.asarray(config.task.text("test").ids_N, np.int32)
    nll, _ = jax.jit(lambda x, y: module(trained).token_losses(x, y))(ids[None, :-1], ids[None, 1:])
    np.testing.assert_allclose(found.loss_SxT.sum(), nll.sum(), rtol=1e-5)
    by_position = [float(nll[0, t::T].sum()) for t in range(T)]
    np.testing.assert_allclose(found.loss_SxT.sum(axis=0), by_position, rtol=1e-4)
    row = text.row(trained, config, {}, found)
    figures = text_metrics(float(nll.sum()), len(ids) - 1, config.task.counts("test"))
    assert all(row[name] == pytest.approx(value, rel=1e-5) for name, value in figures.items())
    assert row["tokens"] == len(ids) - 1 and row["published_as"] == "bits_per_character"


def test_a_window_starts_from_an_empty_memory_and_says_what_each_segment_costs(runs):
    trained = runs["armt_xl"]
    found, config = reading(trained, WHOLE)
    ids = np.asarray(config.task.text("test").ids_N, np.int32)
    windows = (len(ids) - 1) // (S * T)
    starts = np.arange(windows) * S * T
    x, y = (np.stack([ids[s + d : s + d + S * T] for s in starts]) for d in (0, 1))
    nll, _ = jax.jit(lambda x, y: module(trained).token_losses(x, y))(x, y)
    by_segment = np.asarray(nll).reshape(windows, S, T).sum(axis=(0, 2))
    last = len(ids) - 1 - windows * S * T  # a short block, after more history than the others have
    assert found.weight_SxT.sum() == windows * S * T + last
    whole_segments = found.weight_SxT.sum(axis=1) == windows * T
    assert whole_segments[0], "the short block lies at the end of its window"
    np.testing.assert_allclose(found.loss_SxT.sum(axis=1)[whole_segments], by_segment[whole_segments], rtol=1e-5)


def test_a_sliding_window_counts_the_block_alone(runs):
    found, config = reading(runs["transformer_xl"], WINDOWS)
    assert config.task.block == T and config.task.segments == S
    by_segment = found.weight_SxT.sum(axis=1)
    assert by_segment[-1] > by_segment[0] > 0, "only the first windows have less history"


@pytest.mark.parametrize("point", [{}, WHOLE])
def test_a_cache_that_is_switched_off_is_no_memory(runs, point):
    """The cache has no parameters: without it the same weights are the bare backbone."""
    read = (("transformer_xl", {}), ("transformer_xl", OFF), ("none", {}))
    on, off, none = (reading(runs[memory], point | more)[0].loss_SxT for memory, more in read)
    np.testing.assert_allclose(off, none, rtol=1e-5)
    assert np.abs(on - none).max() > 1e-2


def test_no_memory_cannot_be_switched_off(runs):
    on, off = (reading(runs["none"], more)[0].loss_SxT for more in ({}, OFF))
    np.testing.assert_allclose(on, off, rtol=1e-6)


def test_the_first_segment_has_no_memory_to_lose(runs):
    for memory in ("armt_xl", "rmt"):
        on, off = (reading(runs[memory], WHOLE | more)[0].loss_SxT for more in ({}, OFF))
        np.testing.assert_allclose(on[0], off[0], rtol=1e-5)
        assert np.abs(on[1:] - off[1:]).max() > 1e-3


def test_another_cache_length_is_another_model_with_the_same_weights(runs):
    trained = runs["transformer_xl"]
    long, config = reading(trained, {"memory.cache_length": 200, "evaluation.batch_size": 1})
    assert config.model.memory.cache_length == 200
    ids = np.asarray(config.task.text("test").ids_N, np.int32)
    nll, _ = jax.jit(lambda x, y: module(trained, config.model).token_losses(x, y))(ids[None, :-1], ids[None, 1:])
    np.testing.assert_allclose(long.loss_SxT.sum(), nll.sum(), rtol=1e-5)
    assert abs(long.loss_SxT.sum() - reading(trained, {"evaluation.batch_size": 1})[0].loss_SxT.sum()) > 1e-2


# -- results -----------------------------------------------------------------------------------------------------------------


def test_an_evaluation_leaves_tables_and_plots_and_is_not_done_twice(runs, tmp_path, monkeypatch):
    trained = runs["transformer_xl"]
    points = text.default_points(trained)
    rows = sweeps.run_sweep(trained, points, tmp_path)
    names = [row["reading"] for row in rows]
    empty = "from empty, 16 segments"
    assert names == ["stateful", "stateful, memory off", empty, f"{empty}, memory off", "sliding, 16 + 16"]
    assert {row["label"] for row in rows} == {"transformer_xl"} and all(row["step"] == 8 for row in rows)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["by_position.csv", "by_position.png", "by_segment.csv", "by_segment.png", "results.csv", "results.jsonl"]
    assert "stateful" in text.table(rows) and "bits_per_character" in text.table(rows)
    with (tmp_path / "by_segment.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["reading"] for line in lines} == set(names[2:])
    for row in rows:
        total = sum(a * b for a, b in zip(row["nats_by_position"], row["tokens_by_position"], strict=True))
        assert total == pytest.approx(row["nats_per_token"] * row["tokens"], rel=1e-6)
    assert "by_segment.png" in sweeps.show(trained, rows, tmp_path)
    monkeypatch.setattr(text, "read", lambda *_: pytest.fail("read again"))
    assert sweeps.run_sweep(trained, points, tmp_path) == rows
    stateful = sweeps.run_sweep(trained, points[:1], tmp_path)
    assert not list(tmp_path.glob("by_segment.*")), "the number of a segment within a row says nothing of a stream that goes on"
    assert "by_segment.png" not in sweeps.show(trained, stateful, tmp_path) and (tmp_path / "by_position.png").exists()


def with_segments(trained, segments, **splits):
    """The run as if it had been trained on rows of so many segments."""
    raw = override(trained.raw, {"data.segments": segments, **{f"evaluation.{name}": value for name, value in splits.items()}})
    return dataclasses.replace(trained, raw=raw, config=resolve(raw))


def test_the_default_readings_are_those_of_every_system(runs):
    """The rows that a system trains on are its own: single segments, or several with a gradient between them."""

    def names(trained):
        configs = [(text.point_config(trained.raw, point), point) for point in text.default_points(trained)]
        assert all(config.task.num_steps(3, config.evaluation.split) for config, _ in configs)
        return [name for name in (text.describe(*each) for each in configs) if "memory off" not in name]

    same = ["stateful", "from empty, 16 segments", "sliding, 16 + 16"]
    assert names(with_segments(runs["none"], 1)) == names(with_segments(runs["armt_xl"], 4)) == names(runs["rmt"]) == same
    assert names(with_segments(runs["rmt"], 10)) == ["stateful", "from empty, 20 segments", "sliding, 20 + 20"]
    # 123 targets are 30 segments of 4 and a rest.
    assert names(with_segments(runs["rmt"], 20)) == ["stateful", "from empty, 30 segments", "sliding, 40 + 40"]
    assert names(with_segments(runs["rmt"], 35)) == ["stateful", "from empty, 30 segments", "sliding, 60 + 60"]


def test_a_run_of_several_stages_is_read_as_others_are(runs, tmp_path):
    """What a stage changes in the data is of the training: beside the points of an evaluation it has no say, and is not in their way."""
    stages = [{"steps": 4, "data": {"segments": 1}}, {"steps": 4, "data": {"segments": 2}}]
    raw = override(runs["rmt"].raw, {"train.stages": stages})
    trained = dataclasses.replace(runs["rmt"], raw=raw, config=resolve(raw))
    points = text.default_points(trained)[::4]
    figures = lambda trained, name: [row["nats_per_token"] for row in sweeps.run_sweep(trained, points, tmp_path / name)]
    assert len(points) == 2 and figures(trained, "stages") == figures(runs["rmt"], "plain")


def test_only_the_evaluated_split_has_to_hold_a_window(runs, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "validation.txt").write_text("ab cd\n" * 10)
    raw = override(runs["none"].raw, {"data.path": str(tmp_path / "corpus")})
    resolve(raw)
    point = WINDOWS | {"data.segments": 30, "data.stride": 120}
    longer = override(raw, point)
    del longer["data"]["resets_at"]
    with pytest.raises(ValueError, match="longer than the 59 targets of split 'validation'"):
        resolve(longer)
    assert text.point_config(raw, point).task.num_steps(1, "test")


def test_a_split_shorter_than_a_segment_is_read_as_it_is(runs):
    raw = override(runs["rmt"].raw, {"recurrence.segment_length": 130, "data.segments": 1})
    trained = dataclasses.replace(runs["rmt"], raw=raw, config=resolve(raw))
    assert text.default_points(trained) == [{"data.stream": "contiguous"}, {"data.stream": "contiguous", "evaluation.memory": "off"}]


def test_a_stopped_evaluation_goes_on(runs, tmp_path, monkeypatch):
    trained, read, done = runs["none"], text.read, []

    def failing(trained, config):
        done.append(config)
        if len(done) == 2:
            raise KeyboardInterrupt
        return read(trained, config)

    monkeypatch.setattr(text, "read", failing)
    points = text.default_points(trained)
    assert len(points) == 3, "nothing is remembered, so nothing is switched off"
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(trained, points, tmp_path)
    assert len(json.loads((tmp_path / "results.jsonl").read_text())) > 5
    assert len(sweeps.run_sweep(trained, points, tmp_path)) == 3 and len(done) == 4


def test_what_cannot_be_evaluated_is_said_before_anything_runs(runs, tmp_path, monkeypatch):
    trained = runs["none"]
    monkeypatch.setattr(text, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match=r"data\.dataset = 'enwik8'.*trained on"):
        sweeps.run_sweep(trained, [{}, {"data.dataset": "enwik8"}], tmp_path)
    with pytest.raises(ValueError, match=r"data\.strides.*did you mean 'stride'"):
        sweeps.run_sweep(trained, [{}, WINDOWS | {"data.strides": 3}], tmp_path)
    with pytest.raises(ValueError, match=r"data\.stride belongs to data\.stream = 'windows'"):
        sweeps.run_sweep(trained, [{}, {"data.stride": 3}], tmp_path)
    with pytest.raises(ValueError, match=r"the point \{'data.stream': 'windows', 'data.segments': 31\}: split 'test' has 123 targets"):
        sweeps.run_sweep(trained, [{}, WINDOWS | {"data.segments": 31}], tmp_path)


def test_samples_continue_the_test_split(runs, tmp_path):
    trained = runs["armt_xl"]
    found = samples.write_samples(trained, tmp_path, count=2, new_tokens=9, temperature=0.8)
    again = samples.write_samples(trained, tmp_path, count=2, new_tokens=9, temperature=0.8)
    assert found == again and (tmp_path / "samples.txt").read_text().count("== the model goes on") == 2
    whole = trained.config.task.corpus.open().tokenizer.decode(trained.config.task.text("test").ids_N)
    for sample in found:
        assert sample["prompt"] + sample["text"] in whole and len(sample["prompt"]) == S * T and len(sample["text"]) == 9
    with pytest.raises(ValueError, match="more than the 124 tokens"):
        samples.prompts(trained, 1, S * T, 500)


def test_samples_are_as_long_as_the_split_allows(runs, tmp_path, caplog):
    trained = runs["none"]
    assert samples.fitted(trained, 12, 112) == (12, 112) and not caplog.text
    assert samples.fitted(trained, 12, 500) == (12, 112)
    assert "prompt of 12 tokens and 500 to follow need more than the 124 tokens of split 'test': written with 12 and 112" in caplog.text
    assert samples.fitted(trained, 100, 60) == (64, 60) and samples.fitted(trained, 200, 300) == (62, 62)
    (found,) = samples.write_samples(trained, tmp_path, count=1, new_tokens=500, temperature=0.0)
    assert len(found["text"]) == 112


def test_ids_that_only_the_model_has_are_shown_as_unknown(runs):
    tokenizer = runs["none"].config.task.corpus.open().tokenizer
    ids = np.array([97, tokenizer.vocab_size, 98, 99, tokenizer.vocab_size + 7])
    assert samples._decoded(tokenizer, ids) == "a\ufffdbc\ufffd" and samples._decoded(tokenizer, ids[2:4]) == "bc"


def test_readings_of_a_run_that_is_evaluated_without_memory(runs, tmp_path, monkeypatch):
    trained = runs["rmt"]
    raw = override(trained.raw, {"evaluation.memory": "off"})
    points = text.default_points(dataclasses.replace(trained, raw=raw, config=resolve(raw)))
    names = [text.describe(text.point_config(raw, point), point) for point in points]
    assert len(set(names)) == len(names) == len(text.default_points(trained))
    monkeypatch.setattr(text, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="two points of the sweep are 'stateful'"):
        sweeps.run_sweep(trained, [WINDOWS, {}, {"evaluation.memory": "on"}], tmp_path)


def test_a_reading_that_is_no_number_is_gone_on_with(runs, tmp_path, monkeypatch):
    trained, read = runs["none"], text.read
    broken = lambda trained, config: (found := read(trained, config))._replace(loss_SxT=found.loss_SxT * np.nan)
    monkeypatch.setattr(text, "read", broken)
    text.run(trained, [{}], tmp_path, "none")
    monkeypatch.setattr(text, "read", lambda *_: pytest.fail("read again"))
    assert len(text.run(trained, [{}], tmp_path, "none")) == 3


# -- devices -----------------------------------------------------------------------------------------------------------------


def test_a_run_of_more_devices_than_are_here(runs, tmp_path, caplog, monkeypatch):
    trained = runs["rmt"]
    shutil.copytree(trained.workdir, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(override(trained.raw, {"mesh": {"data": 2, "tensor": 4}})))
    found = load(tmp_path / "run")
    assert dict(found.mesh.shape) == {"data": 1, "stage": 1, "fsdp": 1, "tensor": 1}
    assert "data=2 * stage=1 * fsdp=1 * tensor=4 needs 8 devices" in caplog.text and "on 1 of 1 devices" in caplog.text
    config = text.point_config(found.raw, {})
    np.testing.assert_array_equal(text.read(found, config).loss_SxT, text.read(trained, trained.config).loss_SxT)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="needs 8 devices"):  # fewer devices would leave a process without any
        mesh_here(found.config)


ON_FOUR_DEVICES = """
import pathlib, sys
import jax
from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.evaluate import load, mesh_for
from armt_jax.parallel.mesh import MeshConfig, make_mesh

trained = load(sys.argv[1])  # of eight devices, with eight rows to evaluate and four whose memory is in the checkpoint
assert trained.mesh.shape["data"] == trained.mesh.size == 4
assert [mesh_for(trained.mesh, n).size for n in (1, 2, 3, 4, 6)] == [1, 2, 3, 4, 3]
split = make_mesh(MeshConfig(fsdp=2, tensor=2))
assert mesh_for(split, 2) is split and mesh_for(split, 9).shape["data"] == mesh_for(split, 9).size == 3
rows = sweeps.run_sweep(trained, [{"evaluation.batch_size": n} for n in (1, 3, 4)], pathlib.Path(sys.argv[2]))
print(*(row["nats_per_token"] for row in rows))
"""


def test_rows_that_do_not_divide_are_read_on_fewer_devices(runs, tmp_path):
    trained = runs["rmt"]
    shutil.copytree(trained.workdir, tmp_path / "run")
    changed = override(trained.raw, {"mesh": {"data": 4, "tensor": 2}, "evaluation.batch_size": 8})
    (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
    environ = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    command = [sys.executable, "-c", ON_FOUR_DEVICES, str(tmp_path / "run"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environ, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "does not divide over mesh axes data=4 * fsdp=1" in done.stderr and "on 1 of 4 devices" in done.stderr
    here = [row["nats_per_token"] for row in sweeps.run_sweep(trained, [{"evaluation.batch_size": n} for n in (1, 3, 4)], tmp_path)]
    np.testing.assert_allclose([float(n) for n in done.stdout.split()], here, rtol=1e-5)


def test_a_text_that_has_moved(runs, corpus, tmp_path):
    (tmp_path / "moved").symlink_to(corpus)
    assert load(runs["none"].workdir, data_path=str(tmp_path / "moved")).config.task.corpus.path == str(tmp_path / "moved")
    other = tmp_path / "other"
    other.mkdir()
    for path in corpus.iterdir():
        (other / path.name).write_text(path.read_text().upper())
    with pytest.raises(ValueError, match="other data or with another tokenizer"):
        load(runs["none"].workdir, data_path=str(other))


def test_an_evaluation_point_may_override_only_known_sections(runs):
    assert resolve(override(runs["none"].raw, {"evaluation.memory": "off"})).evaluation.memory == "off"
    with pytest.raises(ValueError, match="evaluation.memory = 'none' must be one of on, off"):
        resolve(override(runs["none"].raw, {"evaluation.memory": "none"}))
