"""ARMT on rows of 131,072 tokens (128 segments of 1,024) on a TPU slice: how the model is laid over the chips.

    python -m armt_jax.aot --config=configs/scale.py:llama-pipeline --topology=v5e:4x4     compiles it for a slice that need not be there
    python train.py --config=configs/scale.py:llama-pipeline --config.data.path=DIR        on every host (docs/launch.md); DIR holds enwik8

A variant is a model, gpt2 (GPT-2 small, 124 M) or llama (Llama 3.2, 1.2 B), and a layout:

-sequential  segment by segment; the parameters are split over all chips (fsdp) and gathered where they are used, rows over all chips
-pipeline    diagonal by diagonal; layers over `stage` (4 for gpt2, 16 for llama), whole pipelines side by side on the other chips

One row for each chip: on a slice of another size than 16 chips set --config.train.batch_size to its number of chips (64 on v5p:4x4x4).
Not compiled for a TPU yet, and not trained: bytes per chip, speed and quality are not known. The text is read
as bytes, so that nothing else is needed; a vocabulary of the model's own goes into data.tokenizer.

GPT-2 has 1,024 positions; its table is longer here, to hold a segment with its memory tokens.
"""

from ml_collections import ConfigDict, config_dict

# backbone, stages
MODELS = {"gpt2": (dict(preset="gpt2", max_positions=1040), 4), "llama": (dict(preset="llama-3.2-1b"), 16)}
LAYOUTS = ("sequential", "pipeline")
VARIANTS = tuple(f"{model}-{layout}" for model in MODELS for layout in LAYOUTS)


def get_config(variant: str = "gpt2-pipeline") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/scale.py:{variant} is unknown: choose one of {', '.join(VARIANTS)}")
    model, layout = variant.split("-")
    backbone, stages = MODELS[model]
    c = ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.backbone = backbone
    c.memory = dict(name="armt", num_memory_tokens=16, d_mem=64, key_norm="l2")
    c.recurrence = dict(
        segment_length=1024, schedule="diagonal" if layout == "pipeline" else "sequential", gradient="reversible", anchor_every=32
    )
    c.data = dict(
        dataset="enwik8", path=config_dict.placeholder(str), tokenizer="bytes", stream="contiguous", segments=128,
        cache_dir="~/.cache/armt_jax",
    )  # fmt: skip
    c.train = dict(
        batch_size=16, log_every=1, validate_every=500, validation_batches=1, checkpoint_every=100,
        optimizer=dict(learning_rate=1e-4, schedule="cosine", warmup_steps=100, weight_decay=0.01, clip="norm", clip_at=1.0),
        stages=[dict(steps=5000)],
    )  # fmt: skip
    c.evaluation = dict(batch_size=16)
    c.mesh = dict(data=-1, stage=stages) if layout == "pipeline" else dict(data=1, fsdp=-1)
    return c
