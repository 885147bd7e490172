"""Language modelling on WikiText-103: the published comparisons of no memory, Transformer-XL, RMT and both, and ARMT's recipe.

    python train.py --config=configs/wikitext103.py:rmt-150 --config.data.path=DIR    a system: none | transformer_xl | rmt | armt |
    python eval.py --workdir=runs/wikitext103-rmt-150                                 rmt_xl | armt_xl; a recipe: -gpu (the default) |
                                                                                      -cpu | -150 | -50 | -128x8
    python train.py --config=configs/wikitext103.py:armt-128x8 --config.data.path=DIR --config.data.tokenizer_path=BPE \\
        [--config.init.path=GPT2]
    python benchmarks/compare_lm.py --dataset=wikitext103 --data_path=DIR --size=gpu  all systems, several seeds, one table

DIR holds wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens; without data.path they are fetched.

-150, -50  Words of the corpus's vocabulary (267,735 types), segments of 150 or 50, adaptive softmax, 16 layers of 410, 151 M parameters
           (RMT paper, arXiv 2207.06881, on the base model of arXiv 1901.02860: Adam 2.5e-4, cosine, clip 0.25, 200,000 steps of 60
           segments of 150, or 128 of 50). The authors used two A100s for 10 to 30 hours. Not run here.
-128x8     ARMT's and RMT's windows (ARMT paper, arXiv 2407.04841, and its scripts): GPT-2 (124 M), GPT-2's BPE (BPE holds vocab.json and
           merges.txt), 7 segments of history and one to predict, 128 tokens each, all of them in the loss, batch 32, AdamW 1e-4 with a
           linear schedule, 36,000 steps (RMT 30,000), memory tokens with positions of their own, ARMT's keys and write gate as in the
           paper. Systems none, rmt, armt: a cache does not go with learned positions. Not run here. The published runs start from a GPT-2
           fine-tuned on the corpus: init.path takes such a checkpoint (docs/interop.md); without it the weights are random. They are
           validated on 15 segments; eval.py reads 16 here, twice the row, and validation in training 8. The paper gives curves and no
           numbers.
-gpu       Words, 8 layers of 256 with a narrower tail (div_val 4), 16 M parameters, segments of 128, 4 a row, bfloat16. For one GPU.
           Time: not measured. No published figure.
-cpu       Words, the layers and steps of configs/wikitext2.py (4 layers of 144, segments of 32, 8 a row, 400 steps) with this vocabulary,
           6.6 M parameters, so that a comparison can be tried out. For 2 CPU cores. Time: not measured. No published figure.

Published perplexity, segments of 150: no memory 29.95; Transformer-XL with a cache of 25, 75, 150: 25.57, 24.68, 24.12 (24.0 in arXiv
1901.02860); RMT with 10 memory tokens and gradients through 0, 1, 2, 3 earlier segments: 26.85, 25.92, 25.32, 25.04; with 25 tokens: 29.73,
24.91, 24.85; Transformer-XL + RMT, 75 + 5: 24.47, 150 + 10: 24.30, with twice the steps 23.99.
Segments of 50: no memory 39.05; Transformer-XL with a cache of 1, 5, 10, 25, 50: 32.35, 30.06, 28.98, 27.57, 26.54; RMT with 1, 5, 10,
25, 50 tokens at their best depth: 28.40, 26.67, 26.25, 26.32, 26.03. ARMT has no published figure in these settings. The rows of
MemTransformer (memory tokens that nothing carries on) are left out.
The other rows: --config.memory.cache_length=25, --config.memory.num_memory_tokens=5. By depth, the number of earlier segments that a
gradient reaches at most: 3 as it stands (rows of 4 segments); 2: --config.data.segments=3 --config.train.batch_size=20 (-150; -50: 42);
1: --config.recurrence.bptt_segments=2; 0: --config.recurrence.bptt_segments=1.

What differs from the published -150 and -50: a row here has 4 segments, all of them weighed and the gradient running through them, and a
quarter as many rows, where the published step weighs one segment and replays k earlier ones (in the public code from the newest memory, not
from that of k segments ago); RMT's first memory is M vectors drawn one by one at the scale of the embeddings, there M identical copies of
one N(0, 1) vector; its mask is causal throughout; beside a cache the memory tokens see it, which they do not there; distances have no
dropout of their own; Transformer-XL + RMT has no auxiliary loss, and its gradient runs into the cache, too. ARMT has unit keys and a capped
write gate in all recipes but -128x8, where every window starts empty: carried through the text, long keys and an uncapped gate make a
memory explode (ARMT.beta_max).
-gpu and -cpu: in every step a fifth of the rows starts with an empty memory, and ARMT's own parameters learn at a tenth of the rate:
configs/enwik8.py says why.
"""

from ml_collections import ConfigDict, config_dict

SYSTEMS = ("none", "transformer_xl", "rmt", "armt", "rmt_xl", "armt_xl")
RECIPES = ("gpu", "cpu", "150", "50", "128x8")
ON_GPT2 = ("none", "rmt", "armt")
ASSOCIATIVE = ("armt", "armt_xl")
VARIANTS = (
    *SYSTEMS, *(f"{system}-{recipe}" for system in SYSTEMS for recipe in RECIPES if recipe != "128x8" or system in ON_GPT2),
)  # fmt: skip

