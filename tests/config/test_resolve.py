"""What a config says: sections and their defaults, presets of a backbone."""

from ml_collections import ConfigDict

from armt_jax.config import Config, plain, resolve
from armt_jax.memory.associative import ARMT
from armt_jax.nn.backbones import GPT2, GPTNeoX
from armt_jax.parallel.mesh import MeshConfig
from armt_jax.settings import EvaluationConfig, Stage
from armt_jax.tasks import AssociativeRetrieval
from tests.config.small import SMALL, changed, refuses, without


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


def test_a_stage_may_put_a_cost_on_writing():
    stages = [{"steps": 2}, {"steps": 2, "memory": {"write_cost": 0.01}}]
    hard = changed(memory__gate="hard", train__stages=stages)
    assert [model.memory.write_cost for model in resolve(hard).models] == [0.0, 0.01] and resolve(hard).model.memory.write_cost == 0
    refuses(changed(train__stages=stages), "train.stages[1]", "write_cost = 0.01", "gate = 'hard'")
    refuses(hard | {"memory": {"name": "rmt", "num_memory_tokens": 1}}, "train.stages[1].memory.write_cost = 0.01", "RMT", "nothing")
    stages[1]["memory"] = {"d_mem": 8}
    refuses(changed(train__stages=stages), "train.stages[1].memory.d_mem = 8", "may change write_cost", "set memory.d_mem")


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
