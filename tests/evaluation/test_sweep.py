"""Evaluating a trained run: the numbers of a plain loop, nothing computed twice, no sweep started that cannot end."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from armt_jax.checkpoint import CheckpointError, Checkpoints
from armt_jax.config import override, plain, resolve
from armt_jax.evaluation import evaluate, report, task
from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.evaluate import load
from armt_jax.evaluation.shares import MERGE, Share
from armt_jax.parallel.mesh import make_mesh
from armt_jax.training import step as steps
from armt_jax.training.optimizer import make_optimizer
from armt_jax.training.step import TrainState
from armt_jax.training.workdir import WorkdirError, claim

CONFIG = plain(
    {
        "seed": 3,
        "backbone": {"name": "gpt2", "vocab_size": 128, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 16},
        "memory": {"name": "armt", "num_memory_tokens": 1, "d_mem": 4},
        "recurrence": {"segment_length": 4},
        "task": {"name": "associative_retrieval", "mode": "remember", "pairs": 2, "num_keys": 4, "queries": 2},
        "train": {"batch_size": 4, "stages": [{"steps": 8}, {"steps": 8, "task": {"pairs": 3}}]},
        "evaluation": {"batch_size": 4, "batches": 3},
        "mesh": {"data": 1},
    }
)
POINTS = [{"task.pairs": pairs} for pairs in (2, 4, 3)]


def write_checkpoints(workdir, config, ranks):
    """A run's folder with a checkpoint per {step: rank}, whose parameters differ."""
    workdir.mkdir(parents=True, exist_ok=True)
    claim(workdir, config)
    resolved = resolve(config)
    mesh = make_mesh(resolved.mesh)
    params = steps.create_params(resolved.model, resolved.seed, mesh)
    opt_state = make_optimizer(resolved.train.optimizer, 1).init(params)
    with Checkpoints(workdir / "checkpoints", keep_last=9) as checkpoints:
        for step, rank in ranks.items():
            moved = jax.tree.map(lambda leaf, step=step: leaf * (1 + step / 100), params)
            checkpoints.save(step, TrainState(moved, opt_state), {"standing": {}, "config": config}, rank=rank)
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_checkpoints(tmp_path_factory.mktemp("sweep") / "run", CONFIG, {4: 0.1, 8: 0.9, 12: 0.2})


@pytest.fixture(scope="module")
def trained(workdir):
    return load(workdir)


class Evaluations:
    """Stands in for `evaluate`, and keeps what it was asked for."""

    def __init__(self, monkeypatch):
        self.sizes, self.fail_at = [], None
        monkeypatch.setattr(task, "evaluate", self)

    def __call__(self, trained, model, task, *, batch_size, batches, memory):
        if task.size == self.fail_at:
            raise KeyboardInterrupt
        self.sizes.append(task.size)
        return {"exact_match": 1 / task.size, "loss": float(task.size + trained.step), "answers": batch_size * batches}


@pytest.fixture
def evaluations(monkeypatch):
    return Evaluations(monkeypatch)


# -- what is evaluated -------------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_evaluated_unless_another_is_asked_for(workdir, trained):
    assert trained.step == 8 and load(workdir, "last").step == 12 and load(workdir, 4).step == 4
    tables = {step: np.asarray(load(workdir, step).params["embed"]["table"][...]) for step in (4, 8)}
    np.testing.assert_array_equal(tables[8], trained.params["embed"]["table"][...])
    np.testing.assert_allclose(tables[8] / 1.08, tables[4] / 1.04, rtol=1e-6)
    assert trained.trained_to == 3 and trained.raw == CONFIG and trained.workdir == workdir


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(WorkdirError, match=f"{tmp_path} is not a run's workdir"):
        load(tmp_path)
    claim(tmp_path, CONFIG)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load(tmp_path)


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(workdir):
    with pytest.raises(CheckpointError, match=r"5.*\[4, 8, 12\]"):
        load(workdir, 5)


