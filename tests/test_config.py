"""The door: what a config may say, and what is said about one that may not."""

import importlib.util
import pathlib
import random
import re

import pytest
from ml_collections import ConfigDict

from armt_jax.config import Config, override, plain, resolve, resolve_without_data
from armt_jax.data import ContiguousStreams, DataError, Windows
from armt_jax.data.tokenizers import GPT2Tokenizer
from armt_jax.data.tokenizers.gpt2 import byte_symbols
from armt_jax.evaluation.sweep import CHANGEABLE, read_sweep
from armt_jax.memory.associative import ARMT
from armt_jax.nn.backbones import GPT2, GPTNeoX
from armt_jax.parallel.mesh import MeshConfig
from armt_jax.settings import EvaluationConfig, Stage
from armt_jax.tasks import AssociativeRetrieval

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

SMALL = {
    "seed": 3,
    "backbone": {"name": "gpt2", "vocab_size": 128, "num_layers": 1, "width": 16, "num_heads": 2, "max_positions": 16},
    "memory": {"name": "armt", "num_memory_tokens": 1, "d_mem": 4},
    "recurrence": {"segment_length": 4},
    "dtype": "float32",
    "task": {"name": "associative_retrieval", "mode": "remember", "pairs": 2, "num_keys": 4},
    "train": {
        "batch_size": 4,
        "validate_every": 2,
        "optimizer": {"learning_rate": 1e-2},
        "stages": [{"steps": 8}, {"steps": 6, "task": {"pairs": 3}}],
    },
    "evaluation": {"batch_size": 4, "batches": 1},
    "mesh": {"data": 1},
}


def changed(**changes):
    """SMALL with keys changed; `train__stages` stands for train.stages."""
    return override(SMALL, {key.replace("__", "."): value for key, value in changes.items()})


def without(section):
    return {name: value for name, value in SMALL.items() if name != section}


def refuses(config, *parts):
    """resolve(config) raises one ValueError that says all of this."""
    with pytest.raises(ValueError) as error:
        resolve(config)
    for part in parts:
        assert str(part) in str(error.value), f"{part!r} is not in: {error.value}"


def test_resolves_to_what_it_says():
    config = resolve(SMALL)
    assert isinstance(config, Config) and config.seed == 3
    assert config.model.backbone == GPT2(vocab_size=128, num_layers=1, width=16, num_heads=2, max_positions=16)
    assert config.model.memory == ARMT(num_memory_tokens=1, d_mem=4)
    assert config.task == AssociativeRetrieval(mode="remember", pairs=2, num_keys=4)
    assert config.tasks == (config.task, AssociativeRetrieval(mode="remember", pairs=3, num_keys=4))
    assert config.train.stages == (Stage(steps=8), Stage(steps=6)) and config.train.optimizer.learning_rate == 1e-2
    assert config.evaluation == EvaluationConfig(4, 1) and config.mesh == MeshConfig(data=1)


def test_a_config_dict_is_the_same_as_a_plain_dict():
    assert resolve(ConfigDict(SMALL)) == resolve(SMALL)
    assert plain(ConfigDict(SMALL))["train"]["stages"][1] == {"steps": 6, "task": {"pairs": 3}}


def test_optional_sections_have_defaults():
    config = resolve({name: SMALL[name] for name in ("backbone", "task", "train")})
    assert config.seed == 0 and config.mesh == MeshConfig() and config.evaluation == EvaluationConfig()
    assert type(config.model.memory).__name__ == "NoMemory" and config.model.dtype == "float32"


def test_a_task_brings_its_segment_length():
    config = without("recurrence") | {"backbone": SMALL["backbone"] | {"max_positions": 32}}
    config["train"] = SMALL["train"] | {"stages": [{"steps": 2}, {"steps": 2, "task": {"key_size": 2, "num_keys": 20}}]}
    resolved = resolve(config)
    assert [model.recurrence.segment_length for model in resolved.models] == [4, 5] and resolved.model == resolved.models[0]
    config["recurrence"] = {"segment_length": 3}
    assert {model.recurrence.segment_length for model in resolve(config).models} == {3}


# -- keys ----------------------------------------------------------------------------------------------------------------


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


# -- values --------------------------------------------------------------------------------------------------------------


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


# -- values that must fit together -----------------------------------------------------------------------------------------


def test_heads_and_width():
    refuses(changed(backbone__num_heads=3), "backbone.width = 16", "backbone.num_heads = 3")


def test_segment_and_memory_tokens_and_positions():
    resolve(changed(recurrence__segment_length=15))
    refuses(changed(recurrence__segment_length=16), "segment_length = 16", "1 memory tokens", "max_positions = 16")
    rmt = changed(memory={"name": "rmt", "num_memory_tokens": 4}, recurrence__segment_length=8)
    resolve(rmt)  # memory tokens at both ends
    refuses(override(rmt, {"recurrence.segment_length": 9}), "segment_length = 9", "8 memory tokens of RMT", "max_positions = 16")


