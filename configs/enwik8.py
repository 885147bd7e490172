"""Language modelling on enwik8, byte by byte: no memory, Transformer-XL, RMT, ARMT, and both with a Transformer-XL cache.

    python train.py --config=configs/enwik8.py:armt --config.data.path=DIR          a system: none | transformer_xl | rmt | armt |
    python train.py --config=configs/enwik8.py:armt-published                       rmt_xl | armt_xl; a size: -cpu (the default) |
    python eval.py --workdir=runs/enwik8-armt                                       -gpu | -published
    python benchmarks/compare_lm.py --dataset=enwik8 --data_path=DIR                all systems, several seeds, one table

DIR holds the file enwik8 of 100,000,000 bytes, or a prefix of it (every report then says so). Without data.path it is fetched. Symbols are
raw bytes (256 ids), split 90/5/5 by bytes; "bits_per_byte" is the published bits per character. Rows are contiguous streams, and the memory
goes on from batch to batch, as in the published runs.

-cpu        1.1 M parameters, 4 layers of 144, segments of 32 bytes, 8 a row. All six systems have the same steps, rows and bytes.
            Training takes 1.5 (none) to 3 minutes (transformer_xl) on 2 cores. Test bits per byte on the prefix, 3 seeds: none
            2.812 +- 0.013, transformer_xl 2.588 +- 0.016, rmt 2.706 +- 0.026, armt 2.821 +- 0.040 (no better than none), rmt_xl
            2.684 +- 0.036, armt_xl 2.685 +- 0.018 (docs/results/enwik8.md).
-gpu        21 M parameters, 6 layers of 512, segments of 128 bytes, 8 a row, bfloat16. For one GPU. Time: not measured.
-published  41 M parameters, 12 layers of 512, segments of 128 bytes (RMT paper, arXiv 2207.06881: Adam 2.5e-4, cosine, clip 0.25, 400,000
            steps, 64 segments a step). The authors used two A100s for 10 to 30 hours. Not run here.

Published, bits per character, segments of 128 (arXiv 2207.06881, tables and repository): no memory 1.402; Transformer-XL with a cache
of 10, 20, 40, 75, 100, 200: 1.283, 1.261, 1.230, 1.196, 1.178, 1.140; RMT with 5, 10, 20 memory tokens and gradients through two
earlier segments: 1.231, 1.228, 1.222. ARMT and the combinations have no published figure here. The rows of MemTransformer (memory tokens
that nothing carries on) are left out.
The other rows: --config.memory.cache_length=10, --config.memory.num_memory_tokens=5. By depth, the number of earlier segments that a
gradient reaches at most: 3 as it stands (rows of 4 segments); 2: --config.data.segments=3 --config.train.batch_size=21;
1: --config.recurrence.bptt_segments=2; 0: --config.recurrence.bptt_segments=1.

What differs from the published runs: a row here has 4 segments, all of them weighed and the gradient running through them, and a quarter as
many rows, where the published step weighs one segment and replays k earlier ones (in the public code from the newest memory, not from that
of k segments ago); RMT's first memory is M vectors drawn one by one at the scale of the embeddings, there M identical copies of one N(0, 1)
vector; its mask is causal throughout; beside a cache the memory tokens see it, which they do not there; distances have no dropout of their
own; in RMT and ARMT with a cache the gradient runs into the cache, too, and there is no auxiliary loss. ARMT has unit keys and a capped
write gate.
-cpu and -gpu: in every step a fifth of the rows starts with an empty memory (train.stages keep_memory), and ARMT's own parameters learn
at a tenth of the rate. After 150 steps on the prefix (seed 0, of a decay over 400) no memory had 2.440 nats in validation, ARMT 2.392;
without the slow rate 2.765; without both 4.103, though as good as no memory on training rows (2.319 against 2.308).
"""

from ml_collections import ConfigDict, config_dict

SYSTEMS = ("none", "transformer_xl", "rmt", "armt", "rmt_xl", "armt_xl")
SIZES = ("cpu", "gpu", "published")
VARIANTS = (*SYSTEMS, *(f"{system}-{size}" for system in SYSTEMS for size in SIZES))

