"""The points of a sweep: which stand together, which are one, which are refused."""

import dataclasses
import pathlib

import pytest

from armt_jax.config import override, resolve
from armt_jax.data import DataError
from armt_jax.evaluation import babilong, babilong_report
from armt_jax.evaluation import sweep as sweeps
from armt_jax.evaluation.evaluate import load
from armt_jax.telemetry.jsonl import read_lines

ROOT = pathlib.Path(__file__).parents[3]


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
        [{"evaluation.lengths": 300}, {"evaluation.lengths": 300, "evaluation.new_tokens": 12}],
        [{"evaluation.lengths": (300, 400)}, {"evaluation.lengths": 400}],
    ):
        with pytest.raises(ValueError, match="two points of the sweep are of qa1, [34]00 tokens"):
            sweeps.run_sweep(trained, points, tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
    apart = [{"evaluation.lengths": 300, "evaluation.samples": 1, "task.question": question} for question in ("running", "apart")]
    rows = sweeps.run_sweep(trained, apart, tmp_path)
    assert [row["question"] for row in rows] == ["running", "apart"] and "question apart" in (tmp_path / "table.md").read_text()


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
    for changed in ({"task.question": "apart"}, {"evaluation.new_tokens": 11}, {"evaluation.memory": "off"}, {"task.max_facts": 3}):
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


def test_a_run_that_made_questions_up_is_asked_about_another_task(trained, tmp_path):
    raw = override(trained.raw, {"task.questions": 3, "task.peeks": 2, "train.stages": [{"steps": 2, "task": {"segments": 6}}]})
    made = dataclasses.replace(trained, raw=raw, config=resolve(raw))
    (row,) = sweeps.run_sweep(made, [{"task.task": "qa4", "evaluation.lengths": 300, "evaluation.samples": 2}], tmp_path)
    assert row["task"] == "qa4" and row["samples"] == 2


def test_answers_longer_than_what_is_generated_are_refused_before_anything_runs(trained, tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.new_tokens=8 is too few for the answer 'bathroom'.*give at least 9"):
        sweeps.run_sweep(trained, [{"evaluation.lengths": 300, "evaluation.samples": 40, "evaluation.new_tokens": 8}], tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()


def test_two_evaluations_at_once_keep_each_others_results(trained, tmp_path, monkeypatch):
    short, long = ({"evaluation.lengths": length, "evaluation.samples": 2} for length in (300, 400))
    run_pass = babilong.run_pass

    def meanwhile(*args):
        monkeypatch.setattr(babilong, "run_pass", run_pass)
        sweeps.run_sweep(trained, [long], tmp_path)
        return run_pass(*args)

    monkeypatch.setattr(babilong, "run_pass", meanwhile)
    sweeps.run_sweep(trained, [short], tmp_path)
    assert [row["length"] for row in read_lines(tmp_path / "results.jsonl")] == [300, 400]
    assert "| 300 | 400 |" in (tmp_path / "table.md").read_text()
