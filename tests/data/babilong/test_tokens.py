"""How sentences, questions and answers become ids with each tokenizer."""

import numpy as np
import pytest

from armt_jax.data.babilong.tokens import Codec
from armt_jax.data.errors import DataError
from armt_jax.data.tokenizers import ByteTokenizer, CharacterTokenizer, GPT2Tokenizer, PieceTokenizer, WordTokenizer

PROSE = "Mary went to the hallway. John is in the garden. Where is Mary? Where is the milk? apple,milk no yes maybe "


@pytest.fixture(scope="module")
def own_space():
    """A model that puts a space before every text, like many published ones, and ends texts with </s>."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROSE] * 50), model_writer=model, vocab_size=60, model_type="bpe", hard_vocab_limit=False, minloglevel=2
    )
    return PieceTokenizer(model.getvalue())


def test_ids_are_those_of_the_running_text(own_space):
    trained = PieceTokenizer.train([PROSE.encode()] * 50, 285, 50 * len(PROSE))
    for tokenizer, before in ((ByteTokenizer(), " "), (CharacterTokenizer(sorted(set(PROSE))), " "), (trained, " "), (own_space, "")):
        codec = Codec(tokenizer)
        assert codec.before == before
        sentences = ["Mary went to the hallway.", "John is in the garden."]
        ids = np.concatenate(
            [*map(codec.fact, sentences), codec.question("qa1", "Where is Mary?"), codec.answer("Where is Mary?", "no")[:-1]]
        )
        assert np.array_equal(ids, tokenizer.encode(before + " ".join([*sentences, "Where is Mary?", "no"])))


def test_the_end_token_is_the_tokenizers_own_or_a_new_one(own_space):
    codec = Codec(own_space)
    assert (codec.end_id, codec.vocab_size) == (own_space._library.eos_id(), own_space.vocab_size)
    codec = Codec(ByteTokenizer())
    assert (codec.end_id, codec.vocab_size) == (256, 257)
    assert codec.answer("Where is Mary?", "no").tolist() == [*b" no", 256]


def test_answers_are_decoded_up_to_the_end_token(own_space):
    for codec in (Codec(ByteTokenizer()), Codec(own_space)):
        ids = codec.answer("Where is Mary?", "garden")
        assert codec.decode_answer(ids) == codec.decode_answer(ids[:-1]) == codec.decode_answer([*ids, *ids]) == "garden"
        assert codec.decode_answer([codec.end_id]) == codec.decode_answer([]) == ""
        # A model may have more ids than its tokenizer.
        assert codec.decode_answer([*ids[:-1], codec.vocab_size + 5, codec.end_id]) == "garden\ufffd"


def test_facts_are_encoded_once_and_cannot_be_changed():
    codec = Codec(ByteTokenizer())
    assert codec.fact("Mary is here.") is codec.fact("Mary is here.")
    with pytest.raises(ValueError, match="read-only"):
        codec.fact("Mary is here.")[0] = 1


def test_a_tokenizer_that_splits_an_answer_differently_is_refused():
    class Merging(ByteTokenizer):
        def encode(self, text):
            ids = super().encode(text).tolist()
            return np.array([0 if i and ids[i - 1 : i + 1] == [ord("?"), ord(" ")] else b for i, b in enumerate(ids)], np.int32)

    codec = Codec(Merging())
    with pytest.raises(
        DataError, match=r"splits the answer 'no' differently in context: alone its ids are \[32, 110, 111\], behind .*\[0, 110"
    ):
        codec.answer("Where is Mary?", "no")


def test_tokenizers_that_cannot_express_the_text_are_refused():
    codec = Codec(CharacterTokenizer(sorted(" .?JMWaehinorsy")))
    assert codec.answer("Where is Mary?", "no").size == 4
    with pytest.raises(DataError, match="cannot express the answer 'garden'"):
        codec.answer("Where is Mary?", "garden")
    with pytest.raises(DataError, match="cannot express the fact 'Mary went.'"):
        codec.fact("Mary went.")
    with pytest.raises(DataError, match="the 'words' tokenizer joins text across spaces, or cuts it at none"):
        Codec(WordTokenizer.train([PROSE.encode()]))


def test_published_form():
    codec = Codec(ByteTokenizer(), "published")
    assert bytes(codec.fact("Mary is here.").astype(np.uint8)) == b"Mary is here."
    assert bytes(codec.question("qa1", "Where is Mary?").astype(np.uint8)) == b"Where is Mary? G"
    assert bytes(codec.question("qa4", "What is north of it?").astype(np.uint8)) == b"What is north of it?G"
    assert codec.answer("Where is Mary?", "no").tolist() == [*b"no", 256]
    with pytest.raises(DataError, match="compat='new' is unknown"):
        Codec(ByteTokenizer(), "new")


def test_published_tokenizers(real_data):
    gpt2 = Codec(GPT2Tokenizer.load(real_data / "gpt2-bpe"))
    assert gpt2.answer("Where is Mary?", "hallway").tolist() == [23959, 50256]
    assert gpt2.question("qa1", "Where is Mary?").tolist() == [6350, 318, 5335, 30]
    published = Codec(gpt2.tokenizer, "published")
    assert published.question("qa1", "Where is Mary?").tolist() == [8496, 318, 5335, 30, 220, 35353]
    assert published.answer("Where is Mary?", "hallway").tolist() == [18323, 1014, 50256]
    pg19 = Codec(PieceTokenizer.load(real_data / "sentencepiece" / "pg19train_bpe_4000.model"))
    assert (pg19.before, pg19.end_id, pg19.vocab_size) == ("", 4000, 4001)
    assert pg19.decode_answer(pg19.answer("What is Mary carrying?", "apple,milk")) == "apple,milk"
