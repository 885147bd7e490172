"""BABILong with the published recipe: GPT-2, segments of 512 tokens, a curriculum from 2 to 32 segments, one task a run.

    python train.py --config=configs/babilong.py:armt --config.task.background.path=PG19 --config.task.stories=EN10K \\
        --config.task.background.tokenizer_path=GPT2BPE --config.init.path=GPT2 [--config.task.task=qa2]       one of armt | rmt | none
    python eval.py --workdir=runs/babilong-armt --sweep=configs/sweeps/babilong_lengths.py

PG19: the folder of train/, validation/ and test/ (any other folder of *.txt does). EN10K: tasks_1-20_v1-2/en-10k of bAbI; without it
stories are generated. GPT2BPE: the folder of GPT-2's vocab.json and merges.txt (or encoder.json and vocab.bpe). GPT2: the folder of the
pretrained gpt2 (config.json and model.safetensors, docs/interop.md), from which the published runs start; without it weights start random.

132 M parameters (ARMT). The authors used 1 to 4 A100 or H100, 40 minutes to 20 hours a stage (arXiv 2406.10149, appendix C). Not run here.

Published, exact match in percent, ARMT of 3 runs / RMT (arXiv 2407.04841), 128k, 1M, 10M tokens: qa1 99.9, 98.5, 89.4 / 99.1, 94.2, 76.4;
qa2 99.8, 99.4, 84.4 / 56.3, 25.5, 16.2; qa3 86.0, 72.1, 37.0 / 42.9, 24.8, 21.0; qa4 100, 99.8, 91.5 / 40.0, 27.3, 17.2;
qa5 98.7, 97.3, 80.9 / 78.1, 48.0, 27.3. All of armt_jax.data.babilong.published.

As published: batches of 64, AdamW 1e-4 (RMT 5e-5) falling on a line to half within a stage, warm-up over 1,000 steps, weight decay 0.01,
gradients clipped at norm 1, at most 10,000 steps a stage (30,000 at 32 segments), patience 50 validations; 10 memory tokens and d_mem 64
(RMT 16 memory tokens). What differs: all rows of a step have the same number of segments; there is
one stage at 32 segments (the authors' script has a second one of 10,000 steps behind it); validation is carved out of the training file,
where the published code selects on the test file; sentences are a space apart (task.compat="published" for their ids).
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("armt", "rmt", "none")
MEMORIES = {
    "armt": dict(name="armt", num_memory_tokens=10, d_mem=64),
    "rmt": dict(name="rmt", num_memory_tokens=16),
    "none": dict(name="none"),
}
CURRICULUM = (1, 2, 3, 5, 8, 16, 32)


def get_config(memory: str = "armt") -> ConfigDict:
    if memory not in MEMORIES:
        raise ValueError(f"configs/babilong.py:{memory} is unknown: choose one of {', '.join(MEMORIES)}")
    c = ConfigDict()
    c.seed = 0
    c.init = dict(path=config_dict.placeholder(str))  # a pretrained checkpoint; None: random weights
    c.backbone = dict(preset="gpt2")
    c.memory = MEMORIES[memory]
    c.recurrence = dict(segment_length=512, schedule="sequential", gradient="reversible" if memory == "armt" else "remat")
    c.task = dict(
        name="babilong", task="qa1", stories=config_dict.placeholder(str), max_facts=config_dict.placeholder(int), question="running",
        margin=20, text_weight=0.0, compat="default",
        background=dict(
            path=config_dict.placeholder(str), name="books", tokenizer="gpt2", tokenizer_path=config_dict.placeholder(str),
            cache_dir="~/.cache/armt_jax",
        ),
    )  # fmt: skip

    def stage(longest, steps):
        """Rows of any length of the curriculum up to the longest."""
        lengths = tuple(n for n in CURRICULUM if n <= longest)
        return dict(task=dict(segments=lengths), steps=steps, patience=50)

    c.train = dict(
        batch_size=64, accumulate=1, log_every=50, validate_every=250, validation_batches=4, checkpoint_every=500,
        max_stage_steps=config_dict.placeholder(int),
        optimizer=dict(
            learning_rate=5e-5 if memory == "rmt" else 1e-4, schedule="linear", final_scale=0.5, warmup_steps=1000, weight_decay=0.01,
            clip="norm", clip_at=1.0,
        ),
        stages=[stage(longest, 10_000) for longest in (2, 3, 5, 8, 16)] + [stage(32, 30_000)],
    )  # fmt: skip
    c.evaluation = dict(batch_size=8, samples=100, schedule="auto")
    c.mesh = dict()  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