BACKBONES = {
    # Normalised before the blocks: the published order sits at letter frequencies for most of so short a run.
    "cpu": dict(
        name="transformer_xl", vocab_size=256, num_layers=4, width=144, num_heads=4, mlp_width=576, kernel_std=None,
        norm_place="pre", output_norm=True,
    ),
    "gpu": dict(name="transformer_xl", vocab_size=256, num_layers=6, width=512, num_heads=8, mlp_width=2048),
    "published": dict(preset="transformer-xl-enwik8-base", vocab_size=256),
}  # fmt: skip
# cache length; RMT's tokens; ARMT's tokens, d_mem
MEMORY_SIZES = {"cpu": (32, 4, 1, 16), "gpu": (128, 10, 16, 64), "published": (200, 10, 16, 96)}


def memory(system: str, size: str) -> dict:
    cache, rmt_tokens, armt_tokens, d_mem = MEMORY_SIZES[size]
    xl = dict(cache_length=cache)
    rmt = dict(num_memory_tokens=rmt_tokens)
    # Carried through the text, long keys and an uncapped gate make a memory explode (ARMT.beta_max).
    armt = dict(num_memory_tokens=armt_tokens, d_mem=d_mem, key_norm="l2", beta_max=min(1.0, 2 / armt_tokens))
    parts = {"none": {}, "transformer_xl": xl, "rmt": rmt, "armt": armt, "rmt_xl": rmt | xl, "armt_xl": armt | xl}
    return dict(name=system, **parts[system])


def train(system: str, size: str) -> tuple[int, int, dict]:
    """(segment length, segments a row, section train)."""
    every = dict(log_every=50, validation_batches=8, tensorboard=True)
    # An associative read goes straight into the hidden states: at the pace of the other parameters it is noise for hundreds of steps.
    associative = system in ("armt", "armt_xl")
    # A fifth of the rows starts empty: evaluation begins so, and a model that has not met it for long needs a full memory.
    keep = dict(keep_memory=0.8)
    if size == "cpu":
        optimizer = dict(learning_rate=3e-3, schedule="cosine", final_scale=0.1, warmup_steps=50, clip="norm", clip_at=1.0)
        optimizer |= dict(memory_learning_rate=3e-4) if associative else {}
        every |= dict(batch_size=16, validate_every=100, checkpoint_every=200)
        return 32, 8, dict(every, optimizer=optimizer, stages=[dict(steps=400, **keep)])
    if size == "gpu":
        optimizer = dict(learning_rate=5e-4, schedule="cosine", warmup_steps=500, clip="norm", clip_at=0.25)
        optimizer |= dict(memory_learning_rate=5e-5) if associative else {}
        every |= dict(batch_size=32, validate_every=1000, checkpoint_every=1000)
        return 128, 8, dict(every, optimizer=optimizer, stages=[dict(steps=20_000, **keep)])
    optimizer = dict(learning_rate=2.5e-4, schedule="cosine", clip="norm", clip_at=0.25)
    # One segment at a time, as published, where no gradient runs from segment to segment; the same tokens a step for all.
    segments = 1 if system in ("none", "transformer_xl") else 4
    every |= dict(batch_size=64 // segments, validate_every=4000, checkpoint_every=4000)
    return 128, segments, dict(every, optimizer=optimizer, stages=[dict(steps=400_000)])


def get_config(variant: str = "armt") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/enwik8.py:{variant} is unknown: choose a system of {', '.join(SYSTEMS)}, and -{', -'.join(SIZES)}")
    system, _, size = variant.partition("-")
    size = size or "cpu"
    segment, segments, training = train(system, size)
    c = ConfigDict()
    c.seed = 0
    c.dtype = "bfloat16" if size == "gpu" else "float32"
    c.backbone = BACKBONES[size]
    c.memory = memory(system, size)
    c.recurrence = dict(segment_length=segment, schedule="sequential", gradient="reversible")  # at -cpu the fastest, up to 1.75 x store
    if system == "transformer_xl":
        # No gradient enters the cache, so there is nothing to walk back through.
        c.recurrence.update(bptt_segments=1, gradient="store" if size == "cpu" else "remat")
    c.data = dict(
        dataset="enwik8", path=config_dict.placeholder(str), tokenizer="bytes", stream="contiguous", segments=segments, resets_at="never",
        cache_dir="~/.cache/armt_jax",
    )  # fmt: skip
    c.train = training
    c.evaluation = dict(batch_size=16, batches=config_dict.placeholder(int), split="test", memory="on")  # the whole split
    c.mesh = dict(cpu_devices=2)  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
