"""Values that must fit together: the error comes when the config is read, and names them."""

import pytest

from armt_jax.config import override, resolve
from tests.config.small import SMALL, changed, refuses, without


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
