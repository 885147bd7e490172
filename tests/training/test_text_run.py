"""Runs on a text: what is logged and kept, memory that goes on through restarts and stages, data that must stay the same."""

import json
import pathlib
import random
import runpy
import shutil
from contextlib import nullcontext

import numpy as np
import pytest

from armt_jax.checkpoint import Checkpoints
from armt_jax.config import override, resolve
from armt_jax.data import DataError
from armt_jax.evaluation.evaluate import load
from armt_jax.parallel.mesh import make_mesh
from armt_jax.training import step as steps
from armt_jax.training.loop import Run, train
from armt_jax.training.restore import restore_target
from armt_jax.training.workdir import WorkdirError
from tests.training.runs import metrics, named, programs_shared

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = {
    "seed": 3,
    "backbone": {"name": "transformer_xl", "vocab_size": 256, "num_layers": 1, "width": 16, "num_heads": 2, "kernel_std": None},
    "memory": {"name": "rmt_xl", "num_memory_tokens": 1, "cache_length": 6},
    "recurrence": {"segment_length": 4},
    "data": {"dataset": "text", "tokenizer": "bytes", "stream": "contiguous", "segments": 2},
    "train": {
        "batch_size": 4, "log_every": 5, "validate_every": 4, "validation_batches": 3, "checkpoint_every": 3, "keep_last": 9,
        "tensorboard": False, "optimizer": {"learning_rate": 0.01, "clip": "norm"},
        "stages": [{"steps": 6}, {"steps": 6, "batch_size": 2, "data": {"segments": 3}, "keep_memory": 0.5}],
    },
    "evaluation": {"batch_size": 4, "batches": None},
    "mesh": {"data": 1},
}  # fmt: skip


def write_text(root, seed=0):
    """Documents of a few words; the splits differ."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 5))) for _ in range(30)]
    for split, documents in (("train", 12), ("validation", 3), ("test", 3)):
        (root / split).mkdir(parents=True)
        for i in range(documents):
            (root / split / f"{i:02}.txt").write_text(" ".join(rng.choices(words, k=40)) + "\n")
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return override(CONFIG, {"data.path": str(write_text(folder / "corpus")), "data.cache_dir": str(folder / "cache")})


def restored(workdir, config, step="last"):
    resolved = resolve(config)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(restore_target(resolved, config, make_mesh(resolved.mesh)), step=step)


class Killed(BaseException):
    """Raised where a process is killed."""


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
    with programs_shared():
        yield


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """(workdir of a whole run, workdir of one that ended in both stages before the loop's `after_step`)."""
    folder = tmp_path_factory.mktemp("runs")
    after_step = Run.after_step
    for name, ends in (("whole", [0]), ("parts", [5, 8, 11, 0])):
        for at in ends:

            def patched(run, at=at):
                if run.standing.step == at:
                    run.checkpoints.wait()
                    raise Killed
                after_step(run)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Run, "after_step", patched)
                with pytest.raises(Killed) if at else nullcontext():
                    train(resolve(config), config, folder / name)
    return folder / "whole", folder / "parts"


def test_a_run_in_parts_ends_in_the_same_bits_memory_included(runs, config):
    whole, parts = (restored(workdir, config) for workdir in runs)
    assert whole.step == parts.step == 12 and whole.meta == parts.meta
    expected, found = named(whole.state), named(parts.state)
    carried = [name for name in expected if name.startswith(("carried", "2/"))]
    assert expected.keys() == found.keys() and len(carried) == 4, sorted(expected)
    for name, leaf in expected.items():
        assert leaf.tobytes() == found[name].tobytes(), name
    assert metrics(runs[0]) == metrics(runs[1])


def test_the_memory_belongs_to_the_rows_of_its_stage(runs, config):
    first, last = (restored(runs[0], config, step).state.carried for step in (3, 12))
    assert first.state.tokens.shape[0] == 4 and last.state.tokens.shape[0] == 2
    assert not first.fresh_B.any() and not last.fresh_B.any()
    assert float(first.state.layers.count_B.min()) == 6.0, "the cache is full after a step of 8 tokens"
    evaluated = load(runs[0])
    assert evaluated.step in (10, 12) and evaluated.config.task.segments == 2


def test_what_is_logged_of_a_text(runs, config):
    rows = metrics(runs[0])
    logged, validated = [r for r in rows if "loss" in r], [r for r in rows if "validation_loss" in r]
    assert [row["step"] for row in validated] == [4, 6, 10, 12] and logged
    for row in logged:
        assert row["perplexity"] == pytest.approx(np.exp(row["loss"])) and "exact_match" not in row
        assert row["bits_per_character"] == pytest.approx(row["loss"] / np.log(2))
    for row in validated:
        assert row["validation_perplexity"] == pytest.approx(np.exp(row["validation_loss"])) and "validation_exact_match" not in row