BACKBONES = {
    "gpu": dict(
        name="transformer_xl", vocab_size=267735, num_layers=8, width=256, num_heads=8, mlp_width=1024, dropout=0.1,
        cutoffs=(20000, 40000, 200000), div_val=4,
    ),
    "cpu": dict(
        name="transformer_xl", vocab_size=267735, num_layers=4, width=144, num_heads=4, mlp_width=576, kernel_std=None,
        norm_place="pre", output_norm=True, cutoffs=(20000, 40000, 200000), div_val=4, projection_std=0.08,
    ),
    "150": dict(preset="transformer-xl-wt103-base"),
    "50": dict(preset="transformer-xl-wt103-base"),
    "128x8": dict(preset="gpt2"),
}  # fmt: skip
# cache length; RMT's tokens; ARMT's tokens, d_mem
MEMORY_SIZES = {
    "gpu": (128, 10, 16, 64), "cpu": (32, 4, 1, 16), "150": (150, 10, 16, 96), "50": (50, 10, 16, 96), "128x8": (None, 16, 16, 96),
}  # fmt: skip


def memory(system: str, recipe: str) -> dict:
    cache, rmt_tokens, armt_tokens, d_mem = MEMORY_SIZES[recipe]
    xl, rmt, armt = dict(cache_length=cache), dict(num_memory_tokens=rmt_tokens), dict(num_memory_tokens=armt_tokens, d_mem=d_mem)
    if recipe == "128x8":
        rmt, armt = rmt | dict(positions="table"), armt | dict(positions="table")
    else:  # carried through the text (ARMT.beta_max)
        armt |= dict(key_norm="l2", beta_max=min(1.0, 2 / armt_tokens))
    parts = {"none": {}, "transformer_xl": xl, "rmt": rmt, "armt": armt, "rmt_xl": rmt | xl, "armt_xl": armt | xl}
    return dict(name=system, **parts[system])


def train(system: str, recipe: str) -> tuple[int, int, dict]:
    """(segment length, segments a row, section train)."""
    every = dict(log_every=50, validate_every=2000, validation_batches=16, checkpoint_every=2000)
    associative = system in ASSOCIATIVE
    keep = dict(keep_memory=0.8)
    if recipe == "gpu":
        optimizer = dict(learning_rate=5e-4, schedule="cosine", warmup_steps=500, clip="norm", clip_at=0.25)
        optimizer |= dict(memory_learning_rate=5e-5) if associative else {}
        return 128, 4, dict(every, batch_size=32, optimizer=optimizer, stages=[dict(steps=20_000, **keep)])
    if recipe == "cpu":
        optimizer = dict(learning_rate=3e-3, schedule="cosine", final_scale=0.1, warmup_steps=50, clip="norm", clip_at=1.0)
        optimizer |= dict(memory_learning_rate=3e-4) if associative else {}
        every |= dict(batch_size=8, validate_every=100, validation_batches=8, checkpoint_every=200)
        return 32, 8, dict(every, optimizer=optimizer, stages=[dict(steps=400, **keep)])
    if recipe == "128x8":
        optimizer = dict(learning_rate=1e-4, schedule="linear", warmup_steps=1000, weight_decay=0.01, clip="value", clip_at=5.0)
        return 128, 8, dict(every, batch_size=32, optimizer=optimizer, stages=[dict(steps=30_000 if system == "rmt" else 36_000)])
    optimizer = dict(learning_rate=2.5e-4, schedule="cosine", clip="norm", clip_at=0.25)
    # One segment at a time, as published, where no gradient runs from segment to segment; the same tokens a step for all.
    segments, rows = 1 if system in ("none", "transformer_xl") else 4, {"150": 60, "50": 128}[recipe]
    return int(recipe), segments, dict(every, batch_size=rows // segments, optimizer=optimizer, stages=[dict(steps=200_000)])


def recurrence(system: str, recipe: str, segment: int) -> dict:
    fields = dict(segment_length=segment, schedule="sequential")
    if system == "transformer_xl":  # no gradient enters the cache: nothing to walk back through
        return dict(fields, gradient="store" if recipe == "cpu" else "remat", bptt_segments=1)
    return dict(fields, gradient="reversible" if system in ASSOCIATIVE or recipe == "cpu" else "remat")


def data(recipe: str, segments: int) -> dict:
    fields = dict(dataset="wikitext103", path=config_dict.placeholder(str), segments=segments, cache_dir="~/.cache/armt_jax")
    if recipe == "128x8":
        return dict(fields, tokenizer="gpt2", tokenizer_path=config_dict.placeholder(str), stream="windows", stride=128, loss="window")
    return dict(fields, tokenizer="words", stream="contiguous", resets_at="never")


def get_config(variant: str = "armt") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/wikitext103.py:{variant} is unknown: choose one of {', '.join(VARIANTS)}")
    system, _, recipe = variant.partition("-")
    recipe = recipe or "gpu"
    segment, segments, training = train(system, recipe)
    c = ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16" if recipe == "gpu" else "float32"
    c.backbone = BACKBONES[recipe]
    c.memory = memory(system, recipe)
    c.recurrence = recurrence(system, recipe, segment)
    if recipe == "128x8":
        c.init = dict(path=config_dict.placeholder(str))
    c.data = data(recipe, segments)
    c.train = training
    c.evaluation = dict(batch_size=16, batches=config_dict.placeholder(int), split="test", memory="on")  # the whole split
    c.mesh = dict(cpu_devices=2) if recipe == "cpu" else dict()  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
