"""Language modelling on WikiText-2, word by word: no memory, Transformer-XL, RMT, ARMT, and both with a Transformer-XL cache.

    python train.py --config=configs/wikitext2.py:armt --config.data.path=DIR      a system: none | transformer_xl | rmt | armt |
    python eval.py --workdir=runs/wikitext2-armt                                   rmt_xl | armt_xl
    python benchmarks/compare_lm.py --dataset=wikitext2 --data_path=DIR            all systems, several seeds, one table

DIR holds wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens; without data.path they are fetched. The vocabulary is the corpus's own
(33,278 words, with <unk> and <eos>), so perplexity is per word and line end, as published for WikiText.

2.0 M parameters, 4 layers of 144 with an adaptive softmax, segments of 32 words, 8 a row; all six systems have the same steps, rows and
words. For 2 CPU cores: 3 to 4 minutes of training a run, and its evaluation. After these 400 steps no memory is of use yet: perplexity
344.3 +- 3.6 without one, 354.5 +- 7.4 with ARMT's; on an H200 345.9 without, 346 with Transformer-XL's and RMT's
(docs/results/wikitext2.md). No published figure: the recurrent-memory papers report WikiText-103 (configs/wikitext103.py), and 400 short
steps are far from a converged model. In every step a fifth of the rows starts with an empty memory, and ARMT's own parameters learn at a
tenth of the rate: configs/enwik8.py says why. ARMT reads with a floor: without it the perplexity was 382 on the H200.
"""

from ml_collections import ConfigDict, config_dict

SYSTEMS = ("none", "transformer_xl", "rmt", "armt", "rmt_xl", "armt_xl")
VARIANTS = (*SYSTEMS, *(f"{system}-cpu" for system in SYSTEMS))
CACHE = dict(cache_length=32)
RMT = dict(num_memory_tokens=4)
ARMT = dict(num_memory_tokens=1, d_mem=16, key_norm="l2", read_floor=1.0)
MEMORIES = {"none": {}, "transformer_xl": CACHE, "rmt": RMT, "armt": ARMT, "rmt_xl": RMT | CACHE, "armt_xl": ARMT | CACHE}


def get_config(variant: str = "armt") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"configs/wikitext2.py:{variant} is unknown: choose one of {', '.join(SYSTEMS)}")
    system = variant.removesuffix("-cpu")
    c = ConfigDict()
    c.seed = 0
    c.dtype = "float32"
    c.backbone = dict(
        name="transformer_xl", vocab_size=33278, num_layers=4, width=144, num_heads=4, mlp_width=576, kernel_std=None,
        norm_place="pre", output_norm=True, cutoffs=(2000, 10000), div_val=4, projection_std=0.08,
    )  # fmt: skip
    c.memory = dict(name=system, **MEMORIES[system])
    c.recurrence = dict(segment_length=32, schedule="sequential", gradient="reversible")
    if system == "transformer_xl":
        c.recurrence.update(bptt_segments=1, gradient="store")  # no gradient enters the cache: nothing to walk back through
    c.data = dict(
        dataset="wikitext2", path=config_dict.placeholder(str), tokenizer="words", stream="contiguous", segments=8, resets_at="never",
        cache_dir="~/.cache/armt_jax",
    )  # fmt: skip
    c.train = dict(
        batch_size=8, log_every=50, validate_every=100, validation_batches=8, checkpoint_every=200,
        optimizer=dict(learning_rate=3e-3, schedule="cosine", final_scale=0.1, warmup_steps=50, clip="norm", clip_at=1.0),
        stages=[dict(steps=400, keep_memory=0.8)],
    )  # fmt: skip
    if system in ("armt", "armt_xl"):
        c.train.optimizer.memory_learning_rate = 3e-4
    c.evaluation = dict(batch_size=16, batches=config_dict.placeholder(int), split="test", memory="on")  # the whole split
    c.mesh = dict(cpu_devices=2)  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
