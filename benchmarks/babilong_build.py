"""How fast is BABILong written as records? Seconds, samples and megabytes of ids a second, through the builder.

    python benchmarks/babilong_build.py [--samples=1000] [--length=131072] [--task=qa1] [--background=BOOKS] [--tokenizer=bytes]
                                        [--tokenizer_path=FILES] [--json]

Stories are generated. The background is tokenised before the clock starts, as that is done once a text; everything that is written goes
into a temporary folder (--folder: another place for it), with half a megabyte for a sample of 131,072 tokens. Without --background, text is
made on the spot.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.babilong_stream import write_books  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--length", type=int, default=131_072, help="tokens of a sample")
    parser.add_argument("--task", default="qa1")
    parser.add_argument("--background", help="a folder of books")
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--tokenizer_path")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: Path) -> dict:
    from armt_jax.data.babilong import BabilongSamples, BackgroundConfig, GeneratedStories
    from armt_jax.data.babilong.builders import Babilong, prepare

    books = args.background or str(folder / "books")
    if not args.background:
        write_books(Path(books))
    background = BackgroundConfig(books, tokenizer=args.tokenizer, tokenizer_path=args.tokenizer_path, cache_dir=str(folder / "cache"))
    background.open()
    samples = BabilongSamples(args.task, "test", args.length, background, GeneratedStories())
    start = time.perf_counter()
    builder = prepare(Babilong(samples={"test": samples}, counts={"test": args.samples}, data_dir=folder / "records"))
    seconds = time.perf_counter() - start
    written = sum(file.stat().st_size for file in Path(builder.data_path).iterdir())
    found = len(builder.as_data_source(split="test"))
    return {
        "task": args.task, "length": args.length, "samples": found, "seconds": round(seconds, 2),
        "samples_per_s": round(found / seconds, 2), "ids_mb_per_s": round(4 * found * args.length / seconds / 1e6, 2),
        "written_mb": round(written / 1e6, 2),
    }  # fmt: skip


def main():
    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args, Path(folder))
    if args.json:
        print(json.dumps(found))
        return
    print(
        f"{found['task']}, {found['samples']:,} samples of {found['length']:,} tokens: {found['seconds']} s, {found['samples_per_s']} "
        f"samples/s, {found['ids_mb_per_s']} MB/s of int32 ids, {found['written_mb']} MB written"
    )


if __name__ == "__main__":
    main()
