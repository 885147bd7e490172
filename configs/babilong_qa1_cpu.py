"""BABILong qa1 on 2 CPU cores: ARMT, or RMT, or no memory, is to find a person's last room among the sentences of books.

    python train.py --config=configs/babilong_qa1_cpu.py:armt --config.task.background.path=BOOKS         one of armt | rmt | none
    python eval.py --workdir=runs/babilong_qa1_cpu-armt --sweep=configs/sweeps/babilong_lengths.py

BOOKS is any folder of *.txt (docs/babilong.md says how it is divided). Nothing is downloaded: stories are generated, and a SentencePiece
model of 4,096 pieces is trained on the text. With the published stories: --config.task.stories=DIR (of en-10k); with a SentencePiece model:
--config.task.background.tokenizer_path=FILE (its vocabulary must fit 4,104).

1.4 M parameters (ARMT), 4 layers of 128, segments of 8 tokens at first and 128 in the end. A stage ends where it reaches stop_at, or at its
steps. Found (ARMT, two runs of some 90 minutes; docs/results/babilong.md): exact match 0.93 and 0.97 at 4,096 tokens, the longest row of
training, 0.96 and 0.95 at 16,000, 0.90 and 1.00 at a million (10 samples). Evaluate the last checkpoint (eval.py --checkpoint=last):
validation on rows of the trained length does not see what thousands of segments wear off.

Published, exact match in percent, GPT-2 and segments of 512 (arXiv 2407.04841): ARMT 100 at 64k, 98.5 at 1M; RMT 99.6 and 94.2.

From configs/quickstart.py: unit-length keys, larger initial scales, W_v that does not start at zero, a curriculum, and a last stage that
decays the weights and keeps memories from batch to batch. Further (what the trials in docs/results/babilong.md found):

* The first stages have a segment for each fact and each question. Whose room is whose is learned there in 100 steps, and was not in running
  text in thousands: a segment's end cuts facts in two, two facts share a write, and a model that remembers which rooms were said, and not
  whose they are, has most answers right.
* Then segments that several facts must share, and none is cut (facts="whole"): of 32 tokens first, where a step is cheap.
* Segments grow: of 32 tokens one fact in five is cut by an end, of 128 one in twenty. Rows grow, too, so that facts rarely share a segment.
* Before segments grow, rows of 64 of them: a fact is to be kept while most segments say nothing.
* The lower half of the layers keeps no memory (ARMT.first_layer). Otherwise facts are kept in the first layer, whose gates cannot tell a
  fact from text.
* A gate that can be shut, and a small cost of writing (ARMT.gate, ARMT.write_cost): what is kept is not worn off by text that says nothing.
  Writing costs nothing in the first stages, where a gate would shut before it was of use. Without a cost all gates stood open in the end.
* Eight memory tokens that share the writes of one key (ARMT.like_writes): a fact needs one of them, and several facts of a segment need
  several; and the newest room displaces the old one, however many wrote it.
* Up to four questions about each row, and in running text eight times on its way, too (peeks): an answer of two tokens in four thousand is
  little to learn from.
* In two last stages the text says people and rooms without a fact (named_every), and writing costs ten and thirty times as much: of
  segments of mere text 83 and 54 in 100 wrote before (third and fourth layer), 2 or 3 after, and a million tokens wore off less.
* Stages of few facts are generated even where --config.task.stories names files (and validated on those): the files have 1,800 training
  stories of two facts, which can be learned by heart.
* RMT and no memory have but attention to find whose room it is. Where facts and question stand in one segment of 32 tokens it learns that
  in some 400 to 800 steps; so they begin there. Without a memory that, and more facts, is all there is to learn.
* RMT has two memory tokens. With eight it learned that in one run of two, and in none what needs its memory; with two it went on to a
  segment for each fact (0.98 after 850 steps) and running text: 0.76 at 4,096 tokens, 0.45 at 64,000, 0.20 at a million (commit ec1052f).
"""

from ml_collections import ConfigDict, config_dict

VARIANTS = ("armt", "rmt", "none")
MEMORIES = {
    "armt": dict(
        name="armt", num_memory_tokens=8, d_mem=32, key_norm="l2", like_writes="share", gate="hard", read_floor=1.0, first_layer=2,
        value_std=None, positions="table",
    ),
    "rmt": dict(name="rmt", num_memory_tokens=2, positions="table"),
    "none": dict(name="none"),
}