def test_a_later_stage_must_fit_too():
    later = without("recurrence") | {"train": SMALL["train"] | {"stages": [{"steps": 1}, {"steps": 1, "task": {"value_size": 20}}]}}
    refuses(later, "segment_length = 23", "max_positions = 16")


def test_rmt_and_the_diagonal_schedule():
    diagonal = changed(recurrence__schedule="diagonal")
    resolve(diagonal)
    resolve(override(diagonal, {"memory": {"name": "parallel_rmt", "num_memory_tokens": 1}}))
    refuses(override(diagonal, {"memory": {"name": "rmt", "num_memory_tokens": 1}}), "schedule = 'diagonal'", "RMT", "'sequential'")


XL = {
    "name": "transformer_xl", "vocab_size": 128, "num_layers": 1, "width": 16, "num_heads": 2, "norm_place": "pre", "clamp_len": 20,
    "cutoffs": [40, 90], "div_val": 2, "tie_projections": [False, True, True],
}  # fmt: skip


@pytest.mark.parametrize("name", ["transformer_xl", "armt_xl", "rmt_xl"])
def test_transformer_xl_and_its_combinations(name):
    memory = {"name": name, "cache_length": 8, "same_length": True, "cached": "text"}
    memory |= {} if name == "transformer_xl" else {"num_memory_tokens": 2}
    model = resolve(changed(backbone=XL, memory=memory)).model
    assert (model.memory.cache_length, model.memory.same_length, model.memory.cached) == (8, True, "text")
    assert (model.backbone.cutoffs, model.backbone.tie_projections) == ((40, 90), (False, True, True))
    assert model.memory.layout(model.backbone).back == memory.get("num_memory_tokens", 0)
    refuses(changed(memory=memory), "memory.cache_length = 8", "GPT2")
    refuses(changed(backbone=XL, memory=memory | {"cache_len": 8}), "unknown key memory.cache_len (did you mean 'cache_length'?)")
    refuses(changed(backbone=XL, memory=memory | {"cache_length": "8"}), "memory.cache_length = '8' must be int")
    diagonal = changed(backbone=XL, memory=memory, recurrence__schedule="diagonal", recurrence__gradient="reversible")
    if name == "rmt_xl":
        refuses(diagonal, "schedule = 'diagonal'", "RMTXL")
    else:
        resolve(diagonal)


def test_adaptive_softmax_and_vocabulary():
    refuses(changed(backbone=XL | {"cutoffs": [40, 200]}, memory={"name": "none"}), "cutoffs = (40, 200)", "vocab_size = 128")
    refuses(changed(backbone=XL | {"cutoffs": [40]}, memory={"name": "none"}), "tie_projections", "cutoffs = (40,)")
    base = resolve(changed(backbone={"preset": "transformer-xl-wt103-base"}, memory={"name": "transformer_xl"})).model
    assert (base.backbone.vocab_size, base.backbone.head_size, base.memory.cache_length) == (267735, 41, 150)


def test_task_vocabulary_and_backbone_vocabulary():
    refuses(changed(backbone__vocab_size=127), "128", "backbone.vocab_size = 127")
    copy = override(SMALL, {"task": {"name": "copy", "length": 2}, "backbone.vocab_size": 12, "train.stages": [{"steps": 1}]})
    resolve(copy)
    larger = override(copy, {"train.stages": [{"steps": 1}, {"steps": 1, "task": {"num_symbols": 11}}]})
    refuses(larger, "train.stages[1].task", "13", "backbone.vocab_size = 12")


def test_accumulate_and_batch():
    resolve(changed(train__accumulate=2))
    refuses(changed(train__accumulate=3), "train.accumulate = 3", "4 rows", "train.stages[0]")
    refuses(
        changed(train__accumulate=4, train__stages=[{"steps": 1}, {"steps": 1, "batch_size": 6}]), "accumulate = 4", "6 rows", "stages[1]"
    )


def test_patience_and_validation():
    refuses(changed(train__stages=[{"steps": 1, "patience": 1}]), "train.stages[0].steps = 1", "train.validate_every = 2")


@pytest.mark.parametrize(
    "stage",
    [
        {"steps": 0},
        {"steps": 4, "stop_at": 1.5},
        {"steps": 4, "patience": 0},
        {"steps": 4, "schedule": "cosin"},
        {"steps": 4, "batch_size": 0},
        {"steps": 4, "batch_size": -8},
        {"steps": 4, "keep_memory": 1.0},
        {"steps": 4, "keep_memory": -0.5},
        {"steps": 4, "learning_rate": -1.0},
    ],
)
def test_what_a_stage_may_not_say_is_found_when_the_config_is_read(stage):
    refused = list(stage)[-1]
    refuses(changed(train__stages=[{"steps": 4}, stage]), refused, stage[refused])


