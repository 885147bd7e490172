"""BABILong qa1 from scratch on one H200, then 1M, 10M and 50M tokens.

    python train.py --config=configs/babilong_qa1_h200.py:armt --config.task.background.path=BOOKS        one of armt | rmt | none
    python eval.py --workdir=runs/babilong_qa1_h200-armt --checkpoint=last --sweep=configs/sweeps/babilong_50m.py

BOOKS is any folder of *.txt. Published stories: --config.task.stories=DIR (of en-10k); without it they are generated. A SentencePiece model
of 4,096 pieces is trained on the text, or given: --config.task.background.tokenizer_path=FILE.

6.5 M parameters (13.1 MB in bfloat16), 6 layers of 256, segments of 512 tokens in the end, 8 memory tokens, d_mem 64, bfloat16.

Found (ARMT, two seeds, commits 942dc8a and db0a789, one H200; docs/results/babilong.md): 505 s (98 steps short of the
end) and 417 s to train; then exact match 0.995 at 16,000 tokens, 1.00 to 4 million, 0.88 at 10 million (16 samples each), 0.89 +- 0.02 at
50 million (32 samples each). RMT and no memory were not run there.

In the last stage the text says people and rooms without a fact, and writing costs more, so gates shut at mere text, to the last bit. That
is what validation on rows of the trained length does not see: evaluate the last checkpoint (eval.py --checkpoint=last).

The recipe is that of configs/babilong_qa1_cpu.py, which says why.

Published, exact match in percent at 50M tokens (arXiv 2407.04841): ARMT, started from GPT-2, 49.6 +- 40.4 over 3 runs, the best 79.9.
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("armt", "rmt", "none")
MEMORIES = {
    "armt": dict(
        name="armt", num_memory_tokens=8, d_mem=64, key_norm="l2", like_writes="share", gate="hard", read_floor=1.0, first_layer=3,
        value_std=None, positions="table",
    ),
    "rmt": dict(name="rmt", num_memory_tokens=16),
    "none": dict(name="none"),
}


def get_config(memory: str = "armt") -> ConfigDict:
    if memory not in MEMORIES:
        raise ValueError(f"configs/babilong_qa1_h200.py:{memory} is unknown: choose one of {', '.join(MEMORIES)}")
    c = ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16"
    c.backbone = dict(
        name="gpt2", vocab_size=4104, num_layers=6, width=256, num_heads=8, max_positions=640,
        kernel_std=None, embedding_std=0.2, position_std=0.1, scale_residual_init=False,
    )  # fmt: skip
    c.memory = MEMORIES[memory]
    c.recurrence = dict(schedule="sequential", gradient="reversible" if memory == "armt" else "remat")
    c.task = dict(
        name="babilong", task="qa1", stories=config_dict.placeholder(str), max_facts=config_dict.placeholder(int), question="running",
        segment_length=512, questions=4, text_weight=0.0,
        background=dict(
            path=config_dict.placeholder(str), name="books", tokenizer="sentencepiece", tokenizer_path=config_dict.placeholder(str),
            vocab_size=4096, cache_dir="~/.cache/armt_jax",
        ),
    )  # fmt: skip

    def cost(nats):
        return dict(memory=dict(write_cost=nats)) if memory == "armt" else {}

    def uncut(facts, T, segments, max_facts, batch_size, steps=1000, **more):
        """No segment's end cuts a fact, and every question has a segment."""
        question, generate = "apart" if facts == "apart" else "running", max_facts is not None
        task = dict(facts=facts, question=question, segment_length=T, segments=segments, max_facts=max_facts, generate=generate)
        return dict(task=task, steps=steps, batch_size=batch_size, stop_at=0.97, **more)

    def running(steps, write_cost, named_every=None, **more):
        task = dict(segment_length=512, segments=(8, 32), peeks=8, named_every=named_every)
        return dict(task=task, steps=steps, batch_size=32, **cost(write_cost), **more)

    c.train = dict(
        log_every=50, validate_every=50, validation_batches=2, checkpoint_every=500, keep_optimizer=True, data_workers=12,
        max_stage_steps=config_dict.placeholder(int),
        optimizer=dict(learning_rate=7e-4, warmup_steps=50, clip="norm", clip_at=1.0),
        stages=[
            uncut("apart", 8, (6,), 2, 128), uncut("apart", 16, (8,), 4, 128),
            uncut("alone", 64, (8,), 4, 128), uncut("whole", 64, (5, 6, 8), 4, 128, steps=300),
            uncut("whole", 64, (64,), None, 64, steps=150, **cost(1e-3)),
            uncut("whole", 512, (5, 6, 8, 12), None, 32, steps=250, **cost(1e-3)),
            running(300, 1e-3, stop_at=0.95),
            # The learning rate, summed over a cosine of 450 steps, is 0.16, which times the decay gives 0.1.
            running(450, 3e-2, named_every=256, schedule="cosine", weight_decay=0.6, keep_memory=0.8),
        ],
    )  # fmt: skip
    c.evaluation = dict(batch_size=32, samples=32, schedule="auto", segments_at_once=64)
    c.mesh = dict()  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
