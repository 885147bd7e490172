"""Tokenizers: a registry by name. A new one is one file and one entry of TOKENIZERS."""

from armt_jax.data.tokenizers.base import Tokenizer
from armt_jax.data.tokenizers.gpt2 import GPT2Tokenizer
from armt_jax.data.tokenizers.pieces import PieceTokenizer
from armt_jax.data.tokenizers.symbols import ByteTokenizer, CharacterTokenizer
from armt_jax.data.tokenizers.words import WordTokenizer

__all__ = ["TOKENIZERS", "ByteTokenizer", "CharacterTokenizer", "GPT2Tokenizer", "PieceTokenizer", "Tokenizer", "WordTokenizer"]

TOKENIZERS: dict[str, type[Tokenizer]] = {
    kind.kind: kind for kind in (ByteTokenizer, CharacterTokenizer, WordTokenizer, PieceTokenizer, GPT2Tokenizer)
}
