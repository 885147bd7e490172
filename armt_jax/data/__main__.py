"""Prepares a corpus ahead of a run, and says what is in it.

    python -m armt_jax.data --name=enwik8 --path=/data/enwik8 --tokenizer=bytes

The flags are the fields of `CorpusConfig`; a run with the same ones finds everything ready.
"""

import argparse
import sys

from armt_jax.data.corpus import CorpusConfig
from armt_jax.data.errors import DataError
from armt_jax.data.sources import SOURCES, SPLITS
from armt_jax.data.tokenizers import TOKENIZERS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m armt_jax.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, choices=SOURCES)
    parser.add_argument("--path", help="where the files of the corpus are; without it the official ones are fetched")
    parser.add_argument("--tokenizer", default="bytes", choices=TOKENIZERS)
    parser.add_argument("--tokenizer_path", help="its files; without it, it is made from the training split")
    parser.add_argument("--vocab_size", type=int)
    parser.add_argument("--splits", default=",".join(SPLITS), help="separated by commas")
    parser.add_argument("--cache_dir", default=CorpusConfig.cache_dir)
    fields = vars(parser.parse_args(arguments))
    try:
        cache = CorpusConfig(**fields | {"splits": tuple(fields["splits"].split(","))}).open()
    except DataError as e:
        sys.exit(f"error: {e}")
    print(f"{cache.report()}\nids: {cache.folder}")


if __name__ == "__main__":
    main()
