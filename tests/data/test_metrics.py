"""The conversions, by hand."""

import math

import pytest

from armt_jax.data.cache import DataIdentity, SplitCounts, write_cache
from armt_jax.data.metrics import bits, convert, perplexity, text_metrics
from armt_jax.data.tokenizers import GPT2Tokenizer, WordTokenizer, gpt2


def test_a_uniform_model_over_words_has_the_vocabulary_as_its_perplexity(tmp_path):
    text = b"the cat sat on the mat\nthe end\n"
    tokenizer = WordTokenizer.train([text])
    cache = write_cache(tmp_path / "c", tokenizer, DataIdentity("text", ""), {"test": lambda: [(0, text)]})
    split = cache.split("test")
    predicted = len(split.ids_N) - 1
    metrics = text_metrics(predicted * math.log(tokenizer.vocab_size), predicted, split.counts)
    assert metrics["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-12)
    # Word-level tokens are the words and the line ends.
    assert metrics["word_perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-12)


def test_bits_per_byte_of_bpe_by_hand(tmp_path):
    symbols = gpt2.byte_symbols()
    merges = [("t", "h"), ("th", "e"), (symbols[32], "the")]
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols.values(), "th", "the", symbols[32] + "the"])}
    text = b"the the x\xc3\xa9\n"  # the, _the, _, x, two bytes of an e with accent, line end
    cache = write_cache(tmp_path / "c", GPT2Tokenizer(vocabulary, merges), DataIdentity("text", ""), {"test": lambda: [(0, text)]})
    counts = cache.split("test").counts
    assert counts == SplitCounts(tokens=7, bytes=12, characters=11, words=3, lines=1, documents=1, unknown=0)
    losses = [math.log(2) * k for k in (1, 2, 3, 4, 5, 6, 7)]  # 28 bits in all
    metrics = text_metrics(sum(losses), len(losses), counts)
    assert metrics["bits_per_byte"] == pytest.approx(28 / len(text), rel=1e-12)
    assert metrics["bits_per_character"] == pytest.approx(28 / len(text.decode()), rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(2 ** (28 / 7), rel=1e-12)
    assert metrics["word_perplexity"] == pytest.approx(2 ** (28 / 4), rel=1e-12)
    assert metrics["word_perplexity_without_line_ends"] == pytest.approx(2 ** (28 / 3), rel=1e-12)
    assert metrics["nats_per_token"] == pytest.approx(4 * math.log(2), rel=1e-12)


def test_sums_add_up_before_they_are_divided():
    parts = [(10.0, 3), (2.0, 9), (7.5, 1)]
    nats, count = (sum(column) for column in zip(*parts))
    assert perplexity(nats, count) == math.exp(19.5 / 13)
    assert bits(nats, count) == 19.5 / 13 / math.log(2)
    units = [convert(count, 100, 40) for _, count in parts]
    assert sum(units) == convert(13, 100, 40) == 32.5


def test_limits():
    assert perplexity(1e6, 1) == math.inf
    for metric in (perplexity, bits):
        with pytest.raises(ValueError, match="no mean: nothing was evaluated"):
            metric(0.0, 0)
    with pytest.raises(ValueError, match="tokens=0"):
        convert(1, 1, 0)