def test_the_best_checkpoint_is_that_of_the_lowest_loss(config, tmp_path, monkeypatch):
    losses = {2: 3.0, 4: 1.0, 6: 2.0}
    monkeypatch.setattr(Run, "validate", lambda run: (None, losses[run.standing.step]))
    changes = {"train.stages": [{"steps": 6}], "train.validate_every": 2, "train.checkpoint_every": 1}
    standing = train(resolve(override(config, changes)), override(config, changes), tmp_path)
    assert standing.best_step == 4 and load(tmp_path).step == 4 and load(tmp_path, "last").step == 6


def test_validation_counts_every_target_of_a_split_once(config, tmp_path, monkeypatch):
    seen = []
    measure = steps.measure
    monkeypatch.setattr(steps, "measure", lambda *args: seen.append(measure(*args)) or seen[-1])
    changes = {"train.stages": [{"steps": 1}], "train.validation_batches": 10**6}
    changed = override(config, changes)
    train(resolve(changed), changed, tmp_path)
    assert [total.weight for total in seen] == [resolve(changed).task.num_targets("validation")]


def test_windows_carry_nothing(config, tmp_path):
    changes = {"data.stream": "windows", "train.stages": [{"steps": 2}]}
    changed = override(config, changes)
    train(resolve(changed), changed, tmp_path)
    assert restored(tmp_path, changed).state.carried is None
    changed = override(changed, {"train.stages": [{"steps": 2, "keep_memory": 0.5}]})
    with pytest.raises(ValueError, match=r"train\.stages\[0\]\.keep_memory = 0\.5 needs rows that go on.*'contiguous', not 'windows'"):
        train(resolve(changed), changed, tmp_path / "kept")


def test_a_share_of_rows_goes_on(config, tmp_path):
    """None: all of them. The first batch starts empty whatever the share is."""

    def losses(name, **stage):
        changed = override(config, {"train.stages": [{"steps": 2} | stage], "train.log_every": 1})
        train(resolve(changed), changed, tmp_path / name)
        return [row["loss"] for row in metrics(tmp_path / name) if "loss" in row]

    every, none, most = losses("every"), losses("none", keep_memory=0.0), losses("most", keep_memory=0.999)
    assert every[0] == none[0] and every[1] != none[1] and every == most
    changed = override(config, {"train.stages": [{"steps": 2, "keep_memory": 0.0}], "train.log_every": 1})
    assert restored(tmp_path / "none", changed, "last").state.carried is not None


def test_memory_resets_where_documents_begin(config, tmp_path):
    changes = {"data.resets_at": "documents", "train.stages": [{"steps": 16}], "train.accumulate": 2}
    changed = override(config, changes)
    train(resolve(changed), changed, tmp_path / "resets")
    other = override(changed, {"data.resets_at": "never"})
    train(resolve(other), other, tmp_path / "never")
    first, second = (metrics(tmp_path / name)[-1]["validation_loss"] for name in ("resets", "never"))
    assert first != second and abs(first - second) < 1


def test_a_run_goes_on_with_the_data_it_began_with(config, tmp_path):
    one = override(config, {"train.stages": [{"steps": 3}]})
    train(resolve(one), one, tmp_path / "run")
    kept = type(resolve(one).task.tokenizer).load(tmp_path / "run" / "tokenizer")
    assert kept.fingerprint == resolve(one).task.tokenizer.fingerprint, "the run has its tokenizer with it"
    moved = tmp_path / "moved"
    shutil.copytree(one["data"]["path"], moved)
    there = override(one, {"data.path": str(moved)})
    assert train(resolve(there), there, tmp_path / "run").step == 3, "the same data elsewhere is the same data"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["path"] == str(moved)
    other = override(one, {"data.path": str(write_text(tmp_path / "other", seed=1))})
    with pytest.raises(DataError) as error:
        train(resolve(other), other, tmp_path / "run")
    fingerprints = {resolve(each).task.fingerprint for each in (one, other)}
    assert all(fingerprint in str(error.value) for fingerprint in fingerprints) and len(fingerprints) == 2
    with pytest.raises(WorkdirError, match=r"data\.segments: 2 there, 3 now"):
        again = override(one, {"data.segments": 3})
        train(resolve(again), again, tmp_path / "run")


@pytest.mark.parametrize(("name", "folder"), [("enwik8_armt_xl", "enwik8"), ("wikitext2_rmt", "wikitext-2")])
def test_the_shipped_configs_run_on_real_text(real_data, name, folder, tmp_path):
    changes = {"data.path": str(real_data / folder), "data.cache_dir": str(tmp_path / "cache"), "train.max_stage_steps": 3}
    changes |= {"train.validation_batches": 1, "train.optimizer.warmup_steps": 1, "train.log_every": 1}
    raw = override(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](), changes)
    assert train(resolve(raw), raw, tmp_path / "run").step == 3
    first, *_, last = (row["loss"] for row in metrics(tmp_path / "run") if "loss" in row)
    assert last < first