def test_a_warm_up_longer_than_a_stage_is_found_when_the_config_is_read():
    warm = changed(train__optimizer__warmup_steps=10)
    resolve(warm)  # a constant rate may be warmed up over several stages
    refuses(override(warm, {"train.optimizer.schedule": "linear", "train.stages": [{"steps": 5}]}), "warmup_steps", 10, 5)
    refuses(override(warm, {"train.stages": [{"steps": 50}, {"steps": 5, "schedule": "cosine"}]}), "warmup_steps", 10, 5)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_no_task_takes_is_found_when_the_config_is_read(seed):
    refuses(changed(seed=seed), "seed", seed)


# -- presets ---------------------------------------------------------------------------------------------------------------


def test_a_preset_gives_the_defaults_of_a_backbone():
    backbone = resolve(SMALL | {"backbone": {"preset": "neox-tiny-ar"}}).model.backbone
    assert isinstance(backbone, GPTNeoX)
    assert (backbone.num_layers, backbone.width, backbone.mlp_width, backbone.vocab_size) == (4, 128, 128, 128)


def test_fields_beside_a_preset_win():
    backbone = resolve(SMALL | {"backbone": {"preset": "neox-tiny-ar", "width": 64, "name": "gpt_neox"}}).model.backbone
    assert (backbone.num_layers, backbone.width) == (4, 64)


def test_a_preset_of_another_kind_or_an_unknown_one():
    refuses(SMALL | {"backbone": {"preset": "neox-tiny-ar", "name": "llama"}}, "'neox-tiny-ar'", "'gpt_neox'", "'llama'")
    refuses(SMALL | {"backbone": {"preset": "gpt2-mediun"}}, "gpt2-mediun", "did you mean 'gpt2-medium'?")


# -- override --------------------------------------------------------------------------------------------------------------


def test_override_changes_a_copy():
    new = override(SMALL, {"task.pairs": 4, "train.optimizer.clip": "norm", "seed": 9})
    assert new["task"]["pairs"] == 4 and new["seed"] == 9
    assert new["train"]["optimizer"] == {"learning_rate": 1e-2, "clip": "norm"}  # a key that was not there yet
    assert SMALL["task"]["pairs"] == 2 and "clip" not in SMALL["train"]["optimizer"] and SMALL["seed"] == 3
    assert override(SMALL, {}) == plain(SMALL)


def test_override_of_an_unknown_section():
    with pytest.raises(ValueError, match=r"tsak\.pairs = 4.*did you mean 'task'\?"):
        override(SMALL, {"tsak.pairs": 4})
    with pytest.raises(ValueError, match=r"train\.optimiser\.clip"):
        override(SMALL, {"train.optimiser.clip": "norm"})


def test_override_of_a_section_left_to_its_defaults():
    changed = override(without("mesh"), {"mesh.data": 2})
    assert resolve(changed).mesh == MeshConfig(data=2)
    no_optimizer = without("train") | {"train": {"stages": [{"steps": 1}]}}
    assert resolve(override(no_optimizer, {"train.optimizer.clip": "norm"})).train.optimizer.clip == "norm"


def test_override_below_a_value_says_what_is_wrong():
    with pytest.raises(ValueError) as error:
        override(SMALL, {"train.stages.0": 1})
    assert "train.stages.0" in str(error.value) and "did you mean 'stages'" not in str(error.value)


# -- texts -----------------------------------------------------------------------------------------------------------------------


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


# -- the mesh ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["rmt", "rmt_xl"])
@pytest.mark.parametrize("stage", [2, -1])
def test_stages_need_layer_local_memory(memory, stage):
    fields = {"name": memory, "num_memory_tokens": 1} | ({"cache_length": 4} if memory == "rmt_xl" else {})
    backbone = SMALL["backbone"] | {"name": "llama", "num_layers": 2}
    config = SMALL | {"backbone": backbone, "memory": fields, "mesh": {"data": 1, "stage": stage}}
    refuses(config, f"mesh.stage = {stage}", "layer-local", "enters the first layer of the next", "parallel_rmt")
    resolve(config | {"memory": {"name": "parallel_rmt", "num_memory_tokens": 1}})


def test_layers_must_divide_over_stages():
    config = SMALL | {"backbone": SMALL["backbone"] | {"num_layers": 3}, "mesh": {"data": 1, "stage": 2}}
    refuses(config, "mesh.stage = 2", "backbone.num_layers = 3")


def test_a_batch_must_divide_over_the_mesh_in_every_stage():
    config = SMALL | {"mesh": {"data": 2, "fsdp": 2}}
    refuses(override(config, {"train.batch_size": 6}), "6 rows (train.stages[0])", "mesh.data * mesh.fsdp = 4", "multiple of 4")
    refuses(override(config, {"train.accumulate": 2}), "train.accumulate = 2", "multiple of 8")
    resolve(override(config, {"train.accumulate": 2, "train.batch_size": 8}))


