"""Does a BABILong stream cost the same at its end as at its beginning? Speed by tenths, and peak resident memory, by length.

    python benchmarks/babilong_stream.py [--lengths=64k,4M,50M] [--memory=armt] [--rows=1] [--schedule=sequential|diagonal] [--json]
                                         [--background=BOOKS] [--together]

A tiny untrained model (2 layers of 32, segments of 128 tokens) answers a qa1 sample of each length, as the evaluation does: samples read
from the background's file, chunks of 64 segments, greedy answers. Every length is a process of its own, as a process's peak memory never
falls; with --together one process reads all, and the kernel's record of the peak begins anew before each: what compiling left, which
differs from process to process, is the same for all then. A short sample comes first, so that nothing is compiled in what is timed. Without
--background, text is made on the spot.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.process_memory import restart_peak, status  # noqa: E402

UNITS = {"k": 1_000, "M": 1_000_000}
MEMORIES = {
    "armt": dict(num_memory_tokens=4, d_mem=16, key_norm="l2", value_std=None),
    "rmt": dict(num_memory_tokens=4),
    "transformer_xl": dict(cache_length=64),
}


def number(text: str) -> int:
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


def write_books(folder: Path) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(500)]
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        sentences = [" ".join(rng.choices(words, k=rng.randint(8, 20))).capitalize() + "." for _ in range(2000)]
        (folder / split / "book.txt").write_text(" ".join(sentences))


def resident_mb() -> float:
    """Of this process, now."""
    return status("VmRSS") / 2**20


def tenths(marks: list[tuple[int, float]], total: int) -> list[float]:
    """Tokens per second of each tenth. marks: (tokens read, time), rising."""
    import numpy as np

    tokens, times = zip(*marks)
    edges = np.interp(np.linspace(0, total, 11), tokens, times)
    return (total / 10 / np.diff(edges)).tolist()


def measure(args) -> list[dict]:
    """A row for each of args.length."""
    import jax

    from armt_jax.config import resolve_backbone, resolve_memory
    from armt_jax.data.babilong import BabilongSamples, BackgroundConfig, GeneratedStories
    from armt_jax.evaluation.streaming import Question, Reader, Streams
    from armt_jax.model import ModelConfig, RecurrenceConfig
    from armt_jax.parallel.mesh import MeshConfig, make_mesh
    from armt_jax.training import step as steps

    background = BackgroundConfig(args.background, tokenizer="bytes", cache_dir=args.cache_dir)
    codec = background.open().codec
    transformer_xl = args.memory == "transformer_xl"
    backbone = dict(name="transformer_xl" if transformer_xl else "gpt2", vocab_size=260, num_layers=2, width=32, num_heads=2)
    memory = resolve_memory(dict(name=args.memory, **MEMORIES[args.memory]))
    model = ModelConfig(resolve_backbone(backbone | ({} if transformer_xl else dict(max_positions=160))), memory, RecurrenceConfig(128))
    mesh = make_mesh(MeshConfig(data=1, cpu_devices=1), jax.devices()[:1])
    params = steps.create_params(model, 0, mesh)
    reader = Reader(
        model, params, mesh, rows=args.rows, schedule=args.schedule, new_tokens=10, end_id=codec.end_id, question="running"
    )  # fmt: skip

    class Sampled:
        def __init__(self, length, index):
            self.sample = BabilongSamples("qa1", "test", length, background, GeneratedStories(), facts_within=16_000).sample(index)
            self.questions = (Question(self.sample.context_end(length), self.sample.question_ids),)
            self.read = self.sample.read

    def run(length):
        streams = Streams(reader, lambda index: Sampled(length, index), range(args.rows), segments_at_once=64)
        marks, held = [(0, time.perf_counter())], []
        for answer in streams:
            if answer is None:
                jax.block_until_ready(streams.state)
                marks.append((streams.tokens_read, time.perf_counter()))
                held.append(resident_mb())
        return marks, held

    run(128 * (2 * 64 + 16 + 4 + 1 + 1))  # every size of call, and the question in the last segment: nothing is compiled later
    rows = []
    for length in args.length:
        if len(args.length) > 1:
            restart_peak()
        marks, held = run(length)
        speeds = tenths(marks, marks[-1][0])
        rows.append({
            "memory": args.memory, "schedule": args.schedule, "rows": args.rows, "length": length, "tokens": marks[-1][0],
            "seconds": round(marks[-1][1] - marks[0][1], 1), "first_tenth": round(speeds[0]), "last_tenth": round(speeds[-1]),
            "last_to_first": round(speeds[-1] / speeds[0], 3), "tenths": [round(speed) for speed in speeds],
            "resident_mb": [round(held[i * (len(held) - 1) // 10], 1) for i in range(11)],
            "peak_mb": round(status("VmHWM") / 2**20, 1), "device": jax.devices()[0].device_kind,
        })  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--lengths", default="64k,4M,50M")
    parser.add_argument("--memory", choices=MEMORIES, default="armt")
    parser.add_argument("--schedule", choices=("sequential", "diagonal"), default="sequential")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--background", help="a folder of books")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    parser.add_argument("--cache_dir", help=argparse.SUPPRESS)
    parser.add_argument("--together", action="store_true", help="all lengths in one process")
    parser.add_argument("--length", type=int, nargs="+", help=argparse.SUPPRESS)  # of one process
    args = parser.parse_args()
    if args.length:
        for row in measure(args):
            print(json.dumps(row))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        books = args.background or f"{folder}/books"
        if not args.background:
            write_books(Path(books))
        command = [
            sys.executable, __file__, f"--memory={args.memory}", f"--schedule={args.schedule}", f"--rows={args.rows}",
            f"--background={books}", f"--cache_dir={folder}/cache",
        ]  # fmt: skip
        # The first one prepares the background, which costs memory that reading does not.
        subprocess.run([*command, "--length", "32000"], check=True, stdout=subprocess.DEVNULL)
        lengths = [str(number(text)) for text in args.lengths.split(",")]
        for together in [lengths] if args.together else [[length] for length in lengths]:
            done = subprocess.run([*command, "--length", *together], check=True, stdout=subprocess.PIPE, text=True)
            rows += [json.loads(line) for line in done.stdout.splitlines()[-len(together) :]]
            if args.json:
                print("\n".join(json.dumps(row) for row in rows[-len(together) :]), flush=True)
    if args.json:
        return
    head = ("tokens", "seconds", "tokens/s, first tenth", "last tenth", "last / first", "peak MB")
    print(f"{args.memory}, {args.schedule}, {args.rows} row(s), {rows[0]['device']}\n")
    print("| " + " | ".join(head) + " |\n" + "|---:" * len(head) + "|")
    for row in rows:
        cells = (row["length"], row["seconds"], row["first_tenth"], row["last_tenth"], row["last_to_first"], row["peak_mb"])
        print("| " + " | ".join(f"{cell:,}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
