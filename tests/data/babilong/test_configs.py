"""The shipped configs on a small text: every stage as a program, without running it."""

import dataclasses
import importlib.util
import pathlib

import jax
import pytest

from armt_jax.config import override, plain, resolve, resolve_backbone, resolve_memory
from armt_jax.model import ModelConfig
from armt_jax.parallel.mesh import make_mesh
from armt_jax.training import step as steps
from armt_jax.training.optimizer import make_optimizer

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


def shipped(name, variant):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return plain(module.get_config(variant))


@pytest.fixture
def resolved(write_books, make_book):
    books = {f"{number}.txt": make_book(who, 200) for number, who in enumerate(("Anna", "Boris", "Vera", "Tom"))}
    background = write_books(books, "sentencepiece", vocab_size=400)
    changes = {f"task.background.{name}": getattr(background, name) for name in ("path", "cache_dir", "vocab_size")}
    return lambda raw: resolve(override(raw, changes | {"mesh": {"data": 1}}))


@pytest.mark.parametrize("variant", ["armt", "rmt", "none"])
@pytest.mark.parametrize("name", ["babilong_qa1_cpu", "babilong_qa1_h200"])
def test_every_stage_is_a_program(resolved, name, variant):
    config = resolved(shipped(name, variant))
    mesh, traced = make_mesh(config.mesh), set()
    for i, (stage, source, model) in enumerate(zip(config.train.stages, config.tasks, config.models, strict=True)):
        rows, carries = config.train.batch_of(stage), config.carries_memory(i)
        program = (config.train.optimizer_of(stage), rows, max(source.sizes), source.segment_length, source.num_answers, carries)
        if program in traced:
            continue
        traced.add(program)
        optimizer = make_optimizer(config.train.optimizer_of(stage), stage.steps)
        state = steps.abstract_state(model, optimizer, mesh, rows if carries else None)
        one = dataclasses.replace(source, segments=max(source.sizes)).batch(0, 0, 1)
        batch = jax.tree.map(lambda leaf, rows=rows: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), one)
        step = steps.make_train_step(model, optimizer, mesh, num_answers=source.num_answers, accumulate=1, carries=carries)
        after, metrics = jax.eval_shape(step, state, batch, jax.eval_shape(lambda: jax.random.key(0)))
        kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        assert kinds(after) == kinds(state) and metrics.loss.shape == ()
    assert len(traced) > 4


@pytest.mark.parametrize("name", ["babilong_qa1_cpu", "babilong_qa1_h200"])
def test_the_curriculum(resolved, name):
    """A segment for each fact, which opens it, then stands anywhere in it, then shares it; then running text. Facts become more, and
    segments longer; the last stage keeps memories, decays what is not needed, and shuts the gates at text."""
    config = resolved(shipped(name, "armt"))
    order = ("apart", "alone", "whole", "running")
    places = [order.index(source.facts) for source in config.tasks]
    assert places == sorted(places) and set(places) == {0, 1, 2, 3}
    counts = [source.max_facts or 99 for source in config.tasks]
    assert counts == sorted(counts) and counts[0] == 2 and counts[-1] == 99
    assert all(source.generate == (source.max_facts is not None) for source in config.tasks), "files have few stories of few facts"
    lengths, costs = [source.segment_length for source in config.tasks], [model.memory.write_cost for model in config.models]
    assert lengths == sorted(lengths) and all(stage.stop_at or stage.keep_memory for stage in config.train.stages)
    assert costs == sorted(costs) and costs[0] == 0 and costs[-1] == 30 * costs[places.index(3)] > 0
    last, memory = config.train.stages[-1], config.model.memory
    assert last.keep_memory == 0.8 and config.carries_memory(len(lengths) - 1)
    assert last.weight_decay > 0 and last.schedule == "cosine"
    assert memory.like_writes == "share" and memory.beta_max == 1 and 0 < memory.first_layer < config.model.backbone.num_layers
    assert all(source.peeks == (8 if source.facts == "running" else 0) for source in config.tasks)
    named = [source.named_every is not None for source in config.tasks]
    assert named == sorted(named) and named[-1]
    assert not any(named[: places.index(3) + 1]), "too early they keep a model from learning what it is there for"


def test_the_checkpoint_of_one_h200_is_small_enough_to_keep():
    raw = shipped("babilong_qa1_h200", "armt")
    model = ModelConfig(resolve_backbone(raw["backbone"]), resolve_memory(raw["memory"]))
    params = jax.tree.leaves(steps.abstract_model(model)[1])
    assert 2 * sum(leaf.size for leaf in params) <= 14e6, "bytes in bfloat16"


def test_the_published_recipe_starts_from_a_checkpoint_if_told():
    raw = shipped("babilong", "armt")
    assert raw["init"] == {"path": None}
    assert override(raw, {"init.path": "/gpt2"})["init"] == {"path": "/gpt2"}