def test_a_text_need_not_be_there_to_compile_for_it():
    text = without("task") | {"data": {"dataset": "enwik8", "path": "/no/such/folder", "segments": 3}, "mesh": {"data": 2}}
    text["backbone"] = SMALL["backbone"] | {"vocab_size": 256}
    text["train"] = SMALL["train"] | {"stages": [{"steps": 2}]}
    resolved = resolve_without_data(text)
    assert resolved.task.row_length(resolved.task.size) == 12 and resolved.task.carries_state and not resolved.task.has_resets
    with pytest.raises(ValueError, match="multiple of 2"):
        resolve_without_data(override(text, {"train.batch_size": 3}))


# -- what is in the repository -----------------------------------------------------------------------------------------------


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Stand-ins for the published corpora, and the settings that name them."""
    folder = tmp_path_factory.mktemp("corpora")
    (folder / "enwik8").write_bytes(b"".join(b"<page>some text, number %d</page>\n" % i for i in range(2000)))
    for part in ("train", "valid", "test"):
        (folder / f"wiki.{part}.tokens").write_text(" \n = A title = \n \n some <unk> words in a line , and more . \n" * 400)
    # A book in which a small SentencePiece model learns the words of bAbI, so that facts are as short as with a large one.
    rng, words = random.Random(0), "Mary John Daniel Sandra went moved journeyed travelled back to the office garden kitchen".split()
    words += "hallway bathroom bedroom Where is was a book of many sentences that go on and on".split()
    sentences = [" ".join(rng.choices(words, k=14)).capitalize() + "." for _ in range(600)]
    for number in range(4):
        (folder / "books").mkdir(exist_ok=True)
        (folder / "books" / f"{number}.txt").write_text("\n".join(sentences[number::4]) + "\n")
    symbols = byte_symbols()
    GPT2Tokenizer({symbol: i for i, symbol in enumerate(symbols.values())}, []).save(folder)

    def fields(data):
        bpe = {"data.tokenizer_path": str(folder)} if data["tokenizer"] == "gpt2" else {}
        short = {"data.segments": 2} if data["segments"] > 100 else {}  # the stand-ins hold no row of 131,072 tokens
        return {"data.path": str(folder), "data.cache_dir": str(folder / "cache"), **bpe, **short}

    def babilong(background):
        made = {"tokenizer_path": str(folder)} if background["tokenizer"] == "gpt2" else {"vocab_size": 330}
        made |= {"path": str(folder / "books"), "cache_dir": str(folder / "cache")}
        return {f"task.background.{name}": value for name, value in made.items()}

    fields.babilong = babilong
    return fields


def shipped(module, variant, corpora):
    config = plain(module.get_config() if variant is None else module.get_config(variant))
    if config.get("task", {}).get("name") == "babilong":
        return override(config, corpora.babilong(config["task"]["background"]))
    return override(config, corpora(config["data"])) if "data" in config else config


def every_variant():
    for path in sorted(CONFIGS.glob("*.py")):
        module = load(path)
        for variant in [None, *getattr(module, "RUNS", ()), *getattr(module, "VARIANTS", ()), *getattr(module, "TASKS", ())]:
            yield pytest.param(path, variant, id=f"{path.stem}:{variant}")


@pytest.mark.parametrize(("path", "variant"), list(every_variant()))
def test_every_config_resolves(path, variant, corpora):
    module = load(path)
    config = resolve(shipped(module, variant, corpora))
    assert config.train.stages and len(config.tasks) == len(config.train.stages)
    if variant is not None:
        with pytest.raises(ValueError, match="no-such-variant"):
            module.get_config("no-such-variant")


def test_the_docstring_of_a_config_gives_its_command():
    for path in CONFIGS.glob("*.py"):
        command = "python train.py" if path.stem == "quickstart" else rf"python train.py --config=configs/{path.stem}\.py"
        assert re.search(command, load(path).__doc__), path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sweeps/*.py")), ids=lambda path: path.stem)
def test_every_sweep_reads(path):
    points = read_sweep(path)
    assert points and all(key.split(".")[0] in CHANGEABLE for point in points for key in point)


def test_the_sweep_of_every_config_fits_it():
    seen = 0
    for path in CONFIGS.glob("*.py"):
        module = load(path)
        if not hasattr(module, "SWEEP"):
            continue
        for variant in getattr(module, "RUNS", (None,)):
            config = plain(module.get_config() if variant is None else module.get_config(variant))
            for point in read_sweep(CONFIGS.parent / module.SWEEP):
                seen += resolve(override(config, point)).task.size > 0
    assert seen
