"""RMT's algorithmic tasks (arXiv 2207.06881, section 4.1): copy, reverse, associative retrieval, quadratic equations.

    python train.py --config=configs/rmt_algorithmic.py:copy        copy | reverse | retrieval | quadratic, each with -MEMORY behind it
    python train.py --config=configs/rmt_algorithmic.py:copy-none   for another memory: rmt (without it) | parallel_rmt | armt | none

Sizes and optimizer as published: copy and reverse of 24 symbols cut into 4 segments, retrieval among 4 pairs, quadratic equations in 6
segments of 30 characters; Adam 1e-4 with gradients clipped by norm at 0.25; layers and widths of the paper's appendix (heads are width /
H here, where the paper gives them 64 features each). The published runs use a Transformer-XL backbone without cache; these use GPT-2
blocks, so the figures are not comparable digit by digit. Published: RMT solves copy, reverse and retrieval (accuracy 1.0) with 4
segments, and quadratic equations with 0.99 exact match at 600k steps. Not run to its end here: hours on one GPU.
"""

from ml_collections import ConfigDict

# task, (layers, width, heads, FFN), memory tokens, steps
TASKS = {
    "copy": (dict(name="copy", length=24, segments=4), (4, 128, 4, 256), 10, 100_000),
    "reverse": (dict(name="reverse", length=24, segments=4), (4, 128, 4, 256), 10, 100_000),
    "retrieval": (dict(name="rmt_retrieval", num_pairs=4, segments=2), (6, 64, 4, 128), 2, 100_000),
    "quadratic": (dict(name="quadratic_equations", segments=6), (6, 128, 4, 256), 30, 600_000),
}
MEMORIES = ("rmt", "parallel_rmt", "armt", "none")
VARIANTS = tuple(f"{task}-{memory}" for task in TASKS for memory in MEMORIES)


def get_config(variant: str = "copy") -> ConfigDict:
    task, _, memory = variant.partition("-")
    memory = memory or "rmt"
    if task not in TASKS or memory not in MEMORIES:
        names = f"one of {', '.join(TASKS)}, with - and one of {', '.join(MEMORIES)} behind it or not"
        raise ValueError(f"configs/rmt_algorithmic.py:{variant} is unknown: choose {names}")
    fields, (layers, width, heads, mlp), tokens, steps = TASKS[task]
    c = ConfigDict()
    c.seed = 0
    c.backbone = dict(name="gpt2", vocab_size=64, num_layers=layers, width=width, num_heads=heads, mlp_width=mlp, max_positions=512)
    c.memory = dict(name="none") if memory == "none" else dict(name=memory, num_memory_tokens=tokens)
    c.recurrence = dict(gradient="remat")
    c.task = fields
    c.train = dict(
        batch_size=64, log_every=100, validate_every=1000, validation_batches=8, checkpoint_every=5000,
        optimizer=dict(learning_rate=1e-4, clip="norm", clip_at=0.25), stages=[dict(steps=steps, stop_at=0.9999)],
    )  # fmt: skip
    c.evaluation = dict(batch_size=64, batches=16)
    c.mesh = dict()  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