def test_a_sweep_gives_what_a_plain_loop_gives(trained, tmp_path):
    points = [{"task.pairs": 2}, {"task.pairs": 4, "evaluation.batches": 1}, {"task.pairs": 3, "recurrence.schedule": "diagonal"}]
    rows = sweeps.run_sweep(trained, points, tmp_path)
    graphdef, _ = steps.abstract_model(trained.config.model)
    losses = jax.jit(lambda batch: nnx.merge(graphdef, trained.params).losses(batch.tokens_BxN, batch.targets_BxN, batch.weights_BxN))
    for row, (pairs, batches) in zip(rows, [(2, 3), (4, 1), (3, 3)], strict=True):
        task = dataclasses.replace(trained.config.task, pairs=pairs)
        loss = weight = right = 0.0
        for i in range(batches):
            batch = task.batch(3, i, 4, "test")
            out = losses(batch)
            loss, weight = loss + float(out.loss_S.sum()), weight + float(batch.weights_BxN.sum())
            for correct, answers in zip(np.asarray(out.correct_BxN), batch.answers_BxN, strict=True):
                right += sum(correct[answers == query].all() for query in (1, 2))
        assert (row["pairs"], row["answers"], row["exact_match"]) == (pairs, batches * 4 * 2, right / (batches * 4 * 2))
        np.testing.assert_allclose(row["loss"], loss / weight, rtol=1e-5)
    assert len({row["loss"] for row in rows}) == 3


def test_a_row_says_where_it_comes_from(trained, tmp_path, evaluations):
    rows = sweeps.run_sweep(trained, POINTS, tmp_path)
    assert [row["pairs"] for row in rows] == [2, 4, 3] == evaluations.sizes, "in the order of the sweep"
    first = {"label": "armt", "pairs": 2, "exact_match": 0.5, "loss": 10.0, "answers": 12, "seed": 3, "step": 8}
    assert rows[0] == first | {"overrides": '{"task.pairs": 2}', "id": rows[0]["id"]}
    assert {row["label"] for row in sweeps.run_sweep(trained, POINTS, tmp_path / "other", "mine")} == {"mine"}


# -- a sweep that was stopped --------------------------------------------------------------------------------------------------


def test_a_sweep_that_is_done_is_not_done_again(trained, tmp_path, evaluations):
    first = sweeps.run_sweep(trained, POINTS, tmp_path)
    assert sweeps.run_sweep(trained, POINTS, tmp_path) == first and evaluations.sizes == [2, 4, 3]
    assert sweeps.run_sweep(trained, POINTS[::-1], tmp_path) == first[::-1] and evaluations.sizes == [2, 4, 3]


def test_a_stopped_sweep_goes_on_where_it_was(trained, tmp_path, evaluations):
    evaluations.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(trained, POINTS, tmp_path)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2, "each row is on disk as soon as it is known"
    evaluations.fail_at, evaluations.sizes = None, []
    rows = sweeps.run_sweep(trained, POINTS, tmp_path)
    assert evaluations.sizes == [3] and [row["pairs"] for row in rows] == [2, 4, 3]