def get_config(memory: str = "armt") -> ConfigDict:
    if memory not in MEMORIES:
        raise ValueError(f"configs/babilong_qa1_cpu.py:{memory} is unknown: choose one of {', '.join(MEMORIES)}")
    c = ConfigDict()
    c.seed = 0
    c.backbone = dict(
        name="gpt2", vocab_size=4104, num_layers=4, width=128, num_heads=4, max_positions=160,
        kernel_std=None, embedding_std=0.2, position_std=0.1, scale_residual_init=False,
    )  # fmt: skip
    c.memory = MEMORIES[memory]
    c.recurrence = dict(schedule="sequential", gradient="reversible" if memory == "armt" else "remat")
    c.task = dict(
        name="babilong", task="qa1", stories=config_dict.placeholder(str), max_facts=config_dict.placeholder(int), question="running",
        segment_length=128, questions=4, text_weight=0.0,
        background=dict(
            path=config_dict.placeholder(str), name="books", tokenizer="sentencepiece", tokenizer_path=config_dict.placeholder(str),
            vocab_size=4096, cache_dir="~/.cache/armt_jax",
        ),
    )  # fmt: skip

    def read(T, max_facts, batch_size, steps):
        """Facts and question in one segment."""
        task = dict(segment_length=T, segments=(1,), max_facts=max_facts, generate=max_facts is not None, questions=1)
        return dict(task=task, steps=steps, batch_size=batch_size, stop_at=0.97)

    def uncut(facts, T, segments, max_facts, batch_size, steps=600, **more):
        """No segment's end cuts a fact, and every question has a segment."""
        question, generate = "apart" if facts == "apart" else "running", max_facts is not None
        task = dict(facts=facts, question=question, segment_length=T, segments=segments, max_facts=max_facts, generate=generate)
        return dict(task=task, steps=steps, batch_size=batch_size, stop_at=0.97, **more)

    def kept(steps, task=(), **more):
        """Running text in the longest rows; memories are kept from batch to batch."""
        return dict(
            task=dict(segment_length=128, segments=(16, 32), peeks=8, **dict(task)), steps=steps, batch_size=8, learning_rate=7e-4,
            schedule="cosine", weight_decay=0.5, keep_memory=0.8, **more,
        )  # fmt: skip

    def text(first, last, **more):
        """Running text, at most so many steps of each stage."""
        task = dict(segment_length=128, segments=(4, 8, 16), peeks=8)
        return [dict(task=task, steps=first, batch_size=16, stop_at=0.97, **more), kept(last, **more)]

    def quiet(steps, write_cost, named_every):
        """The text names people and rooms, and writing costs more."""
        return kept(steps, dict(named_every=named_every), memory=dict(write_cost=write_cost))

    cost = {"memory": dict(write_cost=1e-3)}
    stages = {
        "armt": [
            uncut("apart", 8, (6,), 2, 64), uncut("apart", 16, (8,), 4, 64),
            uncut("alone", 32, (8,), 4, 32), uncut("whole", 32, (5, 6, 8), 4, 48, steps=300),
            uncut("whole", 32, (64,), None, 16, **cost), uncut("whole", 128, (5, 6, 8, 12), None, 16, steps=230, **cost),
            *text(400, 600, **cost), quiet(150, 1e-2, 256), quiet(100, 3e-2, 128),
        ],
        "rmt": [
            read(32, 2, 128, steps=1000), uncut("apart", 8, (6,), 2, 128, steps=1500), uncut("apart", 8, (8,), 4, 128, steps=1000),
            uncut("whole", 32, (5, 6, 8), 4, 48, steps=800), uncut("whole", 128, (5, 6, 8, 12), None, 16, steps=400), *text(300, 300),
        ],
        "none": [read(32, 2, 128, steps=1000), read(64, 4, 64, steps=400), read(128, None, 32, steps=200), *text(200, 300)],
    }  # fmt: skip
    c.train = dict(
        log_every=25, validate_every=50, validation_batches=8, checkpoint_every=200, keep_optimizer=True,
        max_stage_steps=config_dict.placeholder(int),
        optimizer=dict(learning_rate=1e-3, warmup_steps=50, clip="norm", clip_at=1.0),
        stages=stages[memory],
    )  # fmt: skip
    c.evaluation = dict(batch_size=16, samples=100, schedule="auto")
    c.mesh = dict(cpu_devices=2)  # MeshConfig: data, fsdp, tensor, stage; all devices on data
    return c
