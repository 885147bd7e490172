"""A value of the wrong type is refused by its key."""

import pytest

from armt_jax.config import override, resolve
from tests.config.small import SMALL, changed, refuses


@pytest.mark.parametrize(
    ("key", "value", "must_be"),
    [
        ("seed", "abc", "int"),
        ("backbone.width", "16", "int"),
        ("backbone.dropout", "0.1", "float"),
        ("backbone.tie_embeddings", 1, "bool"),
        ("backbone.width", True, "int"),
        ("memory.d_mem", 4.0, "int"),
        ("recurrence.segment_length", 4.5, "int"),
        ("recurrence.bptt_segments", "2", "int or None"),
        ("task.mode", 3, "str"),
        ("train.batch_size", "abc", "int"),
        ("train.keep_optimizer", "yes", "bool"),
        ("train.optimizer.learning_rate", "1e-3", "float"),
        ("evaluation.batches", None, "int"),
        ("mesh.data", "8", "int"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key, value, must_be):
    refuses(override(SMALL, {key: value}), f"{key} = {value!r}", must_be)


def test_a_wrong_type_in_a_stage_is_refused():
    refuses(changed(train__stages=[{"steps": 4.0}]), "train.stages[0].steps = 4.0", "int")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "gpt2"),
        ("memory", None),
        ("task", 4),
        ("train", 3),
        ("evaluation", None),
        ("mesh", [8]),
        ("train.optimizer", None),
        ("train.stages", {"steps": 3}),
        ("train.stages", [100]),
        ("train.stages", [{"steps": 3, "task": None}]),
    ],
)
def test_what_must_be_a_section_and_is_none_is_refused_by_name(key, value):
    refuses(override(SMALL, {key: value}), "config: ", key)


@pytest.mark.parametrize("none", ["recurrence.bptt_segments", "backbone.mlp_width", "train.optimizer.decay_steps", "task.num_keys"])
def test_none_is_a_value_where_it_is_declared(none):
    resolve(override(SMALL, {none: None}))


def test_an_integer_is_a_float():
    assert resolve(changed(train__optimizer__learning_rate=1)).train.optimizer.learning_rate == 1
