"""ARMT on rows of 131,072 tokens (128 segments of 1,024) on a TPU slice: how the model is laid over the chips.

    python -m armt_jax.aot --config=configs/scale.py:llama-pipeline --topology=v5e:4x4     compiles it for a slice that need not be there
    python train.py --config=configs/scale.py:llama-pipeline --config.data.path=DIR        on every host (docs/launch.md); DIR holds enwik8

A variant is a model, gpt2 (GPT-2 small, 124 M) or llama (Llama 3.2, 1.2 B), and a layout:

-sequential  segment by segment; the parameters are split over all chips (fsdp; of llama over pairs of them, tensor, too) and gathered where
             they are used
-pipeline    diagonal by diagonal; layers over `stage` (4 for gpt2, 16 for llama), whole pipelines side by side on the other chips

The batch is what fits 16 chips of 16 GB (16, 16, 8 and 1 rows); on a slice of four times as many chips set --config.train.batch_size to
four times as much (llama-sequential on v5p:4x4x4: --config.mesh.tensor=1 and 64 rows; a pair of chips would split a side of that torus).
Compiled for v5e:4x4 and v5p:4x4x4: bytes per chip and exchanges are in docs/results/aot.md. Not trained: speed and quality are not known.
The text is read as bytes, so that nothing else is needed; a vocabulary of the model's own goes into data.tokenizer.

GPT-2 has 1,024 positions; its table is longer here, to hold a segment with its memory tokens.
"""

from ml_collections import ConfigDict, config_dict

# mesh, rows for 16 chips, segments between exact copies of the memory
LAYOUTS = {
    "gpt2-sequential": (dict(data=1, fsdp=-1), 16, 32),
    "gpt2-pipeline": (dict(data=-1, stage=4), 16, 32),
    "llama-sequential": (dict(data=1, fsdp=-1, tensor=2), 8, 8),
    "llama-pipeline": (dict(data=-1, stage=16), 1, 32),
}
BACKBONES = {"gpt2": dict(preset="gpt2", max_positions=1040), "llama": dict(preset="llama-3.2-1b")}


def get_config(variant: str = "gpt2-pipeline") -> ConfigDict:
    if variant not in LAYOUTS:
        raise ValueError(f"configs/scale.py:{variant} is unknown: choose one of {', '.join(LAYOUTS)}")
    model, layout = variant.split("-")
    mesh, rows, anchor_every = LAYOUTS[variant]
    c = ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.backbone = BACKBONES[model]
    c.memory = dict(name="armt", num_memory_tokens=16, d_mem=64, key_norm="l2")
    c.recurrence = dict(
        segment_length=1024, schedule="diagonal" if layout == "pipeline" else "sequential", gradient="reversible",
        anchor_every=anchor_every,
    )
    c.data = dict(
        dataset="enwik8", path=config_dict.placeholder(str), tokenizer="bytes", stream="contiguous", segments=128,
        cache_dir="~/.cache/armt_jax",
    )  # fmt: skip
    c.train = dict(
        batch_size=rows, log_every=1, validate_every=500, validation_batches=1, checkpoint_every=100,
        optimizer=dict(learning_rate=1e-4, schedule="cosine", warmup_steps=100, weight_decay=0.01, clip="norm", clip_at=1.0),
        stages=[dict(steps=5000)],
    )  # fmt: skip
    c.evaluation = dict(batch_size=16)
    c.mesh = mesh
    return c
