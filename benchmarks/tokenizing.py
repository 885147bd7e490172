"""Speed and peak memory of preparing a text, per tokenizer, and the time that a batch of it takes.

    python benchmarks/tokenizing.py --text=FOLDER --gpt2=FOLDER --sentencepiece=MODEL [--mb=100] [--only=bytes,words]

Text: all files under FOLDER, repeated until there are --mb million bytes. Every tokenizer runs in a process of its own, from files to open
cache: hashing, array_record, making the vocabulary (characters, words, sentencepiece-trained), ids to disk, checking them. peak_mb is that
process's largest resident set. encode_mb_s is the tokenizer alone, on the first 4 MB, after a warm-up on 1 MB.

batch_ms: host time of one batch, median of 200: the `lm` shape of benchmarks/train_step.py (2 rows of 32 segments of 128), and 64
rows of 8 segments.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("bytes", "characters", "words", "sentencepiece", "sentencepiece-trained", "gpt2")
TRAINED_PIECES = 8000


def write_text(source: Path, target: Path, size: int) -> None:
    """A corpus of one file of `size` bytes, cut at a line end."""
    files = sorted(file for file in source.rglob("*") if file.is_file() and file.suffix in (".txt", ".tokens"))
    if not files:
        sys.exit(f"{source} holds no .txt or .tokens files: give a folder of text")
    written = 0
    with (target / "train.txt").open("wb") as out:
        while written < size:
            for file in files:
                data = file.read_bytes()
                if len(data) > size - written:
                    data = data[: data.rfind(b"\n", 0, size - written) + 1] or b"\n"
                    written = size
                out.write(data)
                written += len(data)
                if written >= size:
                    break


def measure(args: argparse.Namespace) -> dict:
    """One tokenizer, in this process."""
    from armt_jax.data import ContiguousStreams, CorpusConfig

    paths = {"sentencepiece": args.sentencepiece, "gpt2": args.gpt2}
    fields = {"vocab_size": TRAINED_PIECES} if args.kind == "sentencepiece-trained" else {"tokenizer_path": paths.get(args.kind)}
    with tempfile.TemporaryDirectory(dir=args.folder) as cache_dir:
        config = CorpusConfig("text", args.folder, args.kind.removesuffix("-trained"), splits=("train",), cache_dir=cache_dir, **fields)
        start = time.perf_counter()
        cache = config.open()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        counts, sample = cache.split("train").counts, Path(args.folder, "train.txt").read_bytes()[:4_000_000]
        sample = sample[: sample.rfind(b"\n") + 1]
        cache.tokenizer.encode(sample[: sample.find(b"\n", 1_000_000) + 1])
        start = time.perf_counter()
        cache.tokenizer.encode(sample)
        alone = len(sample) / 1e6 / (time.perf_counter() - start)
        batches = {
            f"{rows}x{s}x128": batch_ms(ContiguousStreams(config, 128, s, resets_at="documents"), rows) for rows, s in ((2, 32), (64, 8))
        }
    return {
        "tokenizer": args.kind, "vocabulary": cache.tokenizer.vocab_size, "mb": counts.bytes / 1e6, "tokens": counts.tokens,
        "seconds": seconds, "mb_s": counts.bytes / 1e6 / seconds, "encode_mb_s": alone, "peak_mb": peak, "batch_ms": batches,
    }  # fmt: skip


def batch_ms(source, rows: int) -> float:
    times = []
    for step in range(200):
        start = time.perf_counter()
        source.batch(0, step, rows)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="folder of text files")
    parser.add_argument("--gpt2", help="folder of GPT-2's vocabulary and merges; without it, gpt2 is left out")
    parser.add_argument("--sentencepiece", help="a model; without it, only one trained here is measured")
    parser.add_argument("--mb", type=float, default=100.0)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        print("RESULT " + json.dumps(measure(args)))
        return
    if not args.text:
        parser.error("--text is required: a folder of text files")
    kinds = [
        kind
        for kind in args.only.split(",")
        if not (kind == "gpt2" and not args.gpt2 or kind == "sentencepiece" and not args.sentencepiece)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(args.text), Path(folder), int(args.mb * 1e6))
        for number, kind in enumerate(kinds):
            out = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], f"--kind={kind}", f"--folder={folder}"],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            result = json.loads(next(line for line in out.stdout.splitlines() if line.startswith("RESULT "))[7:])
            show(result, args.json, header=number == 0)


def show(result: dict, as_json: bool, header: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
        return
    batches = result.pop("batch_ms")
    if header:
        names = " ".join(f"{name:>10}" for name in ("vocabulary", "mb", "tokens", "seconds", "mb/s", "encode mb/s", "peak_mb"))
        print(f"{'tokenizer':22} {names}  batch_ms")
    values = (f"{v:10.1f}" if isinstance(v, float) else f"{v:10d}" for v in list(result.values())[1:])
    print(f"{result['tokenizer']:22} {' '.join(values)}  {', '.join(f'{k} {v:.2f}' for k, v in batches.items())}", flush=True)


if __name__ == "__main__":
    main()