@pytest.mark.parametrize("left", ["nothing", "half", "all but the newline"])
def test_a_cut_off_result_is_computed_again(trained, tmp_path, evaluations, left):
    rows = sweeps.run_sweep(trained, POINTS, tmp_path)
    path = tmp_path / "results.jsonl"
    *whole, last = path.read_text().splitlines(keepends=True)
    cut = {"nothing": "", "half": last[: len(last) // 2], "all but the newline": last[:-1]}[left]
    path.write_text("".join(whole) + cut)
    evaluations.sizes = []
    assert sweeps.run_sweep(trained, POINTS, tmp_path) == rows
    assert evaluations.sizes == ([] if left == "all but the newline" else [3])
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_a_point_more_costs_one_evaluation(trained, tmp_path, evaluations):
    sweeps.run_sweep(trained, POINTS[:2], tmp_path)
    rows = sweeps.run_sweep(trained, POINTS, tmp_path)
    assert evaluations.sizes == [2, 4, 3] and len(rows) == 3


def test_another_sweep_in_the_same_folder_loses_nothing(trained, tmp_path, evaluations):
    first = sweeps.run_sweep(trained, POINTS[:2], tmp_path)
    assert not (tmp_path / "results.earlier.jsonl").exists()
    others = [{"task.pairs": 2, "evaluation.batches": 1}, *POINTS[2:]]
    second = sweeps.run_sweep(trained, others, tmp_path)
    assert report.read_results(tmp_path / "results.jsonl") == second, "readers of the results find one evaluation"
    assert report.read_results(tmp_path / "results.earlier.jsonl") == first
    assert sweeps.run_sweep(trained, POINTS[:2], tmp_path) == first == report.read_results(tmp_path / "results.jsonl")
    assert sweeps.run_sweep(trained, others, tmp_path) == second and evaluations.sizes == [2, 4, 2, 3], "nothing is evaluated again"
    kept = report.read_results(tmp_path / "results.earlier.jsonl")
    assert sorted(row["id"] for row in kept) == sorted(row["id"] for row in (*first, *second)), "each once"


def test_the_mesh_of_every_point_is_settled_before_the_first_is_evaluated(trained, tmp_path, evaluations, monkeypatch):
    """So that rows which do not divide over it are known at once (tests/evaluation/test_text.py has the devices)."""
    asked, mesh_for = [], task.mesh_for
    monkeypatch.setattr(task, "mesh_for", lambda mesh, rows: asked.append((rows, list(evaluations.sizes))) or mesh_for(mesh, rows))
    sweeps.run_sweep(trained, [POINTS[0], POINTS[1] | {"evaluation.batch_size": 3}], tmp_path)
    assert asked == [(3, []), (4, [])] and evaluations.sizes == [2, 4]


def test_another_checkpoint_has_other_results(tmp_path, evaluations):
    workdir = write_checkpoints(tmp_path / "run", CONFIG, {4: 0.1})
    sweeps.run_sweep(load(workdir), POINTS, tmp_path / "out")
    write_checkpoints(workdir, CONFIG, {8: 0.9})
    rows = sweeps.run_sweep(load(workdir), POINTS, tmp_path / "out")
    assert evaluations.sizes == [2, 4, 3] * 2 and {row["step"] for row in rows} == {8}
    assert [row["loss"] for row in rows] == [10.0, 12.0, 11.0]
    assert report.read_results(tmp_path / "out" / "results.jsonl") == rows


def test_what_a_result_is_known_by(trained):
    name = evaluate.identity(trained, {"task.pairs": 2})
    assert name == evaluate.identity(trained, {"task.pairs": 2}) and len(name) == 16
    others = [
        evaluate.identity(trained, {"task.pairs": 3}),
        evaluate.identity(trained, {"task.pairs": 2, "task.num_keys": 4}),
        evaluate.identity(dataclasses.replace(trained, step=9), {"task.pairs": 2}),
        evaluate.identity(dataclasses.replace(trained, raw=override(CONFIG, {"seed": 4})), {"task.pairs": 2}),
    ]
    assert len({name, *others}) == 5


# -- mistakes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ({"task.pears": 4}, r"task\.pears \(did you mean 'pairs'\?\)"),
        ({"task.pairs": "4"}, "pairs='4'"),
        ({"task.pairs": 5}, "pairs=5 is more than the 4 keys"),
        ({"tsak.pairs": 4}, "did you mean 'task'"),
        ({"recurrence.segment_length": 16}, "max_positions = 16"),
        ({"task.pairs": 2, "task.num_keys": 3}, "pairs = 2"),
    ],
)
def test_a_mistake_in_the_last_point_is_found_before_the_first_is_evaluated(trained, tmp_path, evaluations, point, said):
    with pytest.raises(ValueError, match=said):
        sweeps.run_sweep(trained, [*POINTS, point], tmp_path)
    assert evaluations.sizes == [] and not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "defines no get_sweep"),
        ("def get_sweep(): return []", "is empty"),
        ("def get_sweep(): return ['task.pairs']", "'task.pairs' is not a dict"),
        ("def get_sweep(): return [{'task.pairs': 2}, {'memory.d_mem': 8}]", r"memory\.d_mem cannot be changed after training"),
        ("def get_sweep(): return [{'backbone.width': 8}]", r"backbone\.width cannot be changed"),
    ],
)
def test_a_sweep_file_that_cannot_be_used(tmp_path, text, said):
    path = tmp_path / "x.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        sweeps.read_sweep(path)
    assert str(path) in str(error.value)


def test_a_sweep_file(tmp_path):
    path = tmp_path / "x.py"
    with pytest.raises(ValueError, match=f"{path} does not exist"):
        sweeps.read_sweep(path)
    path.write_text("def get_sweep():\n    return ({'task.pairs': p, 'recurrence.gradient': 'store'} for p in (2, 3))\n")
    longer = tmp_path / "longer.py"
    longer.write_text("def get_sweep(): return [{'memory.cache_length': 640, 'memory.same_length': True, 'backbone.clamp_len': 400}]")
    assert list(sweeps.read_sweep(longer)[0].values()) == [640, True, 400]
    assert sweeps.read_sweep(path) == [{"task.pairs": 2, "recurrence.gradient": "store"}, {"task.pairs": 3, "recurrence.gradient": "store"}]


