"""A text in place of a task."""

import pytest

from armt_jax.config import override, resolve, resolve_without_data
from armt_jax.data import ContiguousStreams, DataError, Windows
from tests.config.small import SMALL, changed, refuses, without


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A config of a text."""
    folder = tmp_path_factory.mktemp("text")
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text("some words and some more\n" * 40)
    data = {"dataset": "text", "path": str(folder), "tokenizer": "bytes", "segments": 3, "cache_dir": str(folder / "cache")}
    train = {"batch_size": 4, "stages": [{"steps": 8}, {"steps": 6, "data": {"segments": 5}}]}
    backbone = SMALL["backbone"] | {"vocab_size": 256}
    return without("task") | {"data": data, "backbone": backbone, "train": train, "evaluation": {"batches": None}}


def test_a_text_stands_where_a_task_does(text):
    config = resolve(text)
    assert isinstance(config.task, ContiguousStreams) and config.task.corpus.name == "text" and config.task.corpus.tokenizer == "bytes"
    assert (config.task.segments, config.task.segment_length, config.model.recurrence.segment_length) == (3, 4, 4)
    assert [task.segments for task in config.tasks] == [3, 5] and config.evaluation.batches is None
    windows = resolve(override(text, {"data.stream": "windows", "data.stride": 2, "data.loss": "window"})).task
    assert windows == Windows(config.task.corpus, 4, 3, stride=2, loss="window")


def test_a_text_brings_its_segment_length(text):
    config = {name: value for name, value in text.items() if name != "recurrence"} | {"backbone": text["backbone"] | {"max_positions": 256}}
    assert resolve(config).model.recurrence.segment_length == 128 == resolve(config).task.segment_length
    config = override(config, {"data.segment_length": 8})
    assert resolve(config).model.recurrence.segment_length == 8 == resolve(config).tasks[1].segment_length
    both = override(text, {"data.segment_length": 8})
    refuses(both, "data.segment_length = 8", "recurrence.segment_length = 4")
    assert resolve(override(text, {"data.segment_length": 4})).task.segment_length == 4


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"data.pth": "x"}, ("unknown key data.pth", "did you mean 'path'?")),
        ({"data.segment": 2}, ("unknown key data.segment", "'segments'")),
        ({"data.dataset": "enwik9"}, ("enwik9", "did you mean 'enwik8'?")),
        ({"data.stream": "contigous"}, ("data.stream = 'contigous'", "did you mean 'contiguous'?")),
        ({"data.tokenizer": "byte"}, ("tokenizer='byte'", "'bytes'")),
        ({"data.stride": 2}, ("data.stride belongs to data.stream = 'windows', not to 'contiguous'",)),
        ({"data.segments": "3"}, ("data.segments = '3' must be int",)),
        ({"data.path": 3}, ("data.path = 3 must be str or None",)),
        ({"data.resets_at": "page"}, ("resets_at='page'",)),
        ({"data.segments": 1000}, ("data.segments = 1000 segments of 4 tokens", "999 targets", "'train'")),
        ({"data.splits": ["train"]}, ("data.splits = ('train',) lacks 'validation'",)),
        ({"backbone.vocab_size": 255}, ("data needs a vocabulary of 256", "backbone.vocab_size = 255")),
        ({"train.stages": [{"steps": 1, "stop_at": 0.5}]}, ("train.stages[0].stop_at = 0.5", "patience")),
        ({"train.stages": [{"steps": 1, "data": {"path": "y"}}]}, ("train.stages[0].data.path = 'y'", "set data.path")),
        ({"train.stages": [{"steps": 1, "data": {"sgments": 2}}]}, ("train.stages[0].data.sgments", "'segments'")),
        ({"train.stages": [{"steps": 1, "task": {"pairs": 2}}]}, ("train.stages[0].task",)),
        ({"mesh.data": 3}, ("a batch of 4 rows (train.stages[0])", "mesh.data * mesh.fsdp = 3", "multiple of 3")),
        ({"mesh.data": 2, "train.accumulate": 4}, ("train.accumulate = 4", "multiple of 8")),
        ({"evaluation.split": "train"}, ("evaluation.split = 'train'", "test")),
        ({"evaluation.batches": 0}, ("evaluation.batches = 0",)),
    ],
)
def test_what_does_not_fit_a_text_is_named(text, changes, parts):
    refuses(override(text, changes), *parts)


def test_a_run_has_a_task_or_a_text(text):
    refuses(text | {"task": SMALL["task"]}, "both sections task and data")
    refuses({name: value for name, value in text.items() if name != "data"}, "section task is missing, and so is data")
    refuses(changed(evaluation__batches=None), "evaluation.batches = None", "associative_retrieval")
    refuses(changed(evaluation__split="validation"), "evaluation.split = 'validation'")
    no_dataset = {name: value for name, value in text["data"].items() if name != "dataset"}
    refuses(text | {"data": no_dataset}, "data.dataset is missing", "enwik8")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"data.path": None}, ("data.path is not set", "train/*.txt")),
        ({"data.path": "/no/such/folder"}, ("/no/such/folder does not exist", "validation/*.txt")),
        ({"data.dataset": "wikitext103"}, ("wiki.train.tokens", "wiki.valid.tokens", "missing")),
        ({"data.dataset": "enwik8"}, ("enwik8", "100,000,000 bytes")),
        ({"data.tokenizer": "gpt2"}, ("tokenizer_path", "vocab.json", "merges.txt")),
    ],
)
def test_a_path_without_the_files_gives_the_files_that_are_wanted(text, changes, wanted):
    with pytest.raises(DataError) as error:
        resolve(override(text, changes))
    assert all(part in str(error.value) for part in wanted), error.value


def test_a_text_need_not_be_there_to_compile_for_it():
    text = without("task") | {"data": {"dataset": "enwik8", "path": "/no/such/folder", "segments": 3}, "mesh": {"data": 2}}
    text["backbone"] = SMALL["backbone"] | {"vocab_size": 256}
    text["train"] = SMALL["train"] | {"stages": [{"steps": 2}]}
    resolved = resolve_without_data(text)
    assert resolved.task.row_length(resolved.task.size) == 12 and resolved.task.carries_state and not resolved.task.has_resets
    with pytest.raises(ValueError, match="multiple of 2"):
        resolve_without_data(override(text, {"train.batch_size": 3}))
