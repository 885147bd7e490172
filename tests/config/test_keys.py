"""A section, key or name that is unknown or missing is named, with a suggestion."""

import pytest

from armt_jax.config import override
from tests.config.small import SMALL, changed, refuses, without


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("backbone.widht", "width"),
        ("memory.num_memory_token", "num_memory_tokens"),
        ("recurrence.segment_lenght", "segment_length"),
        ("task.pears", "pairs"),
        ("train.log_ever", "log_every"),
        ("train.optimizer.learning_rat", "learning_rate"),
        ("evaluation.batchs", "batches"),
        ("mesh.fsdpp", "fsdp"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(key, meant):
    refuses(override(SMALL, {key: 1}), key, f"did you mean {meant!r}?")


def test_an_unknown_key_of_a_stage_is_named_with_its_stage():
    refuses(changed(train__stages=[{"steps": 1}, {"stops": 1, "steps": 1}]), "train.stages[1].stops", "did you mean 'steps'?")
    refuses(changed(train__stages=[{"steps": 1}, {"steps": 1, "task": {"pears": 1}}]), "train.stages[1].task.pears", "'pairs'")


def test_an_unknown_section_is_named_with_a_suggestion():
    refuses(SMALL | {"trian": {}}, "unknown section trian", "did you mean 'train'?")
    refuses(SMALL | {"zzz": {}}, "unknown section zzz", "backbone", "evaluation")


@pytest.mark.parametrize(
    ("key", "name", "known"),
    [("backbone.name", "gpt3", "gpt2"), ("memory.name", "armd", "armt"), ("task.name", "copi", "copy"), ("backbone.name", "zzz", "llama")],
)
def test_an_unknown_name_is_listed_against_the_known(key, name, known):
    refuses(override(SMALL, {key: name}), f"{key} = {name!r}", known)


@pytest.mark.parametrize("section", ["backbone", "task", "train"])
def test_a_missing_section_is_named(section):
    refuses(without(section), f"section {section} is missing")


def test_a_missing_key_is_named():
    fields = {name: value for name, value in SMALL["task"].items() if name != "pairs"}
    refuses(SMALL | {"task": fields}, "task.pairs is missing")
    refuses(changed(train__stages=[{"steps": 1}, {"stop_at": 0.5}]), "train.stages[1].steps is missing")
    refuses(SMALL | {"memory": {"d_mem": 4}}, "memory.name = None")
    refuses(SMALL | {"train": {"batch_size": 4}}, "train.stages is empty")
