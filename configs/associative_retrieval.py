"""Associative retrieval as published (ARMT, arXiv 2407.04841, section 4.1 and appendix E; hyper-parameters from the authors' scripts).

    python train.py --config=configs/associative_retrieval.py:remember      up to 200 pairs, keys of 3 digits, 10 stages
    python train.py --config=configs/associative_retrieval.py:rewrite       16 keys, up to 50 pairs
    python eval.py --workdir=runs/associative_retrieval-rewrite --sweep=configs/sweeps/rewrite.py

GPT-NeoX from scratch, 4 layers, 4 heads, width 128, FFN 128 (the 0.5 M parameters the paper states), 4 memory tokens, d_mem 64 (scripts;
the paper's appendix says 32), un-normalised keys, W_v starting at zero, one query per row, batch 512, learning rate 3e-4, weight decay
1e-3 on all parameters, gradients clipped by value at 1. As in the scripts the linear schedule is twice as long as the stage, so the rate
only falls to half. Published figures: ARMT solves remember up to 200 pairs and generalises rewriting from 50 to 500 pairs; they are
curves in the paper, without numbers to quote.

Not run to its end here: the steps below are 2,000 in the first stage and 10,000 or more in the others, hours on one GPU.
configs/quickstart.py is the recipe that learns in minutes; it says what it changes and why.

Differences from the published scripts: sizes within a stage are drawn from a few lengths rather than from 1..N (each length is compiled
once), and validation is at the stage's largest size, on a split of its own.
"""

from ml_collections import ConfigDict

VARIANTS = ("remember", "rewrite")
# (pairs, key digits, steps)
REMEMBER = [
    (1, 1, 2000), (2, 1, 10000), (3, 1, 10000), (5, 1, 10000), (10, 1, 10000), (20, 2, 10000), (40, 2, 10000), (50, 2, 10000),
    (50, 3, 10000), (200, 3, 15000),
]  # fmt: skip
REWRITE = [(1, 1, 2000), (2, 1, 10000), (3, 1, 10000), (5, 1, 10000), (10, 1, 10000), (20, 1, 10000), (40, 1, 10000), (50, 1, 15000)]


def lengths(pairs: int) -> tuple[int, ...]:
    """A few sizes up to `pairs`, in place of the published uniform draw from 1..pairs."""
    return tuple(sorted({max(1, pairs * i // 4) for i in (1, 2, 3, 4)}))


def get_config(mode: str = "rewrite") -> ConfigDict:
    if mode not in VARIANTS:
        raise ValueError(f"configs/associative_retrieval.py:{mode} is unknown: choose one of {', '.join(VARIANTS)}")
    stages = REMEMBER if mode == "remember" else REWRITE
    c = ConfigDict()
    c.seed = 0
    c.backbone = dict(preset="neox-tiny-ar")
    c.memory = dict(name="armt", num_memory_tokens=4, d_mem=64)
    # One pair a segment: without recurrence.segment_length each stage takes its task's (4 to 6 tokens for keys of 1 to 3 digits).
    c.recurrence = dict(schedule="diagonal", gradient="reversible")  # the fastest: benchmarks/train_step.py --shape=ar
    c.task = dict(name="associative_retrieval", mode=mode, pairs=stages[-1][0], key_size=stages[-1][1], queries=1)
    c.train = dict(
        batch_size=512, log_every=50, validate_every=250, validation_batches=4, checkpoint_every=1000,
        optimizer=dict(
            learning_rate=3e-4, schedule="linear", final_scale=0.5, weight_decay=1e-3, decay_mask="all", clip="value", clip_at=1.0
        ),
        stages=[dict(task=dict(pairs=lengths(pairs), key_size=digits), steps=steps, stop_at=0.999) for pairs, digits, steps in stages],
    )  # fmt: skip
    c.evaluation = dict(batch_size=64, batches=16)
    c.mesh = dict()  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
