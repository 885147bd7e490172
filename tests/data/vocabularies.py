"""A vocabulary of GPT-2's kind, small enough to read."""

from armt_jax.data.tokenizers import GPT2Tokenizer, gpt2


def small_gpt2() -> GPT2Tokenizer:
    symbols = gpt2.byte_symbols()
    vocabulary = {symbol: i for i, symbol in enumerate(symbols.values())}
    space = symbols[ord(" ")]
    merges = [("t", "h"), ("th", "e"), (space, "the"), (space, "t"), ("x", "x"), ("xx", "xx"), (space, space), (symbols[10], symbols[10])]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    return GPT2Tokenizer(vocabulary, merges)
