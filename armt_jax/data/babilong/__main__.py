"""Builds splits of BABILong as array_record datasets, and says where they are.

    python -m armt_jax.data.babilong --background=/data/books --tokenizer_path=/data/gpt2-bpe --stories=/data/babi/en-10k \\
        --tasks=qa1,qa2 --lengths=4096,131072 --splits=test --data_dir=/data/babilong

Without --stories they are generated (qa1 to qa10), and --count says how many.
"""

import argparse
import sys

from armt_jax.data.babilong.background import BackgroundConfig
from armt_jax.data.babilong.books import NAMES
from armt_jax.data.babilong.samples import BabilongSamples
from armt_jax.data.babilong.stories import GeneratedStories, StoryFiles
from armt_jax.data.babilong.tokens import COMPAT
from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers import TOKENIZERS


def main(arguments: list[str] | None = None) -> None:
    flags = _parser().parse_args(arguments)
    try:
        for line in _build(flags):
            print(line, flush=True)
    except ValueError as e:  # DataError, and fields out of range
        sys.exit(f"error: {e}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m armt_jax.data.babilong", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--background", help="folder of books, or of the files of --name")
    parser.add_argument("--name", default="books", choices=NAMES)
    parser.add_argument("--tokenizer", default="gpt2", choices=TOKENIZERS)
    parser.add_argument("--tokenizer_path")
    parser.add_argument("--vocab_size", type=int)
    parser.add_argument("--stories", help="folder of the bAbI files; without it stories are generated")
    parser.add_argument("--max_facts", type=int)
    parser.add_argument("--tasks", default="qa1,qa2,qa3,qa4,qa5", help="separated by commas")
    parser.add_argument("--lengths", required=True, help="in tokens, separated by commas")
    parser.add_argument("--splits", default="test", help="separated by commas")
    parser.add_argument("--count", type=int, help="samples of each split; without it all there are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compat", default="default", choices=COMPAT)
    parser.add_argument("--facts_within", type=int)
    parser.add_argument("--data_dir", required=True, help="where the datasets go")
    parser.add_argument("--cache_dir", default=BackgroundConfig.cache_dir)
    return parser


def _build(flags: argparse.Namespace):
    # Not at the top: --help needs no tensorflow-datasets.
    from armt_jax.data.babilong.builders import Babilong, prepare

    background = BackgroundConfig(
        flags.background, flags.name, flags.tokenizer, flags.tokenizer_path, flags.vocab_size, cache_dir=flags.cache_dir
    )
    stories = StoryFiles(flags.stories, flags.max_facts) if flags.stories else GeneratedStories(flags.max_facts)
    splits = flags.splits.split(",")
    if not all(length.isdigit() for length in flags.lengths.split(",")):
        raise DataError(f"--lengths={flags.lengths} must be numbers of tokens, separated by commas")
    for task in flags.tasks.split(","):
        for length in map(int, flags.lengths.split(",")):
            samples = {
                split: BabilongSamples(task, split, length, background, stories, flags.seed, flags.compat, flags.facts_within)
                for split in splits
            }
            counts = dict.fromkeys(splits, flags.count) if flags.count else None
            builder = prepare(Babilong(samples=samples, counts=counts, data_dir=flags.data_dir))
            yield f"{task} {length} {','.join(f'{split}: {count:,}' for split, count in builder.counts.items())} {builder.data_path}"


if __name__ == "__main__":
    main()
