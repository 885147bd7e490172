"""Perplexity and bits of a text, from sums.

Losses come as (nats, tokens): the sum of -ln p over the tokens predicted, and how many they were. A (sum, weight) pair converts to
another unit exactly, by the totals of the whole split: nats over n of its tokens are nats over n * units / tokens of its words,
characters or bytes. Add pairs over batches, segments and hosts first, and divide once, here.
"""

import math

from armt_jax.data.cache import SplitCounts

# The figure in which results on a corpus are published, by the corpus.
PUBLISHED_AS = {
    "wikitext103": "word_perplexity",
    "wikitext2": "word_perplexity",
    "enwik8": "bits_per_byte",
    "pg19": "word_perplexity_without_line_ends",
    "text": "bits_per_character",
}


def perplexity(nats: float, count: float) -> float:
    """exp of the nats per unit; infinite when that overflows.

    Raises:
        ValueError: nothing was counted.
    """
    per_unit = _mean(nats, count)
    return math.exp(per_unit) if per_unit < 709 else math.inf


def bits(nats: float, count: float) -> float:
    """Bits per unit. Raises ValueError when nothing was counted."""
    return _mean(nats, count) / math.log(2)


def convert(count: float, units: int, tokens: int) -> float:
    """How many units `count` tokens are, in a text of `tokens` tokens and `units` units."""
    if tokens < 1:
        raise ValueError(f"tokens={tokens}: a text without tokens has no ratio to convert with")
    return count * units / tokens


def text_metrics(nats: float, count: float, split: SplitCounts) -> dict[str, float]:
    """All figures of a loss on a split.

    Args:
        nats: sum of the losses. count: tokens they were summed over, of this split.

    Returns:
        nats_per_token
        perplexity: per token.
        word_perplexity: per word and line end, as published for WikiText (`perplexity` itself with its word-level tokens).
        word_perplexity_without_line_ends: as published for PG-19.
        bits_per_byte: the "bits per character" published for enwik8.
        bits_per_character: per Unicode character.
    """
    words = convert(count, split.words, split.tokens)
    words_and_ends = convert(count, split.words + split.lines, split.tokens)
    return {
        "nats_per_token": _mean(nats, count),
        "perplexity": perplexity(nats, count),
        "word_perplexity": perplexity(nats, words_and_ends),
        "word_perplexity_without_line_ends": perplexity(nats, words) if split.words else math.inf,
        "bits_per_byte": bits(nats, convert(count, split.bytes, split.tokens)),
        "bits_per_character": bits(nats, convert(count, split.characters, split.tokens)),
    }


def _mean(nats: float, count: float) -> float:
    if not count > 0:
        raise ValueError(
            f"a loss of {nats} nats over {count} units has no mean: nothing was evaluated, check that the batches carry weights above 0"
        )
    return nats / count