# -- files and tables ------------------------------------------------------------------------------------------------------------


def test_the_files(trained, tmp_path, evaluations):
    rows = sweeps.run_sweep(trained, POINTS, tmp_path / "a" / "b")
    names = sorted(path.name for path in (tmp_path / "a" / "b").iterdir())
    assert names == ["results.csv", "results.jsonl", "results.png"]
    with open(tmp_path / "a" / "b" / "results.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["label"], int(row["pairs"]), float(row["exact_match"])) for row in read] == [
        ("armt", 2, 1 / 2), ("armt", 4, 1 / 4), ("armt", 3, 1 / 3)
    ]  # fmt: skip
    assert list(read[0]) == list(rows[0]) and (tmp_path / "a" / "b" / "results.png").read_bytes().startswith(b"\x89PNG")
    assert [json.loads(line) for line in (tmp_path / "a" / "b" / "results.jsonl").read_text().splitlines()] == rows


def test_the_table():
    results = {
        "armt": [{"pairs": 16, "exact_match": 1.0}, {"pairs": 2, "exact_match": 0.98765}],
        "none": [{"pairs": 2, "exact_match": 0.0625}, {"pairs": 500, "exact_match": 0.05}],
    }
    assert task.table(results, "pairs").splitlines() == [
        "pairs  2      16     500",
        "-----  -----  -----  -----",
        "armt   0.988  1.000  -",
        "none   0.062  -      0.050",
    ]


def test_several_runs_in_one_file(trained, tmp_path, evaluations):
    results = {label: sweeps.run_sweep(trained, POINTS, tmp_path / label, label) for label in ("armt", "rmt")}
    task.compare(results, tmp_path, trained)
    rows = report.read_results(tmp_path / "results.jsonl")
    assert [(row["label"], row["pairs"]) for row in rows] == [(label, pairs) for label in ("armt", "rmt") for pairs in (2, 4, 3)]
    assert (tmp_path / "results.png").stat().st_size > 1000 and (tmp_path / "results.csv").read_text().count("\n") == 7


def test_the_title(trained):
    assert task.title(trained) == "Associative retrieval, remember: beyond the trained size"


# -- shares ----------------------------------------------------------------------------------------------------------------


def test_shares_take_every_point_once_and_the_last_one_reports(trained, tmp_path, evaluations):
    whole = sweeps.run_sweep(trained, POINTS, tmp_path / "whole")
    evaluations.sizes.clear()
    directory = tmp_path / "shared"
    assert sweeps.run_sweep(trained, POINTS, directory, share=Share.parse("1/2")) is None
    assert evaluations.sizes == [4] and [path.name for path in directory.iterdir()] == ["results.share-1-of-2.jsonl"]
    with pytest.raises(ValueError, match=r"2 of the 3 points .* \[0, 2\].*--merge"):
        sweeps.run_sweep(trained, POINTS, directory, share=MERGE)
    assert sweeps.run_sweep(trained, POINTS, directory, share=Share.parse("0/2")) == whole
    assert evaluations.sizes == [4, 2, 3]
    for name in ("results.csv", "results.jsonl"):
        assert (directory / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert (directory / "results.png").stat().st_size


def test_a_stopped_share_goes_on_in_any_other_number_of_shares(trained, tmp_path, evaluations):
    evaluations.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(trained, POINTS, tmp_path, share=Share(0, 2))
    evaluations.fail_at = None
    assert sweeps.run_sweep(trained, POINTS, tmp_path, share=Share(2, 4)) is None
    assert sweeps.run_sweep(trained, POINTS, tmp_path, share=Share(3, 4)) is None
    rows = sweeps.run_sweep(trained, POINTS, tmp_path)
    assert [row["pairs"] for row in rows] == [2, 4, 3] and evaluations.sizes == [2, 3, 4]
    assert sweeps.run_sweep(trained, POINTS, tmp_path, share=MERGE) == rows


@pytest.mark.parametrize("text", ["2", "2/2", "a/b", "-1/2", "0/0", "1/2/3"])
def test_a_share_that_is_none(text):
    with pytest.raises(ValueError, match="I/N"):
        Share.parse(text)
